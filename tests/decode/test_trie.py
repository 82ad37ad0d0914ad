"""The trie against sets of tuples, on random trees of every shape."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec.decode import SIDTrie
from llmrec.decode.trie_build import number_prefixes
from llmrec.errors import InputError


@st.composite
def catalogues(draw):
    """Codes of 1-6 levels: dense, sparse, single-child or with shared SIDs, as the sizes and counts fall."""
    sizes = draw(st.lists(st.integers(1, 5), min_size=1, max_size=6))
    count = draw(st.integers(1, 30))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    codes = np.stack([rng.integers(0, size, count) for size in sizes], axis=1)
    alive = rng.random(count) < draw(st.sampled_from([0.0, 0.3, 0.8, 1.0]))
    return codes, sizes, alive, rng


def prefixes_of(codes, level):
    return sorted({tuple(row[:level].tolist()) for row in codes})


@settings(max_examples=150, deadline=None)
@given(catalogues())
def test_children_are_exactly_the_living_prefixes(catalogue):
    codes, sizes, alive, _ = catalogue
    trie = SIDTrie.build(codes, sizes, alive)
    nodes, prefixes = np.zeros(1, dtype=np.int64), [()]
    for level in range(len(sizes)):
        assert trie.num_living(level, nodes).tolist() == [
            sum(tuple(row[:level].tolist()) == prefix for row in codes[alive]) for prefix in prefixes
        ]
        children = trie.children(level, nodes)
        prefixes = [(*prefixes[owner], int(code)) for owner, code in zip(children.owner, children.code, strict=True)]
        nodes = children.node
        assert prefixes == prefixes_of(codes[alive], level + 1)
    for prefix, leaf in zip(prefixes, nodes, strict=True):
        assert trie.members(leaf).tolist() == np.flatnonzero(alive & (codes == prefix).all(axis=1)).tolist()


@settings(max_examples=100, deadline=None)
@given(catalogues())
def test_nodes_are_all_prefixes_in_order_living_or_not(catalogue):
    codes, sizes, alive, rng = catalogue
    trie = SIDTrie.build(codes, sizes, alive)
    for level in range(len(sizes) + 1):
        prefixes = prefixes_of(codes, level)
        assert trie.num_nodes(level) == len(prefixes)
        nodes = rng.integers(0, len(prefixes), 7)
        assert [tuple(path) for path in trie.paths(level, nodes).tolist()] == [prefixes[node] for node in nodes]
        if level:
            assert trie.codes_of(level, nodes).tolist() == [prefixes[node][-1] for node in nodes]
            above = prefixes_of(codes, level - 1)
            assert [above[node] for node in trie.parents(level, nodes)] == [prefixes[node][:-1] for node in nodes]
    assert [tuple(path) for path in trie.paths(len(sizes), trie.leaf_of).tolist()] == [tuple(row) for row in codes]


@settings(max_examples=100, deadline=None)
@given(catalogues())
def test_step_follows_codes_and_reports_dead_ends(catalogue):
    codes, sizes, alive, rng = catalogue
    trie = SIDTrie.build(codes, sizes, alive)
    for level, size in enumerate(sizes):
        above, below = prefixes_of(codes, level), prefixes_of(codes, level + 1)
        nodes, asked = rng.integers(0, len(above), 9), rng.integers(0, size, 9)
        wanted = [(*above[node], int(code)) for node, code in zip(nodes, asked, strict=True)]
        assert trie.step(level, nodes, asked).tolist() == [
            below.index(prefix) if prefix in below else -1 for prefix in wanted
        ]


@settings(max_examples=100, deadline=None)
@given(catalogues(), st.booleans())
def test_versions_equal_a_fresh_build_and_leave_the_old_one_alone(catalogue, on):
    codes, sizes, alive, rng = catalogue
    old = SIDTrie.build(codes, sizes, alive)
    rows = rng.integers(0, len(codes), rng.integers(0, len(codes) + 1))
    after = alive.copy()
    after[rows] = on
    before = [counts.copy() for counts in old.living]
    fresh = SIDTrie.build(codes, sizes, after)
    for version in (old.with_switched(rows, on), old.with_alive(after)):
        assert version.alive.tolist() == after.tolist()
        for level in range(len(sizes) + 1):
            np.testing.assert_array_equal(version.living[level], fresh.living[level])
            assert version.living[level].dtype == np.int32
        assert version.items is old.items
        assert version.child_start is old.child_start
    for counts, kept in zip(old.living, before, strict=True):
        np.testing.assert_array_equal(counts, kept)
    assert old.alive.tolist() == alive.tolist()


def test_a_trie_cannot_be_written_to():
    alive = np.ones(2, dtype=bool)
    trie = SIDTrie.build(np.array([[0, 1], [1, 0]]), (2, 2), alive)
    for array in (trie.alive, trie.items, trie.leaf_of, trie.living[1], trie.with_switched([0], False).living[0]):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0
    alive[0] = False  # the caller's mask stays the caller's
    assert trie.alive.all()


@pytest.mark.parametrize(
    "sizes",
    [(5,) * 4, (2**16,) * 3, (2**16,) * 4, (2**16, 300, 2**20, 7, 2**16, 2**10)],
    ids=["rows in the word", "rows just in the word", "one full word", "two words"],
)
def test_every_way_of_sorting_gives_the_order_of_lexsort(sizes):
    rng = np.random.default_rng(0)
    codes = np.stack([rng.choice([0, size // 2, size - 1], 500) for size in sizes], axis=1)
    built = number_prefixes(np.ascontiguousarray(codes.T), sizes)
    order = np.lexsort(codes.T[::-1])
    assert built.items.tolist() == order.tolist()
    trie = SIDTrie.build(codes, sizes)
    assert trie.paths(len(sizes), np.arange(trie.num_nodes(len(sizes)))).tolist() == np.unique(codes, axis=0).tolist()


def test_memory_is_32_bit_numbers_and_small_codes():
    rng = np.random.default_rng(0)
    codes = np.concatenate([rng.integers(0, 256, (20_000, 3)), np.zeros((20_000, 1), dtype=int)], axis=1)
    trie = SIDTrie.build(codes, (256, 256, 256, 256))
    deeper = SIDTrie.build(np.concatenate([codes, codes[:, :1]], axis=1), (256,) * 5)
    assert trie.nbytes <= 40 * len(codes)
    assert deeper.nbytes - trie.nbytes <= 12 * len(codes)


@pytest.mark.parametrize(
    ("codes", "sizes", "alive", "message"),
    [
        (np.zeros((0, 2), dtype=int), (2, 2), None, "at least one item"),
        (np.zeros((3, 2), dtype=int), (2,), None, r"given \(3, 2\) for 1 codebooks"),
        (np.array([[0, 1], [0, 2]]), (2, 2), None, "the first is row 1"),
        (np.array([[0], [-1]]), (2,), None, "1 of 2 items"),
        (np.array([[0.0], [1.0]]), (2,), None, "must be integers; given float64"),
        (np.array([[0], [1]]), (2,), np.ones(3, dtype=bool), "alive mask"),
        (np.array([[0], [1]]), (2,), np.ones(2, dtype=int), "alive mask"),
    ],
)
def test_build_refuses(codes, sizes, alive, message):
    with pytest.raises(InputError, match=message):
        SIDTrie.build(codes, sizes, alive)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([1, 2], r"0\.\.1; given 1\.\.2"),
        ([0, -1, -1], r"0\.\.1; given -1\.\.0"),
        ([0.5], "integers or a bool mask"),
        ([[0], [1]], "integers or a bool mask"),
        (np.ones(3, dtype=bool), r"mask must be a bool array of shape \(2,\); given bool \(3,\)"),
    ],
)
def test_rows_that_are_none_are_refused(rows, message):
    trie = SIDTrie.build(np.array([[0], [1]]), (2,))
    for what, make in (
        ("xcluded", trie.exclusion),
        ("llowed", trie.allowance),
        ("witched", lambda rows: trie.with_switched(rows, True)),
    ):
        with pytest.raises(InputError, match=message) as raised:
            make(rows)
        assert what in str(raised.value)
