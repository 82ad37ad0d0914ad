"""RQ-KMeans: k-means on the vectors, then on what is left of them, level by level.

The quantiser of OneRec (Deng et al. 2025) and of MiniOneRec's "rqkmeans"; simpler than TIGER's RQ-VAE and without its
codebook collapse. Departure: clusters are not balanced by force (`balanced.py` and `sinkhorn.py` do that).

Clustering is `lloyd.py`, encoding `beam_encode.py`; both decide as float64 would, so that an item gets the same codes
alone, in a batch and on any number of threads. What they cost: ``llmrec bench sid``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from llmrec.config import Config
from llmrec.errors import InputError
from llmrec.sid_vocab.beam_encode import encode_greedy
from llmrec.sid_vocab.lloyd import Lloyd
from llmrec.sid_vocab.vectors import require_vectors

_ENCODE_ROWS = 8192  # rows per distance matrix: 16 MB at 256 codes
_NOTHING_LEFT = 1e-9  # residual energy, relative to the vectors', below which a level would cluster rounding errors

Size = Annotated[int, Field(ge=2, le=65536)]


class LevelsConfig(Config):
    """What the quantisers with one clustering per level have in common."""

    num_levels: int = Field(default=3, ge=1, le=25)
    """Quantised levels; a suffix level against collisions comes on top."""
    codebook_size: Size | list[Size] = 256
    """Codes per level, one number or one per level. Fewer codes: more collisions, but each token is seen more often."""
    iterations: int = Field(default=25, ge=1)
    """k-means iterations per level."""
    seed: int = Field(default=0, ge=0)
    """Seed of the initial centroids (and of the sample of 256 vectors per code that is clustered)."""

    @model_validator(mode="after")
    def _one_size_per_level(self) -> Self:
        if isinstance(self.codebook_size, list) and len(self.codebook_size) != self.num_levels:
            raise ValueError(f"codebook_size lists {len(self.codebook_size)} sizes for num_levels {self.num_levels}")
        return self

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Codes of each level."""
        if isinstance(self.codebook_size, list):
            return tuple(self.codebook_size)
        return (self.codebook_size,) * self.num_levels


class RQKMeansConfig(LevelsConfig):
    """Settings of `RQKMeans`."""

    name: Literal["rq-kmeans"] = "rq-kmeans"
    """Which quantiser this is."""


@dataclass(frozen=True, eq=False)
class ResidualCodebooks:
    """A fitted residual quantiser: level i holds the centroids of what levels 0..i-1 left over.

    Product codes are a case of it: codewords that lie in subspaces at right angles leave each other's residual alone
    (`product.py`). The codebooks are then all that encoding needs.
    """

    codebooks: tuple[np.ndarray, ...]
    """Per level (codebook_size, dim) float32."""

    def encode(self, vectors: np.ndarray) -> np.ndarray:
        """(n, dim) vectors to (n, num_levels) int32 codes: greedily the nearest centroid, the lower code on a tie.

        Raises:
            DataError: vectors with NaN, infinity or of zero length.
            InputError: vectors of another width than the codebooks'.
        """
        return encode_greedy(vectors, self.codebooks)

    def encode_jointly(self, vectors: np.ndarray) -> np.ndarray:
        """The same as `encode`: no row minds the others."""
        return self.encode(vectors)

    def reconstruct(self, codes: np.ndarray) -> np.ndarray:
        """(n, k) codes of the first k levels to (n, dim) float32: the sum of their centroids."""
        books = self.codebooks[: codes.shape[1]]
        total = np.zeros((len(codes), books[0].shape[1]), np.float64)
        for level, book in enumerate(books):
            total += book[codes[:, level]]
        return total.astype(np.float32)

    def state(self) -> dict[str, np.ndarray]:
        """The codebooks by name, ``codebook_0`` and so on."""
        return {f"codebook_{level}": book for level, book in enumerate(self.codebooks)}


