"""Room for items in codes: a cap per code, and different last codes for items that share all codes before.

`settle` starts from everybody's best code. Where too many want one, those nearest to its centroid stay and the others
ask for the best code that still has room, until all are placed. `BalancedCodebooks` encodes a catalogue that way; a
single new item takes its best code, whatever the load.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from llmrec.sid_vocab.rq_kmeans import ResidualCodebooks, nearest, require_width


@dataclass(frozen=True, eq=False)
class BalancedCodebooks(ResidualCodebooks):
    """Residual codebooks whose codes may cost a price and hold a limited number of items."""

    prices: tuple[np.ndarray, ...] = ()
    """Per level (codebook_size,) float64, added to half the squared distance; empty where codes cost nothing."""
    max_load: float | None = None
    """Cap of `encode_jointly` on the items of a code, as a multiple of the mean load; None for no cap."""
    distinct: bool = True
    """`encode_jointly` gives items with one prefix different last codes, as long as there are enough."""

    def encode(self, vectors: np.ndarray) -> np.ndarray:
        """(n, dim) vectors to (n, num_levels) int32 codes, each row for itself: by distance and price, without caps.

        Raises:
            DataError: vectors with NaN, infinity or of zero length.
            InputError: vectors of another width than the codebooks'.
        """
        return self._encode(vectors, jointly=False)

    def encode_jointly(self, vectors: np.ndarray) -> np.ndarray:
        """(n, dim) vectors of a whole catalogue to (n, num_levels) int32 codes that keep the caps; raises as `encode`.

        Equal vectors are told apart by their row order.
        """
        return self._encode(vectors, jointly=True)

    def state(self) -> dict[str, np.ndarray]:
        """Codebooks and prices by name; the cap and `distinct` are in the config."""
        return super().state() | {f"prices_{level}": prices for level, prices in enumerate(self.prices)}

    def _encode(self, vectors: np.ndarray, jointly: bool) -> np.ndarray:
        require_width(vectors, self.codebooks[0].shape[1])
        codes = np.empty((len(vectors), len(self.codebooks)), np.int32)
        residual = vectors.astype(np.float64)
        prefixes = np.zeros(len(vectors), np.int64)
        last = len(self.codebooks) - 1
        for level, book in enumerate(self.codebooks):
            prices = self.prices[level] if self.prices else None
            found = nearest(residual, book, prices)
            if jointly:
                groups = prefixes if self.distinct and level == last else None
                found = settle(residual, book, found, cap_of(self.max_load, len(vectors), len(book)), groups, prices)
                prefixes = np.unique(prefixes * len(book) + found, return_inverse=True)[1]
            codes[:, level] = found
            residual -= book[found]
        return codes


def cap_of(max_load: float | None, num_items: int, size: int) -> int:
    """Items that a code may hold; never so few that not all find a place."""
    return num_items if max_load is None else max(1, math.ceil(max_load * num_items / size))


def settle(
    residual: np.ndarray,
    book: np.ndarray,
    codes: np.ndarray,
    cap: int,
    groups: np.ndarray | None = None,
    prices: np.ndarray | None = None,
) -> np.ndarray:
    """(n,) codes of which none holds more than `cap` rows.

    Args:
        residual: (n, dim) float64.
        book: (size, dim) centroids; ``cap * size`` is at least n.
        codes: (n,) the code that each row wants most.
        cap: rows per code.
        groups: (n,) numbers from 0; rows of one group share a code only where the group has more rows than there are
            codes, or where the cap leaves nothing else. None: no such rule.
        prices: (size,) added to half the squared distance.
    """
    size, num_rows = len(book), len(residual)
    # without groups, all rows are one that may fill any code
    rooms = np.array([num_rows]) if groups is None else -(-np.bincount(groups) // size)
    groups = np.zeros(num_rows, np.int64) if groups is None else groups
    own = np.square(residual - book[codes]).sum(axis=1)

    # 1. who stays: first within the group, then within the code, those nearest to the centroid
    stays = np.zeros(num_rows, bool)
    fit = np.flatnonzero(_rank(groups * size + codes, own) < rooms[groups])
    stays[fit[_rank(codes[fit], own[fit]) < cap]] = True
    waiting = np.flatnonzero(~stays)
    settled = codes.copy()

    # 2. room that is left per code, and per code in the groups of those who wait
    room = cap - np.bincount(codes[stays], minlength=size)
    names, local = np.unique(groups[waiting], return_inverse=True)
    left = np.repeat(rooms[names][:, None], size, axis=1)
    place = np.searchsorted(names, groups)
    same = stays & (names[np.minimum(place, len(names) - 1)] == groups) if len(names) else np.zeros(num_rows, bool)
    np.subtract.at(left, (place[same], codes[same]), 1)

    # 3. rounds: all who wait ask for their best open code, the nearest get it
    costs = _half_distances(residual[waiting], book, prices)
    while waiting.size:
        still_open = np.where((left[local] > 0) & (room > 0), costs, np.inf)
        best = still_open.argmin(axis=1)
        cost = still_open[np.arange(len(best)), best]
        if (hopeless := np.isinf(cost)).any():
            left[local[hopeless]] = num_rows  # the cap comes first: this group shares from here on
            continue
        fit = np.flatnonzero(_rank(local * size + best, cost) < left[local, best])
        won = fit[_rank(best[fit], cost[fit]) < room[best[fit]]]
        settled[waiting[won]] = best[won]
        np.subtract.at(left, (local[won], best[won]), 1)
        np.subtract.at(room, best[won], 1)
        lost = np.ones(len(waiting), bool)
        lost[won] = False
        waiting, local, costs = waiting[lost], local[lost], costs[lost]
    return settled


def cluster_means(vectors: np.ndarray, codes: np.ndarray, book: np.ndarray) -> np.ndarray:
    """(size, dim) float32 means of the rows of each code; a code without rows keeps its row of `book`."""
    from scipy.sparse import csr_matrix

    counts = np.bincount(codes, minlength=len(book))
    members = csr_matrix((np.ones(len(codes)), (codes, np.arange(len(codes)))), shape=(len(book), len(codes)))
    means: np.ndarray = np.where(counts[:, None] > 0, (members @ vectors) / np.maximum(counts, 1)[:, None], book)
    return means.astype(np.float32)


def _half_distances(vectors: np.ndarray, book: np.ndarray, prices: np.ndarray | None) -> np.ndarray:
    """(n, size) float32 half squared distances plus prices."""
    centroids = book.astype(np.float64)
    offsets = 0.5 * np.square(centroids).sum(axis=1) + (0.0 if prices is None else prices)
    distances: np.ndarray = offsets - vectors @ centroids.T + 0.5 * np.square(vectors).sum(axis=1, keepdims=True)
    single: np.ndarray = distances.astype(np.float32)
    return single


def _rank(keys: np.ndarray, cost: np.ndarray) -> np.ndarray:
    """(n,) place of each row among those with its key by ascending cost, from 0; ties in row order."""
    order = np.lexsort((cost, keys))
    first = np.ones(len(keys), bool)
    first[1:] = np.diff(keys[order]) != 0
    positions = np.arange(len(keys))
    ranks = np.empty(len(keys), np.int64)
    ranks[order] = positions - np.maximum.accumulate(np.where(first, positions, 0))
    return ranks
