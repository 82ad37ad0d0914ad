"""Product quantisation: each level codes its own part of the vector (Jégou et al. 2011), optionally after a rotation.

RPG (Hou et al. 2025, section 3.1) uses optimised product quantisation (Ge et al. 2013) for long SIDs whose tokens are
predicted side by side: levels are equals, none refines another. Hence no level is "coarse", prefixes say less than a
residual quantiser's, and short codes tell fewer items apart: 4 x 256 of them leave 30 % of 3,168 video games with the
codes of another one, 3 x 256 of RQ-KMeans 18 %. Take it for many levels.

``pq`` cuts the vector as it is into `num_levels` pieces; ``opq`` first turns it, so that the pieces are independent
and equally rich: principal axes dealt to the levels by variance (Ge et al., section 3.3), then clusters and rotation
in turn (section 3.2). Departures from RPG: a code of any size, not 256 alone, and pieces of unequal width where
`num_levels` does not divide the width; so k-means is that of all quantisers here and the rotation is our own, not
``faiss.OPQMatrix``.

The codewords are stored where they lie in the input space, the rest of the mean vector in those of the first level.
Pieces are at right angles, so that a residual encoder codes each as if alone: `ResidualCodebooks` does all the rest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from pydantic import Field

from llmrec.errors import InputError
from llmrec.sid_vocab.rq_kmeans import LevelsConfig, ResidualCodebooks, kmeans, nearest, numbered, require_enough


class ProductConfig(LevelsConfig):
    """Settings of `ProductQuantizer`."""

    name: Literal["pq", "opq"] = "opq"
    """``opq`` turns the vectors first, ``pq`` cuts them as they are."""
    num_levels: int = Field(default=4, ge=1, le=25)
    """Pieces, and tokens of a SID; a suffix level against collisions comes on top. RPG takes 16 to 64."""
    rotations: int = Field(default=10, ge=0)
    """Times that ``opq`` clusters and turns, in turn; 0 leaves the dealt principal axes. ``pq`` does not use it."""


class ProductQuantizer:
    """PQ and OPQ.

    Example:
        >>> fitted = ProductQuantizer(ProductConfig(num_levels=2, codebook_size=4)).fit(np.random.rand(50, 8))
        >>> fitted.encode(np.random.rand(3, 8)).shape
        (3, 2)
    """

    def __init__(self, config: ProductConfig) -> None:
        self.config = config

    def fit(self, vectors: np.ndarray) -> ResidualCodebooks:
        """Cluster the pieces of (n, dim) vectors, n at least the largest codebook size.

        Raises:
            DataError: NaN, infinity, zero rows or a wrong shape.
            InputError: fewer different vectors than codes, fewer numbers than pieces, or a piece that is constant.
        """
        config = self.config
        require_enough(vectors, config.codebook_sizes)
        rotations = config.rotations if config.name == "opq" else None
        return ResidualCodebooks(
            product_levels(vectors, config.codebook_sizes, config.iterations, config.seed, rotations)
        )

    def restore(self, state: Mapping[str, np.ndarray]) -> ResidualCodebooks:
        """The fitted quantiser whose `state` this is."""
        return ResidualCodebooks(numbered(state, "codebook", self.config.num_levels))


def product_levels(
    vectors: np.ndarray, sizes: Sequence[int], iterations: int, seed: int, rotations: int | None
) -> tuple[np.ndarray, ...]:
    """Per piece (size, dim) float32 codewords in the space of (n, dim) `vectors`; their sum rebuilds a vector.

    Args:
        vectors: what to code.
        sizes: codes per piece.
        iterations: of k-means per piece.
        seed: of k-means.
        rotations: rounds of clustering and turning; None does not turn at all.

    Raises:
        InputError: fewer numbers than pieces, or a piece that is constant.
    """
    dim = vectors.shape[1]
    if dim < len(sizes):
        raise InputError(
            f"Vectors of {dim} numbers cannot be cut into {len(sizes)} pieces.", hint=f"set num_levels to at most {dim}"
        )
    mean = vectors.mean(axis=0, dtype=np.float64)
    centred = vectors.astype(np.float64) - mean
    pieces = np.array_split(np.arange(dim), len(sizes))
    axes = np.eye(dim) if rotations is None else _turned(centred, pieces, sizes, rotations, seed)
    projected = centred @ axes
    if flat := [level for level, piece in enumerate(pieces) if projected[:, piece].std(axis=0).max() < 1e-9]:
        raise InputError(
            f"All vectors are the same in piece {flat[0] + 1} of {len(sizes)}.", hint="use opq, or fewer num_levels"
        )
    books = []
    for level, (piece, size) in enumerate(zip(pieces, sizes, strict=True)):
        codewords = kmeans(projected[:, piece], size, iterations, seed + level).astype(np.float64)
        books.append((codewords @ axes[:, piece].T + (mean if level == 0 else 0)).astype(np.float32))
    return tuple(books)


def _turned(
    centred: np.ndarray, pieces: Sequence[np.ndarray], sizes: Sequence[int], rotations: int, seed: int
) -> np.ndarray:
    """(dim, dim) orthogonal axes, in columns, whose pieces k-means codes with little error."""
    axes = _dealt_axes(centred, pieces)
    books: list[np.ndarray] | None = None
    for _ in range(rotations):
        projected = centred @ axes
        # a few iterations from the last centroids are enough: the rotation changes little from round to round
        books = [
            kmeans(projected[:, piece], size, 4, seed + level, start=None if books is None else books[level])
            for level, (piece, size) in enumerate(zip(pieces, sizes, strict=True))
        ]
        coded = [
            book[nearest(projected[:, piece], book)].astype(np.float64)
            for piece, book in zip(pieces, books, strict=True)
        ]
        # the rotation that brings the vectors nearest to what their codes mean (orthogonal Procrustes problem)
        left, _, right = np.linalg.svd(centred.T @ np.concatenate(coded, axis=1))
        axes = left @ right
    return axes


def _dealt_axes(centred: np.ndarray, pieces: Sequence[np.ndarray]) -> np.ndarray:
    """Principal axes, widest first, each given to the piece with the least log-variance so far that has room."""
    variances, vectors = np.linalg.eigh(centred.T @ centred / len(centred))
    order = np.argsort(-variances, kind="stable")
    logs = np.log(np.maximum(variances[order] / variances[order[0]], 1e-12)) + 30  # positive, so that more is fuller
    filled = np.zeros(len(pieces))
    given: list[list[int]] = [[] for _ in pieces]
    for axis, log in zip(order, logs, strict=True):
        open_pieces = [number for number, piece in enumerate(pieces) if len(given[number]) < len(piece)]
        chosen = min(open_pieces, key=lambda number: filled[number])
        given[chosen].append(int(axis))
        filled[chosen] += log
    return np.concatenate([vectors[:, columns] for columns in given], axis=1)
