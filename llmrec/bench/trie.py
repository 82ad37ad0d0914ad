"""Benchmark ``trie``: what `SIDTrie` costs to build, to hold, to select from and to switch, beside three other ways.

Random SIDs of 3 x 256 codes and a suffix that tells equal ones apart: uniform codes share the fewest prefixes, so that
this is the most memory that so many items can take. "Select" is what a search does at a level apart from the model:
from 50 prefixes and the scores of all codes to the best 50 legal continuations. Its figure is the level that takes
longest, over prefixes that change with every call, so that caches hold no more of the tree than in a search.

Times are CPU time of one thread, which a busy neighbour moves less than wall time; the collector of cyclic garbage
rests meanwhile, which favours the peers of millions of Python objects.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from functools import cache

import numpy as np

from llmrec.bench.runner import Case
from llmrec.bench.trie_peers import DictTrie, Ours, PrefixHash, Static, Way
from llmrec.decode import SIDTrie
from llmrec.decode.trie_filter import RowFilter

CODEBOOK_SIZE = 256
NUM_LEVELS = 4
"""Three levels and the suffix."""
NUM_BEAMS = 50
CALLS = 20
"""Selections of a level in one measurement."""
SWITCHED = 50_000
EXCLUDED = 200
ALLOWED = 100_000

_10K, _1M, _10M = 10_000, 1_000_000, 10_000_000


def cases(quick: bool) -> list[Case]:
    """Costs at 10 thousand and 1 million items, and without `quick` at 10 million."""
    skip = "--quick leaves 10 million items out" if quick else ""
    return [
        Case("build 1m, dict", "s CPU", _build(_1M), _seconds(lambda: DictTrie(random_codes(_1M)))),
        Case("build 1m, static", "s CPU", _build(_1M), _static_build(_1M)),
        Case("build 10m, static", "s CPU", _build(_10M), _static_build(_10M), skip),
        Case("bytes an item, dict", "bytes", lambda: ours(_1M).nbytes / _1M, lambda: dict_trie(_1M).nbytes / _1M),
        Case("bytes an item, hash", "bytes", lambda: ours(_1M).nbytes / _1M, lambda: prefix_hash(_1M).nbytes / _1M),
        Case("bytes an item, static", "bytes", lambda: ours(_1M).nbytes / _1M, lambda: static(_1M).nbytes / _1M),
        Case("bytes of a further level, static", "bytes", _further_ours, _further_static),
        Case("select 10k, dict", "ms CPU", _slowest(_10K), _slowest(_10K, dict_trie)),
        Case("select 1m, dict", "ms CPU", _slowest(_1M), _slowest(_1M, dict_trie)),
        Case("select 1m, hash", "ms CPU", _slowest(_1M), _slowest(_1M, prefix_hash)),
        Case("select 1m, static", "ms CPU", _slowest(_1M), _slowest(_1M, static)),
        Case("select 10m, static", "ms CPU", _slowest(_10M), _slowest(_10M, static), skip),
        Case("select 1m, 200 excluded", "ms CPU", _slowest(_1M, excluding), _slowest(_1M)),
        Case("select 10m, 200 excluded", "ms CPU", _slowest(_10M, excluding), _slowest(_10M), skip),
        Case("select 1m, 100k allowed, 200 excluded", "ms CPU", _slowest(_1M, allowing), _slowest(_1M)),
        Case("flat 10k to 1m", "ms CPU", _whole(_1M), _whole(_10K)),
        Case("flat 10k to 10m", "ms CPU", _whole(_10M), _whole(_10K), skip),
        Case("flat 10k to 10m, 200 excluded", "ms CPU", _whole(_10M, excluding), _whole(_10K, excluding), skip),
        Case("switch 50k of 1m", "ms CPU", _switch, _static_switch),
    ]


@cache
def random_codes(num_items: int, num_levels: int = NUM_LEVELS) -> np.ndarray:
    """(n, num_levels) distinct SIDs in random order: uniform codes, and last the place among equal ones."""
    rng = np.random.default_rng(0)
    codes = np.zeros((num_items, num_levels), dtype=np.int32)
    for level in range(num_levels - 1):
        codes[:, level] = rng.integers(0, CODEBOOK_SIZE, num_items)
    # A bucket is a leaf of the tree without suffix; its rows follow each other in `items`.
    bare = SIDTrie.build(codes[:, :-1], (CODEBOOK_SIZE,) * (num_levels - 1))
    place = np.arange(num_items) - np.repeat(bare.item_start[:-1], np.diff(bare.item_start))
    codes[bare.items, -1] = place
    return codes


@cache
def ours(num_items: int, num_levels: int = NUM_LEVELS) -> SIDTrie:
    """Our trie, built once."""
    return SIDTrie.build(random_codes(num_items, num_levels), (CODEBOOK_SIZE,) * num_levels)


@cache
def dict_trie(num_items: int) -> DictTrie:
    """The dict of dicts, built once."""
    return DictTrie(random_codes(num_items))


@cache
def prefix_hash(num_items: int) -> PrefixHash:
    """The hash of prefixes, built once."""
    return PrefixHash(random_codes(num_items))


@cache
def static(num_items: int, num_levels: int = NUM_LEVELS) -> Static:
    """STATIC's arrays, built once."""
    return Static(_sorted_codes(num_items, num_levels), CODEBOOK_SIZE)