class RQKMeans:
    """Residual k-means.

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
        config = self.config
        require_enough(vectors, config.codebook_sizes)
        return ResidualCodebooks(residual_levels(vectors, config.codebook_sizes, config.iterations, config.seed))

    def restore(self, state: Mapping[str, np.ndarray]) -> ResidualCodebooks:
        """The fitted quantiser whose `state` this is."""
        return ResidualCodebooks(numbered(state, "codebook", self.config.num_levels))


def greedy_codes(vectors: np.ndarray, books: Sequence[np.ndarray]) -> np.ndarray:
    """`encode_greedy` of (n, dim) vectors that a network made or that are left of others: they may be zero."""
    return encode_greedy(vectors, books, zeros=True)


def residual_levels(vectors: np.ndarray, sizes: Sequence[int], iterations: int, seed: int) -> tuple[np.ndarray, ...]:
    """Per level (size, dim) float32 centroids of what the levels before left of (n, dim) `vectors`.

    Raises:
        InputError: nothing is left to cluster at a later level.
    """
    residual = vectors[training_rows(len(vectors), max(sizes), seed)].astype(np.float64)
    energy = mean_energy(residual)
    books: list[np.ndarray] = []
    for level, size in enumerate(sizes):
        require_rest(residual, energy, sizes[:level])
        books.append(kmeans(residual, size, iterations, seed + level))
        if level + 1 < len(sizes):
            residual -= books[-1][greedy_codes(residual, books[-1:])[:, 0]]
    return tuple(books)


def kmeans(vectors: np.ndarray, size: int, iterations: int, seed: int, start: np.ndarray | None = None) -> np.ndarray:
    """(size, dim) float32 centroids of (n, dim) `vectors`, from those of `start` if given."""
    return Lloyd(vectors, size, seed, start).run(iterations)


def training_rows(num_items: int, size: int, seed: int) -> np.ndarray:
    """Ascending rows of a sample of at most 256 per code, as faiss takes."""
    if num_items <= 256 * size:
        return np.arange(num_items)
    return np.sort(np.random.default_rng(seed).choice(num_items, 256 * size, replace=False))


def nearest(vectors: np.ndarray, book: np.ndarray, prices: np.ndarray | None = None) -> np.ndarray:
    """(n,) index of the nearest row of `book` (m, dim) for each of (n, dim) float64 `vectors`; lower index on a tie.

    With `prices` (m,), half the squared distance *plus* the code's price is what has to be small.
    """
    centroids = book.astype(np.float64)
    offsets = 0.5 * np.square(centroids).sum(axis=1)
    if prices is not None:
        offsets = offsets + prices
    found = np.empty(len(vectors), np.int64)
    for start in range(0, len(vectors), _ENCODE_ROWS):
        rows = slice(start, start + _ENCODE_ROWS)
        # |x - c|^2 / 2 without |x|^2, which is the same for every c
        found[rows] = (offsets - vectors[rows] @ centroids.T).argmin(axis=1)
    return found


def mean_energy(vectors: np.ndarray) -> float:
    """Mean square of all numbers."""
    return float(np.square(vectors).mean())


def require_rest(residual: np.ndarray, energy: float, done: Sequence[int]) -> None:
    """Raise InputError where the levels of sizes `done` left nothing of vectors of mean square `energy`."""
    if mean_energy(residual) <= _NOTHING_LEFT * energy:
        raise InputError(
            f"After {len(done)} levels of {tuple(done)} codes nothing is left to quantise.",
            hint=f"set num_levels to {len(done)}, or lower codebook_size",
        )


def require_enough(vectors: np.ndarray, sizes: Sequence[int]) -> None:
    """Raise unless (n, dim) `vectors` are usable and at least as many different ones as the largest of `sizes`."""
    require_vectors(vectors)
    seen: set[bytes] = set()
    for row in vectors:
        seen.add(row.tobytes())
        if len(seen) >= max(2, *sizes):
            return
    different = len(seen)
    if different == 1 and len(vectors) > 1:
        raise InputError(
            f"All {len(vectors)} vectors are the same.", hint="check the text fields or the file they come from"
        )
    raise InputError(
        f"{len(vectors)} items ({different} different vectors) cannot fill a codebook of {max(sizes)} codes.",
        hint=f"set codebook_size to at most {max(2, different // 4)}",
    )


def require_width(vectors: np.ndarray, dim: int) -> None:
    """Raise unless `vectors` are usable and (n, dim)."""
    require_vectors(vectors)
    if vectors.shape[1] != dim:
        raise InputError(
            f"The codebooks were fitted to vectors of {dim} numbers, these have {vectors.shape[1]}.",
            hint="embed with the same encoder and behaviour settings as at the fit",
        )


def numbered(state: Mapping[str, np.ndarray], name: str, count: int) -> tuple[np.ndarray, ...]:
    """The arrays ``name_0`` to ``name_{count-1}``. Raises InputError where one is missing."""
    wanted = [f"{name}_{number}" for number in range(count)]
    if missing := [key for key in wanted if key not in state]:
        raise InputError(
            f"The saved quantiser lacks {', '.join(missing)}.", hint="copy the folder again as a whole, or fit anew"
        )
    return tuple(state[key] for key in wanted)
