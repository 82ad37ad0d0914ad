"""Encode vectors with residual codebooks, fast: greedily with the exact result, or by a beam that comes nearer.

Greedy encoding takes the nearest centroid level by level. A beam keeps the best few prefixes instead and ends with the
one whose sum of centroids is nearest (faiss's residual quantiser with ``max_beam_size``; Babenko and Lempitsky 2014).
Its codes rebuild a vector better; two items alike share fewer prefixes, which a recommender has to pay for.

No residual is ever formed. With ``r`` the residual after the codes ``c_1..c_i``, a level's order of ``|r - c|^2`` is
that of ``|c|^2/2 - x.c + c_1.c + .. + c_i.c``: one matrix product of the vectors with all centroids of all levels,
and tables of the products between centroids.

`encode_greedy` computes in float32 and looks again, in float64, at the rows whose two best centroids at some level are
closer than float32 can err. The codes are therefore those of float64, whatever the batch; at 384 numbers and 3 x 256
codes about one row in a hundred is looked at twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from llmrec.errors import InputError
from llmrec.sid_vocab.vectors import require_vectors

_GREEDY_ROWS = 2048  # products with 768 centroids: 6 MB
_BEAM_ROWS = 512  # five beams of 256 codes: 2.6 MB
_ROUNDOFF = 2.0**-24
_GROUPED = 16  # rows of candidates compared elementwise before any is sorted


def encode_greedy(vectors: np.ndarray, codebooks: Sequence[np.ndarray]) -> np.ndarray:
    """(n, dim) vectors to (n, num_levels) int32 codes: level by level the nearest centroid, the lower code on a tie.

    Args:
        vectors: any real dtype.
        codebooks: per level (codebook_size, dim) float32.

    Raises:
        DataError: vectors with NaN, infinity or of zero length.
        InputError: vectors of another width than the codebooks'.
    """
    tables = _Tables.of(vectors, codebooks)
    codes = np.empty((len(vectors), len(codebooks)), np.int32)
    for start in range(0, len(vectors), _GREEDY_ROWS):
        block = vectors[start : start + _GREEDY_ROWS].astype(np.float32, copy=False)
        lengths = np.sqrt(np.einsum("ij,ij->i", block, block))
        if not (np.isfinite(lengths) & (lengths > 0)).all():
            require_vectors(vectors)  # names the rows; squares that overflow or vanish are no fault
        unsure = _greedy_block(block, lengths, tables, codes[start : start + _GREEDY_ROWS])
        if unsure.size:
            codes[start + unsure] = _greedy_float64(vectors[start + unsure], codebooks)
    return codes


def encode_beam(vectors: np.ndarray, codebooks: Sequence[np.ndarray], num_beams: int = 5) -> np.ndarray:
    """(n, dim) vectors to (n, num_levels) int32 codes: the best of `num_beams` prefixes kept at every level.

    Args:
        vectors: any real dtype.
        codebooks: per level (codebook_size, dim) float32.
        num_beams: 1 is `encode_greedy`, up to rounding.

    Raises:
        DataError: vectors with NaN, infinity or of zero length.
        InputError: vectors of another width than the codebooks', or no beam.
    """
    if num_beams < 1:
        raise InputError(f"num_beams is {num_beams}, it must be at least 1.")
    require_vectors(vectors)
    tables = _Tables.of(vectors, codebooks)
    codes = np.empty((len(vectors), len(codebooks)), np.int32)
    for start in range(0, len(vectors), _BEAM_ROWS):
        block = vectors[start : start + _BEAM_ROWS]
        codes[start : start + _BEAM_ROWS] = _beam_block(block.astype(np.float32, copy=False), tables, num_beams)
    return codes


@dataclass(frozen=True)
class _Tables:
    """What does not depend on the vectors. `ends` are the columns of `centroids` at which levels begin and end."""

    centroids: np.ndarray  # (dim, codes of all levels) float32
    half_norms: np.ndarray  # (codes of all levels,) float32
    products: tuple[tuple[np.ndarray, ...], ...]  # [level][earlier level]: (earlier codebook_size, codebook_size)
    ends: tuple[tuple[int, int], ...]
    longest: tuple[float, ...]  # per level, the length of its longest centroid

    @classmethod
    def of(cls, vectors: np.ndarray, codebooks: Sequence[np.ndarray]) -> _Tables:
        if vectors.ndim != 2:
            require_vectors(vectors)
        dim = codebooks[0].shape[1]
        if vectors.shape[1] != dim:
            raise InputError(
                f"The codebooks were fitted to vectors of {dim} numbers, these have {vectors.shape[1]}.",
                hint="embed with the same encoder and behaviour settings as at the fit",
            )
        books = [book.astype(np.float64) for book in codebooks]
        norms = [np.square(book).sum(axis=1) for book in books]
        return cls(
            centroids=np.ascontiguousarray(np.concatenate(codebooks).astype(np.float32).T),
            half_norms=(np.concatenate(norms) / 2).astype(np.float32),
            products=tuple(
                tuple((earlier @ book.T).astype(np.float32) for earlier in books[:level])
                for level, book in enumerate(books)
            ),
            ends=tuple(pairwise(np.cumsum([0, *map(len, books)]).tolist())),
            longest=tuple(float(np.sqrt(norm.max())) for norm in norms),
        )

    def against(self, block: np.ndarray) -> np.ndarray:
        """(b, codes of all levels) float32: ``|c|^2/2 - x.c``."""
        inner: np.ndarray = block @ self.centroids
        np.subtract(self.half_norms, inner, out=inner)
        return inner


def _greedy_block(block: np.ndarray, lengths: np.ndarray, tables: _Tables, codes: np.ndarray) -> np.ndarray:
    """Fill `codes` (b, num_levels) and return the rows that float32 cannot decide."""
    rows = np.arange(len(block))
    inner = tables.against(block)
    unsure = np.zeros(len(block), bool)
    for level, (start, end) in enumerate(tables.ends):
        # A float32 product of n numbers errs by at most n roundoffs times both lengths, a sum of a few terms by a few
        # roundoffs times what they can amount to. Two scores, two such errors; one more for a rounded vector.
        longest, before = tables.longest[level], sum(tables.longest[:level])
        products_err = (block.shape[1] + 2) * lengths * longest
        sums_err = 4 * (level + 1) * (lengths + before + longest) * longest
        slack = 2 * _ROUNDOFF * (products_err + sums_err)
        scores = inner[:, start:end]
        for earlier, products in enumerate(tables.products[level]):
            scores += products[codes[:, earlier]]
        best = scores.argmin(axis=1)
        lowest = scores[rows, best]
        scores[rows, best] = np.inf
        unsure |= ~(scores.min(axis=1) - lowest > slack)
        codes[:, level] = best
    return np.flatnonzero(unsure)


def _greedy_float64(vectors: np.ndarray, codebooks: Sequence[np.ndarray]) -> np.ndarray:
    residual = vectors.astype(np.float64)
    codes = np.empty((len(vectors), len(codebooks)), np.int32)
    for level, book in enumerate(codebooks):
        centroids = book.astype(np.float64)
        half_norms = 0.5 * np.square(centroids).sum(axis=1)
        codes[:, level] = (half_norms - residual @ centroids.T).argmin(axis=1)
        residual -= centroids[codes[:, level]]
    return codes


def _beam_block(block: np.ndarray, tables: _Tables, num_beams: int) -> np.ndarray:
    inner = tables.against(block)
    rows = np.arange(len(block))[:, None]
    codes = np.empty((len(block), 1, 0), np.int64)  # (b, beams, levels so far)
    scores = np.zeros((len(block), 1), np.float32)
    for level, (start, end) in enumerate(tables.ends):
        size = end - start
        grown = inner[:, None, start:end] + scores[:, :, None]
        for earlier, products in enumerate(tables.products[level]):
            grown += products[codes[:, :, earlier]]
        flat = grown.reshape(len(block), -1)
        kept = _smallest(flat, min(num_beams, flat.shape[1]))
        scores = flat[rows, kept]
        parents, last = np.divmod(kept, size)
        codes = np.concatenate([codes[rows, parents], last[:, :, None]], axis=2)
    return codes[:, 0]


def _smallest(scores: np.ndarray, count: int) -> np.ndarray:
    """(b, count) columns of the smallest of (b, m) `scores`, ascending.

    Columns that lie ``m / 16`` apart form a group. The `count` smallest are in the `count` groups of the smallest
    minima, and minima of groups are found elementwise, so that only few candidates are looked at one by one.
    """
    num_groups = scores.shape[1] // _GROUPED
    if scores.shape[1] % _GROUPED or num_groups <= count:
        return _taken(scores.copy(), count)
    groups = _taken(scores.reshape(len(scores), _GROUPED, num_groups).min(axis=1), count)
    columns = (groups[:, :, None] + np.arange(_GROUPED) * num_groups).reshape(len(scores), -1)
    chosen = _taken(np.take_along_axis(scores, columns, axis=1), count)
    return np.take_along_axis(columns, chosen, axis=1)


def _taken(scores: np.ndarray, count: int) -> np.ndarray:
    """Columns of the smallest, ascending, taken out of `scores` one after the other.

    For a handful of beams repeated minima are three times faster than a partition, whose branches cannot be foreseen.
    """
    rows = np.arange(len(scores))
    columns = np.empty((len(scores), count), np.int64)
    for place in range(count):
        columns[:, place] = scores.argmin(axis=1)
        scores[rows, columns[:, place]] = np.inf
    return columns
