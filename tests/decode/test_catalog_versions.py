"""Swapping catalogues under running requests."""

from __future__ import annotations

import gc
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from llmrec.decode import SIDTrie
from llmrec.decode.catalog_versions import CatalogVersion, CatalogVersions
from llmrec.errors import InputError


class Titles:
    """A payload whose end can be watched."""


def version(name, payload=None):
    return CatalogVersion(name, SIDTrie.build(np.array([[0], [1]]), (2,)), payload)


def test_a_request_keeps_its_version_and_the_last_one_frees_it():
    titles = Titles()
    watched = weakref.ref(titles)
    versions = CatalogVersions(version("a", titles))
    del titles
    with versions.use() as first, versions.use():
        versions.swap(version("b"))
        assert (first.name, versions.current().name) == ("a", "b")
        with versions.use() as later:
            assert later.name == "b"
            assert versions.requests() == {"a": 2, "b": 1}
        del later
    assert versions.requests() == {"b": 0}
    del first
    gc.collect()
    assert watched() is None


def test_an_idle_version_is_freed_by_the_swap():
    versions = CatalogVersions(version("a"))
    assert versions.swap(version("b")).name == "a"
    assert versions.requests() == {"b": 0}
    assert versions.swap(version("a")).name == "b"  # a name is free again


def test_a_request_that_fails_is_counted_out():
    versions = CatalogVersions(version("a"))
    with pytest.raises(KeyError), versions.use():
        raise KeyError
    assert versions.requests() == {"a": 0}


def test_a_name_in_use_and_other_codebooks_are_refused():
    versions = CatalogVersions(version("a"))
    with versions.use():
        versions.swap(version("b"))
        for name in ("a", "b"):
            with pytest.raises(InputError, match=f"version '{name}' is in use"):
                versions.swap(version(name))
    with pytest.raises(InputError, match=r"codebooks of \[5\] codes.*trained on \[2\]"):
        versions.swap(CatalogVersion("c", SIDTrie.build(np.array([[4]]), (5,)), None))
    assert versions.current().name == "b"


def test_no_request_sees_a_torn_version_and_no_count_is_lost():
    trie = SIDTrie.build(np.zeros((1, 1), dtype=int), (2,))
    versions = CatalogVersions(CatalogVersion("0", trie, 0))

    def requests(_):
        for _ in range(300):
            with versions.use() as used:
                assert used.name == str(used.payload)

    def swaps():
        for number in range(1, 300):
            versions.swap(CatalogVersion(str(number), trie, number))

    with ThreadPoolExecutor(5) as pool:
        swapping = pool.submit(swaps)
        list(pool.map(requests, range(4)))
        swapping.result()
    assert versions.requests() == {"299": 0}
