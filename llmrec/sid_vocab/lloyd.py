"""k-means by Lloyd's iterations, with exact assignments and without work that cannot change anything.

The result is that of faiss's ``Kmeans`` with the same seed, up to rounding: the same start rows, the same way to fill
an empty cluster. Three things differ.

* Assignments are those of float64 although products are float32's: rows whose two best centroids are closer than
  float32 can err are looked at again. Sums are float64's, too. So the centroids depend neither on the number of threads
  nor on the matrix library, as faiss's do.
* A cluster that nobody joins or leaves keeps its centroid bit by bit, so only the columns of centroids that moved are
  computed. For the others each row remembers a floor: no code but its own can score below it. Where the floor is too
  low to decide, the row is computed in full.
* Sums are carried along: only the rows that changed cluster are added and taken away.
"""

from __future__ import annotations

import numpy as np

from llmrec.sid_vocab.beam_encode import ROUNDOFF, take_lowest

_SCORES = 1 << 19  # in a block: 2 MB, so that they stay in the cache between the steps
_SUM_ROWS = 4096  # rows added at a time, in float64: 12 MB at 384 numbers
_MOST_ROWS = 256  # vectors per code that are clustered: faiss's default
_SPLIT = 1 / 1024  # faiss's: how far apart the halves of a split cluster start


class Lloyd:
    """Clusters of (n, dim) `vectors`, in the making.

    Attributes:
        vectors: (n, dim) float32, those that are clustered: at most 256 per code, faiss's sample of what was given.
        centroids: (size, dim) float32.
    """

    def __init__(self, vectors: np.ndarray, size: int, seed: int, start: np.ndarray | None = None) -> None:
        """Start from `start` (size, dim), or from as many rows of `vectors`, n at least `size`."""
        if len(vectors) > _MOST_ROWS * size:
            vectors = vectors[_permutation(len(vectors), seed)[: _MOST_ROWS * size]]
        self.vectors = np.ascontiguousarray(vectors, np.float32)
        if len(vectors) == size:
            start = self.vectors  # every row its own cluster
        elif start is None:
            start = self.vectors[_permutation(len(vectors), seed + 1)[:size]]
        self.centroids = np.array(start, np.float32)
        self._nearest = _Nearest(self.vectors)
        self._sums = np.zeros(self.centroids.shape, np.float64)
        self._counts = np.zeros(size, np.int64)

    def run(self, iterations: int) -> np.ndarray:
        """The centroids after `iterations`, or after fewer where none moves any more."""
        if len(self.vectors) == len(self.centroids):
            return self.centroids
        for _ in range(iterations):
            before = self._nearest.codes.copy()
            self._count(before, self.codes())
            means = self._means()
            if np.array_equal(means, self.centroids):
                break
            self.centroids = means
        return self.centroids

    def codes(self) -> np.ndarray:
        """(n,) the nearest centroid of each of `vectors`."""
        return self._nearest.to(self.centroids)

    def _count(self, before: np.ndarray, codes: np.ndarray) -> None:
        """Bring sums and counts from the codes `before` (-1: none yet) to `codes`."""
        from scipy.sparse import csr_matrix

        size = len(self._counts)
        changed = np.flatnonzero(before != codes)
        for first in range(0, len(changed), _SUM_ROWS):
            rows = changed[first : first + _SUM_ROWS]
            left = np.flatnonzero(before[rows] >= 0)
            signs = np.concatenate([np.ones(len(rows)), -np.ones(len(left))])
            where = (
                np.concatenate([codes[rows], before[rows[left]]]),
                np.concatenate([np.arange(len(rows)), left]),
            )
            self._sums += csr_matrix((signs, where), shape=(size, len(rows))) @ self.vectors[rows].astype(np.float64)
        self._counts = np.bincount(codes, minlength=size)
        self._sums[self._counts == 0] = 0  # not what rounding left

    def _means(self) -> np.ndarray:
        """(size, dim) float32 centroids; an empty cluster gets half of another one, drawn by size as faiss does."""
        import faiss

        counts = self._counts.astype(np.float64)  # halves of odd numbers too
        means: np.ndarray = (self._sums / np.maximum(counts, 1)[:, None]).astype(np.float32)
        empty = np.flatnonzero(counts == 0)
        if empty.size:
            random = faiss.RandomGenerator(1234)  # type: ignore[attr-defined]
            nudge = np.where(np.arange(means.shape[1]) % 2 == 0, _SPLIT, -_SPLIT).astype(np.float32)
            spare = len(self.vectors) - len(counts)
            for code in empty:
                split = 0
                while random.rand_float() >= (counts[split] - 1) / spare:
                    split = (split + 1) % len(counts)
                means[code] = means[split] * (1 + nudge)
                means[split] *= 1 - nudge
                counts[code] = counts[split] / 2
                counts[split] -= counts[code]
        return means


