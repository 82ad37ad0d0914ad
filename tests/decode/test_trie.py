"""The trie against sets of tuples, on random trees of every shape."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec.decode import SIDTrie
from llmrec.errors import InputError


@st.composite
def catalogues(draw):
    """Codes of 1-6 levels: dense, sparse, single-child or with shared SIDs, as the sizes and counts fall."""
    sizes = draw(st.lists(st.integers(1, 5), min_size=1, max_size=6))
    count = draw(st.integers(1, 30))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    codes = np.stack([rng.integers(0, size, count) for size in sizes], axis=1)
    alive = rng.random(count) < draw(st.sampled_from([0.0, 0.3, 0.8, 1.0]))
    excluded = rng.integers(0, count, draw(st.integers(0, count)))
    return codes, sizes, alive, excluded


@settings(max_examples=150, deadline=None)
@given(catalogues())
def test_children_are_exactly_the_living_prefixes(catalogue):
    codes, sizes, alive, excluded = catalogue
    trie = SIDTrie.build(codes, sizes, alive)
    exclusion = trie.exclusion(excluded)
    left = alive.copy()
    left[excluded] = False
    nodes, prefixes = np.zeros(1, dtype=np.int64), [()]
    for level in range(len(sizes)):
        assert trie.num_living(level, nodes, exclusion).sum() == left.sum()
        children = trie.children(level, nodes, exclusion)
        prefixes = [(*prefixes[owner], int(code)) for owner, code in zip(children.owner, children.code, strict=True)]
        nodes = children.node
        assert prefixes == sorted({tuple(row[: level + 1].tolist()) for row in codes[left]})
        assert trie.paths(level + 1, nodes).tolist() == [list(prefix) for prefix in prefixes]
    buckets = [trie.members(leaf, exclusion) for leaf in nodes]
    assert all((np.diff(bucket) > 0).all() for bucket in buckets)
    assert sorted(row for bucket in buckets for row in bucket) == np.flatnonzero(left).tolist()


@settings(max_examples=50, deadline=None)
@given(catalogues())
def test_with_alive_is_a_fresh_build(catalogue):
    codes, sizes, alive, _ = catalogue
    view = SIDTrie.build(codes, sizes).with_alive(alive)
    fresh = SIDTrie.build(codes, sizes, alive)
    for level in range(len(sizes) + 1):
        np.testing.assert_array_equal(view.living[level], fresh.living[level])


def test_with_alive_shares_the_structure():
    trie = SIDTrie.build(np.array([[0, 1], [1, 0]]), (2, 2))
    view = trie.with_alive(np.array([True, False]))
    assert view.items is trie.items
    assert view.child_start is trie.child_start
    assert trie.living[0][0] == 2


def test_step_follows_codes_and_reports_dead_ends():
    trie = SIDTrie.build(np.array([[0, 3], [2, 1]]), (3, 4))
    first = trie.step(0, np.zeros(3, dtype=np.int64), np.array([2, 1, 0]))
    assert first.tolist() == [1, -1, 0]
    assert trie.step(1, first[[0, 2]], np.array([1, 1])).tolist() == [1, -1]


def test_what_is_excluded_twice_or_dead_counts_once():
    trie = SIDTrie.build(np.array([[0], [0], [1]]), (2,), np.array([True, False, True]))
    exclusion = trie.exclusion([0, 0, 1])
    assert exclusion.rows.tolist() == [0]
    assert trie.num_living(0, np.zeros(1, dtype=np.int64), exclusion).tolist() == [1]


@pytest.mark.parametrize(
    ("codes", "sizes", "alive", "message"),
    [
        (np.zeros((0, 2), dtype=int), (2, 2), None, "at least one item"),
        (np.zeros((3, 2), dtype=int), (2,), None, r"given \(3, 2\) for 1 codebooks"),
        (np.array([[0, 1], [0, 2]]), (2, 2), None, "the first is row 1"),
        (np.array([[0], [-1]]), (2,), None, "1 of 2 items"),
        (np.array([[0], [1]]), (2,), np.ones(3, dtype=bool), "alive mask"),
        (np.array([[0], [1]]), (2,), np.ones(2, dtype=int), "alive mask"),
    ],
)
def test_build_refuses(codes, sizes, alive, message):
    with pytest.raises(InputError, match=message):
        SIDTrie.build(codes, sizes, alive)


def test_exclusion_refuses_unknown_rows():
    with pytest.raises(InputError, match=r"0\.\.1; given 1\.\.2"):
        SIDTrie.build(np.array([[0], [1]]), (2,)).exclusion([1, 2])
