"""RQ-KMeans: k-means on the vectors, then on what is left of them, level by level.

The quantiser of OneRec (Deng et al. 2025) and of MiniOneRec's "rqkmeans"; simpler than TIGER's RQ-VAE and without its
codebook collapse. Departures: clusters are not balanced by force, and vectors are encoded in float64 by a plain
nearest-centroid search, so that an item gets the same codes alone, in a batch and on any number of threads.

Clustering is faiss's k-means on one thread: 12,000 x 384 vectors into 3 x 256 codes take about ten CPU seconds.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, model_validator

from llmrec.config import Config
from llmrec.errors import InputError
from llmrec.sid_vocab.vectors import require_vectors

_ENCODE_ROWS = 8192  # rows per distance matrix: 16 MB at 256 codes
_NOTHING_LEFT = 1e-9  # residual energy, relative to the vectors', below which a level would cluster rounding errors

Size = Annotated[int, Field(ge=2, le=65536)]


class RQKMeansConfig(Config):
    """Settings of `RQKMeans`."""

    name: Literal["rq-kmeans"] = "rq-kmeans"
    """Which quantiser this is."""
    num_levels: int = Field(default=3, ge=1, le=25)
    """Quantised levels; a suffix level against collisions comes on top."""
    codebook_size: Size | list[Size] = 256
    """Codes per level, one number or one per level. Fewer codes: more collisions, but each token is seen more often."""
    iterations: int = Field(default=25, ge=1)
    """k-means iterations per level."""
    seed: int = Field(default=0, ge=0)
    """Seed of the initial centroids (and of the sample of 256 vectors per code that faiss clusters)."""

    @model_validator(mode="after")
    def _one_size_per_level(self) -> RQKMeansConfig:
        if isinstance(self.codebook_size, list) and len(self.codebook_size) != self.num_levels:
            raise ValueError(f"codebook_size lists {len(self.codebook_size)} sizes for num_levels {self.num_levels}")
        return self

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Codes of each level."""
        if isinstance(self.codebook_size, list):
            return tuple(self.codebook_size)
        return (self.codebook_size,) * self.num_levels


@dataclass(frozen=True, eq=False)
class ResidualCodebooks:
    """A fitted residual quantiser: level i holds the centroids of what levels 0..i-1 left over."""

    codebooks: tuple[np.ndarray, ...]
    """Per level (codebook_size, dim) float32."""

    def encode(self, vectors: np.ndarray) -> np.ndarray:
        """(n, dim) vectors to (n, num_levels) int32 codes: greedily the nearest centroid, the lower code on a tie.

        Raises:
            DataError: vectors with NaN, infinity or of zero length.
            InputError: vectors of another width than the codebooks'.
        """
        require_vectors(vectors)
        dim = self.codebooks[0].shape[1]
        if vectors.shape[1] != dim:
            raise InputError(
                f"The codebooks were fitted to vectors of {dim} numbers, these have {vectors.shape[1]}.",
                hint="embed with the same encoder and behaviour settings as at the fit",
            )
        codes = np.empty((len(vectors), len(self.codebooks)), np.int32)
        residual = vectors.astype(np.float64)
        for level, book in enumerate(self.codebooks):
            codes[:, level] = _nearest(residual, book)
            residual -= book[codes[:, level]]
        return codes

    def reconstruct(self, codes: np.ndarray) -> np.ndarray:
        """(n, k) codes of the first k levels to (n, dim) float32: the sum of their centroids."""
        books = self.codebooks[: codes.shape[1]]
        total = np.zeros((len(codes), books[0].shape[1]), np.float64)
        for level, book in enumerate(books):
            total += book[codes[:, level]]
        return total.astype(np.float32)


class RQKMeans:
    """Residual k-means (faiss).

    Example:
        >>> fitted = RQKMeans(RQKMeansConfig(num_levels=2, codebook_size=4)).fit(np.random.rand(50, 8))
        >>> fitted.encode(np.random.rand(3, 8)).shape
        (3, 2)
    """

    def __init__(self, config: RQKMeansConfig) -> None:
        self.config = config

    def fit(self, vectors: np.ndarray) -> ResidualCodebooks:
        """Cluster (n, dim) vectors, n at least the largest codebook size.

        Raises:
            DataError: NaN, infinity, zero rows or a wrong shape.
            InputError: fewer different vectors than codes, or nothing left to cluster at a later level.
        """
        import faiss

        require_vectors(vectors)
        self._require_enough(vectors)
        residual = vectors.astype(np.float64)
        energy = float(np.square(residual).mean())
        books: list[np.ndarray] = []
        for level, size in enumerate(self.config.codebook_sizes):
            if float(np.square(residual).mean()) <= _NOTHING_LEFT * energy:
                raise InputError(
                    f"After {level} levels of {self.config.codebook_sizes[:level]} codes nothing is left to quantise.",
                    hint=f"set num_levels to {level}, or lower codebook_size",
                )
            # min_points_per_centroid only decides whether faiss prints a warning
            kmeans = faiss.Kmeans(
                residual.shape[1],
                size,
                niter=self.config.iterations,
                seed=self.config.seed + level,
                min_points_per_centroid=1,
            )
            with _one_thread():
                kmeans.train(residual.astype(np.float32))
            books.append(np.array(kmeans.centroids, np.float32).reshape(size, -1))
            residual -= books[-1][_nearest(residual, books[-1])]
        return ResidualCodebooks(tuple(books))

    def _require_enough(self, vectors: np.ndarray) -> None:
        largest = max(self.config.codebook_sizes)
        different = len({row.tobytes() for row in np.ascontiguousarray(vectors)})
        if different == 1 and len(vectors) > 1:
            raise InputError(
                f"All {len(vectors)} vectors are the same.", hint="check the text fields or the file they come from"
            )
        if different < largest:
            raise InputError(
                f"{len(vectors)} items ({different} different vectors) cannot fill a codebook of {largest} codes.",
                hint=f"set codebook_size to at most {max(2, different // 4)}",
            )


def _nearest(vectors: np.ndarray, book: np.ndarray) -> np.ndarray:
    """(n,) index of the nearest row of `book` (m, dim) for each of (n, dim) float64 `vectors`; lower index on a tie."""
    centroids = book.astype(np.float64)
    half_norms = 0.5 * np.square(centroids).sum(axis=1)
    nearest = np.empty(len(vectors), np.int64)
    for start in range(0, len(vectors), _ENCODE_ROWS):
        rows = slice(start, start + _ENCODE_ROWS)
        # |x - c|^2 / 2 without |x|^2, which is the same for every c
        nearest[rows] = (half_norms - vectors[rows] @ centroids.T).argmin(axis=1)
    return nearest


@contextmanager
def _one_thread() -> Iterator[None]:
    """Sums in one order: the codebooks do not depend on how many threads the machine has."""
    import faiss

    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)