class _Nearest:
    """The nearest centroid of each row, kept up to date while centroids move.

    A score is half the squared distance without the row's own part, ``|c|^2/2 - x.c``.
    """

    def __init__(self, vectors: np.ndarray) -> None:
        self.vectors = vectors
        self.lengths = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))
        self.codes = np.full(len(vectors), -1, np.int64)
        self.own = np.full(len(vectors), np.inf, np.float32)  # score of a row's own code
        self.floor = np.full(len(vectors), np.inf, np.float32)  # no other code scores below
        self.centroids: np.ndarray | None = None
        self.longest = 0.0
        self._work = np.empty(0, np.float32)

    def to(self, centroids: np.ndarray) -> np.ndarray:
        """(n,) the codes for (size, dim) `centroids`; the lower one on a tie."""
        size = len(centroids)
        exact = centroids.astype(np.float64)
        half_norms = np.square(exact).sum(axis=1) / 2
        self.longest = max(self.longest, float(np.sqrt(2 * half_norms.max())))  # never less: floors are from before
        moved = self._moved(centroids)
        fresh = len(moved) == size
        place = np.full(size, -1)
        place[moved] = np.arange(len(moved))
        book, offsets = centroids[moved], half_norms[moved].astype(np.float32)
        step = max(1, _SCORES // max(1, len(moved)))
        if self._work.size < step * len(moved):  # kept: fresh pages for every block take half as long as a product
            self._work = np.empty(max(_SCORES, size), np.float32)
        for first in range(0, len(self.vectors) if moved.size else 0, step):
            rows = slice(first, first + step)
            block, codes = self.vectors[rows], self.codes[rows]
            products = self._work[: len(block) * len(moved)].reshape(len(block), len(moved))
            best, lowest, others = _two_best(offsets, np.matmul(block, book.T, out=products))
            best = moved[best]
            if not fresh:
                own = np.where(place[codes] < 0, self.own[rows], np.float32(np.inf))  # computed anew where it moved
                others = np.minimum(np.minimum(others, self.floor[rows]), np.maximum(own, lowest))
                best = np.where(own < lowest, codes, best)
                lowest = np.minimum(own, lowest)
            unsure = np.flatnonzero(~(others - lowest > self._slack(rows)))
            if unsure.size:
                full = _two_best(half_norms, block[unsure].astype(np.float64) @ exact.T)
                best[unsure], lowest[unsure], others[unsure] = full
            self.codes[rows], self.own[rows], self.floor[rows] = best, lowest, others
        self.centroids = centroids.copy()
        return self.codes

    def _moved(self, centroids: np.ndarray) -> np.ndarray:
        """Codes to compute: those that moved, or all where that is hardly more and renews the floors."""
        if self.centroids is not None:
            moved = np.flatnonzero((centroids != self.centroids).any(axis=1))
            if 4 * len(moved) <= 3 * len(centroids):
                return moved
        return np.arange(len(centroids))

    def _slack(self, rows: slice) -> np.ndarray:
        """(b,) how far two float32 scores can be off together (`beam_encode` counts alike)."""
        lengths = self.lengths[rows]
        products = (self.vectors.shape[1] + 2) * lengths * self.longest
        sums = 4 * (lengths + self.longest) * self.longest
        slack: np.ndarray = 2 * ROUNDOFF * (products + sums)
        return slack


def _two_best(offsets: np.ndarray, products: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(b,) columns of the lowest of ``offsets - products``, the lowest, and the lowest of the other columns."""
    scores = np.subtract(offsets, products, out=products)
    best, lowest = take_lowest(scores)
    return best, lowest, take_lowest(scores)[1]


def _permutation(count: int, seed: int) -> np.ndarray:
    """(count,) faiss's random order."""
    import faiss

    order = np.empty(count, np.int32)
    faiss.rand_perm(faiss.swig_ptr(order), count, seed)  # type: ignore[attr-defined]
    return order
