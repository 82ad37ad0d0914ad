"""The ``trie`` benchmark: its four ways choose the same continuations, and its sizes count what they say."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from llmrec.bench import trie as bench
from llmrec.bench.trie_peers import DictTrie, Ours, PrefixHash, Static
from llmrec.decode import SIDTrie

ITEMS = 3_000


@pytest.fixture(scope="module", params=["uniform", "skewed"])
def codes(request):
    if request.param == "uniform":
        return bench.random_codes(ITEMS)
    codes = np.random.default_rng(0).integers(0, 4, (200, 4), dtype=np.int32) ** 3  # few codes, wide and narrow nodes
    return np.unique(codes, axis=0)


@pytest.fixture(scope="module")
def ways(codes):
    trie = SIDTrie.build(codes, (bench.CODEBOOK_SIZE,) * 4)
    return [Ours(trie), DictTrie(codes), PrefixHash(codes), Static(codes[trie.items], bench.CODEBOOK_SIZE)]


@pytest.mark.parametrize("level", range(4))
def test_all_ways_choose_the_same_continuations(codes, ways, level):
    rng = np.random.default_rng(level)
    prefixes = rng.permutation(np.unique(codes[:, :level], axis=0))[:50]
    table, scores = rng.normal(size=(len(prefixes), bench.CODEBOOK_SIZE)), rng.normal(size=len(prefixes))
    legal = {tuple(row) for row in codes[:, : level + 1].tolist()}
    wanted = sorted(
        (-(scores[i] + table[i, code]), i, code)
        for i, prefix in enumerate(prefixes.tolist())
        for code in range(bench.CODEBOOK_SIZE)
        if (*prefix, code) in legal
    )[:50]
    for way in ways:
        chosen = way.select(level, way.state(prefixes), table, scores, 50)
        assert list(zip(chosen.owner, chosen.code, strict=True)) == [(i, code) for _, i, code in wanted]
        if level < 3:  # what a way hands on leads where its own walk leads
            longer = np.array([[*prefixes[i], code] for _, i, code in wanted])
            table_after = rng.normal(size=(len(longer), bench.CODEBOOK_SIZE))
            after = [
                way.select(level + 1, state, table_after, np.zeros(len(longer)), 50)
                for state in (chosen.state, way.state(longer))
            ]
            assert after[0].owner.tolist() == after[1].owner.tolist()
            assert after[0].code.tolist() == after[1].code.tolist()


def test_sids_are_distinct_and_the_suffix_counts_equal_ones():
    codes = bench.random_codes(ITEMS)
    assert len(np.unique(codes, axis=0)) == ITEMS
    narrow = bench.random_codes(ITEMS, num_levels=2)  # 3,000 items of 256 codes
    for code in range(bench.CODEBOOK_SIZE):
        suffixes = narrow[narrow[:, 0] == code, 1]
        assert suffixes.tolist() == list(range(len(suffixes)))


def test_sizes_are_those_of_the_objects():
    codes = np.array([[0, 1, 0], [0, 2, 0]], dtype=np.int32)
    empty = sys.getsizeof({})
    root, first, second = sys.getsizeof({0: 0}), sys.getsizeof({1: 0, 2: 0}), sys.getsizeof({0: 0})
    assert DictTrie(codes).nbytes == pytest.approx(root + first + 2 * second + 2 * empty, abs=200)
    assert PrefixHash(codes).nbytes > 4 * sys.getsizeof(())
    static = Static(codes, 4)
    # 2 states of level 1 (4 reserved), 2 of level 2; 4 edges and 4 of padding, 8 bytes each
    assert static.nbytes == 4 + 16 + 16 * 4 + (1 + 4 + 2 + 1) * 4 + (4 + 4) * 8


def test_filters_of_the_cases_leave_what_they_say():
    excluding = bench.excluding(ITEMS)
    root = np.zeros(1, dtype=np.int64)
    assert excluding.trie.num_living(0, root, excluding.allowed).tolist() == [ITEMS - bench.EXCLUDED]


def test_select_is_measured_at_every_level():
    times = bench.select_times(ITEMS, bench.unfiltered)
    assert len(times) == 4
    assert all(0 < each < 10_000 for each in times)


def test_quick_leaves_the_10_million_out():
    skipped = {case.name for case in bench.cases(quick=True) if case.skip}
    assert skipped == {case.name for case in bench.cases(quick=False) if "10m" in case.name}
    assert not any(case.skip for case in bench.cases(quick=False))
