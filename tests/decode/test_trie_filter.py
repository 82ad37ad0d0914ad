"""Filters against sets: what a request sees through one is what a trie of the remaining items would show."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec.decode import SIDTrie
from llmrec.decode.trie_filter import Allowance, Exclusion
from llmrec.errors import InputError


@st.composite
def filtered(draw):
    """A random trie, up to three nested filters by rows or masks, and what they leave."""
    sizes = draw(st.lists(st.integers(1, 5), min_size=1, max_size=6))
    count = draw(st.integers(1, 30))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    codes = np.stack([rng.integers(0, size, count) for size in sizes], axis=1)
    alive = rng.random(count) < draw(st.sampled_from([0.0, 0.5, 0.9, 1.0]))
    trie = SIDTrie.build(codes, sizes, alive)
    left, found = alive.copy(), None
    for kind in draw(st.lists(st.sampled_from(["exclude", "allow"]), min_size=1, max_size=3)):
        mask = rng.random(count) < draw(st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]))
        rows = mask if draw(st.booleans()) else rng.permutation(np.repeat(np.flatnonzero(mask), 2))
        found = trie.exclusion(rows, found) if kind == "exclude" else trie.allowance(rows, found)
        left &= mask if kind == "allow" else ~mask
    return trie, codes, alive, left, found, rng


@settings(max_examples=400, deadline=None)
@given(filtered())
def test_a_filtered_walk_meets_exactly_what_is_left(case):
    trie, codes, alive, left, found, _ = case
    nodes, prefixes = np.zeros(1, dtype=np.int64), [()]
    for level in range(trie.num_levels):
        assert trie.num_living(level, nodes, found).tolist() == [
            sum(tuple(row[:level].tolist()) == prefix for row in codes[left]) for prefix in prefixes
        ]
        children = trie.children(level, nodes, found)
        prefixes = [(*prefixes[owner], int(code)) for owner, code in zip(children.owner, children.code, strict=True)]
        nodes = children.node
        assert prefixes == sorted({tuple(row[: level + 1].tolist()) for row in codes[left]})
    buckets = [trie.members(leaf, found) for leaf in nodes]
    assert all((np.diff(bucket) > 0).all() for bucket in buckets)
    assert sorted(row for bucket in buckets for row in bucket) == np.flatnonzero(left).tolist()
    living = np.flatnonzero(alive)
    assert living[found.keeps(living)].tolist() == np.flatnonzero(left).tolist()


@settings(max_examples=200, deadline=None)
@given(filtered())
def test_any_nodes_may_be_asked_in_any_order_and_twice(case):
    trie, _, _, left, found, rng = case
    fresh = trie.with_alive(left)
    for level in range(trie.num_levels):
        nodes = rng.integers(0, trie.num_nodes(level), 6)
        ours, theirs = trie.children(level, nodes, found), fresh.children(level, nodes)
        assert ours.owner.tolist() == theirs.owner.tolist()
        assert ours.node.tolist() == theirs.node.tolist()
        assert ours.code.tolist() == theirs.code.tolist()
        table = nodes.reshape(2, 3)  # counts are asked for in any shape
        assert trie.num_living(level, table, found).tolist() == fresh.num_living(level, table).tolist()


def test_what_is_excluded_twice_or_dead_counts_once():
    trie = SIDTrie.build(np.array([[0], [0], [1]]), (2,), np.array([True, False, True]))
    exclusion = trie.exclusion([0, 0, 1])
    assert exclusion.rows.tolist() == [0]
    assert trie.num_living(0, np.zeros(1, dtype=np.int64), exclusion).tolist() == [1]
    assert trie.children(0, np.zeros(1, dtype=np.int64), exclusion).code.tolist() == [1]


def test_a_filter_that_leaves_nothing_gives_no_children():
    trie = SIDTrie.build(np.array([[0, 1], [1, 1]]), (2, 2))
    root = np.zeros(1, dtype=np.int64)
    for nothing in (trie.allowance([]), trie.exclusion([0, 1]), trie.exclusion([1], within=trie.allowance([1]))):
        assert trie.children(0, root, nothing).node.size == 0
        assert trie.num_living(0, root, nothing).tolist() == [0]


def test_the_smaller_part_of_the_catalogue_is_what_is_kept():
    trie = SIDTrie.build(np.arange(10)[:, None], (10,))
    few, most = trie.allowance([3, 4]), trie.allowance(range(1, 10))
    assert isinstance(few, Allowance)
    assert isinstance(most, Exclusion)
    assert few.rows.tolist() == [3, 4]
    assert most.rows.tolist() == [0]


def test_a_filter_serves_its_own_version_and_no_other():
    trie, root = SIDTrie.build(np.array([[0], [1], [2]]), (3,)), np.zeros(1, dtype=np.int64)
    exclusion = trie.exclusion([0])
    new = trie.with_switched([1], alive=False)
    assert trie.children(0, root, exclusion).code.tolist() == [1, 2]
    for use in (
        lambda: new.children(0, root, exclusion),
        lambda: new.num_living(0, root, exclusion),
        lambda: new.members(2, exclusion),
        lambda: new.exclusion([2], within=exclusion),
        lambda: new.allowance([2], within=exclusion),
    ):
        with pytest.raises(InputError, match="another version"):
            use()