@cache
def excluding(num_items: int) -> Ours:
    """Our trie for a request that excludes 200 items, half of them below the first 50 prefixes of `beams`."""
    trie = ours(num_items)
    return Ours(trie, _exclusion(trie, None))


@cache
def allowing(num_items: int) -> Ours:
    """Our trie for a request that allows 100,000 items and excludes 200 of them."""
    trie = ours(num_items)
    allowed = trie.allowance(np.random.default_rng(2).choice(num_items, ALLOWED, replace=False))
    return Ours(trie, _exclusion(trie, allowed))


def _exclusion(trie: SIDTrie, within: RowFilter | None) -> RowFilter:
    rng = np.random.default_rng(1)
    few = np.flatnonzero(trie.alive if within is None else trie.alive & within.keeps(np.arange(trie.num_items)))
    return trie.exclusion(rng.choice(few, EXCLUDED, replace=False), within)


@cache
def beams(num_items: int, level: int, way: Callable[[int], Way]) -> list[object]:
    """For each call of a level the state of 50 random legal prefixes, distinct where there are as many."""
    codes, rng = random_codes(num_items), np.random.default_rng(level)
    states = []
    for _ in range(CALLS):
        prefixes = np.unique(codes[rng.integers(0, num_items, 4 * NUM_BEAMS), :level], axis=0)
        states.append(way(num_items).state(rng.permutation(prefixes)[:NUM_BEAMS]))
    return states


def select_times(num_items: int, way: Callable[[int], Way]) -> list[float]:
    """Milliseconds of one selection at each level."""
    chosen, rng = way(num_items), np.random.default_rng(0)
    times = []
    for level in range(NUM_LEVELS):
        states = beams(num_items, level, way)
        width = 1 if level == 0 else NUM_BEAMS
        table, scores = rng.normal(size=(width, CODEBOOK_SIZE)), rng.normal(size=width)
        with _Quiet() as clock:
            for state in states:
                chosen.select(level, state, table, scores, NUM_BEAMS)
        times.append(1000 * clock.seconds / CALLS)
    return times


class _Quiet:
    """CPU time of a block in which the collector of cyclic garbage rests."""

    seconds = 0.0

    def __enter__(self) -> _Quiet:
        gc.disable()
        self._start = time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.process_time() - self._start
        gc.enable()


def unfiltered(num_items: int) -> Ours:
    """Our trie for a request without a filter."""
    return Ours(ours(num_items))


def _slowest(num_items: int, way: Callable[[int], Way] = unfiltered) -> Callable[[], float]:
    return lambda: max(select_times(num_items, way))


def _whole(num_items: int, way: Callable[[int], Way] = unfiltered) -> Callable[[], float]:
    return lambda: sum(select_times(num_items, way))


def _seconds(work: Callable[[], object]) -> Callable[[], float]:
    def run() -> float:
        with _Quiet() as clock:
            kept = work()
        del kept  # to free millions of dicts takes time of its own
        return clock.seconds

    return run


def _build(num_items: int) -> Callable[[], float]:
    def run() -> float:
        codes = random_codes(num_items)
        return _seconds(lambda: SIDTrie.build(codes, (CODEBOOK_SIZE,) * NUM_LEVELS))()

    return run


def _static_build(num_items: int) -> Callable[[], float]:
    def run() -> float:
        codes = _sorted_codes(num_items)
        return _seconds(lambda: Static(codes, CODEBOOK_SIZE))()

    return run


@cache
def _sorted_codes(num_items: int, num_levels: int = NUM_LEVELS) -> np.ndarray:
    codes: np.ndarray = random_codes(num_items, num_levels)[ours(num_items, num_levels).items]
    return codes


def _further_ours() -> float:
    return (ours(_1M, NUM_LEVELS + 1).nbytes - ours(_1M).nbytes) / _1M


def _further_static() -> float:
    return (static(_1M, NUM_LEVELS + 1).nbytes - static(_1M).nbytes) / _1M


@cache
def _switched_rows() -> np.ndarray:
    return np.random.default_rng(3).choice(_1M, SWITCHED, replace=False)


def _switch() -> float:
    trie, rows = ours(_1M), _switched_rows()
    return 1000 * _seconds(lambda: trie.with_switched(rows, alive=False))()


def _static_switch() -> float:
    """Its arrays hold no counts: what is switched off is left out of a new build."""
    kept = np.ones(_1M, dtype=bool)
    kept[_switched_rows()] = False
    codes = _sorted_codes(_1M)[kept[ours(_1M).items]]
    return 1000 * _seconds(lambda: Static(codes, CODEBOOK_SIZE))()
