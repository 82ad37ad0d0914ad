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

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from llmrec.errors import InputError
from llmrec.sid_vocab.vectors import require_vectors

_PRODUCT_ROWS = 2048  # rows of a product with all centroids: 6 MB at 3 x 256 codes
_SCORES = 1 << 17  # scores looked at together: 512 KB, so that they stay in the cache between the steps
ROUNDOFF = 2.0**-24
"""Relative error of one float32 operation."""


def encode_greedy(vectors: np.ndarray, codebooks: Sequence[np.ndarray], *, zeros: bool = False) -> np.ndarray:
    """(n, dim) vectors to (n, num_levels) int32 codes: level by level the nearest centroid, the lower code on a tie.

    Args:
        vectors: any real dtype.
        codebooks: per level (codebook_size, dim) float32.
        zeros: vectors of zero length are all right, as what a network makes of an item.

    Raises:
        DataError: vectors with NaN, infinity or of zero length.
        InputError: vectors of another width than the codebooks'.
    """
    if not (zeros or vectors.size):
        require_vectors(vectors)
    tables = _Tables.of(vectors, codebooks)
    work = _Work.of(len(vectors), tables)
    codes = np.empty((len(vectors), len(codebooks)), np.int32)
    unsure: list[np.ndarray] = []
    for start in range(0, len(vectors), _PRODUCT_ROWS):
        rows = slice(start, start + _PRODUCT_ROWS)
        block = vectors[rows].astype(np.float32, copy=False)
        lengths = np.sqrt(np.einsum("ij,ij->i", block, block))
        if not (np.isfinite(lengths) & (zeros | (lengths > 0))).all():
            require_vectors(vectors)  # names the rows; squares that overflow or vanish are no fault
        unsure.append(start + _greedy_block(block, lengths, tables, codes[rows], work))
    again = np.concatenate(unsure) if unsure else np.empty(0, np.int64)
    for first in range(0, len(again), _PRODUCT_ROWS):  # together: products of few rows at a time are slow
        looked_at = again[first : first + _PRODUCT_ROWS]
        codes[looked_at] = _greedy_float64(vectors[looked_at], codebooks)
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
    work = _Work.of(len(vectors), tables, num_beams)
    codes = np.empty((len(vectors), len(codebooks)), np.int32)
    for start in range(0, len(vectors), _PRODUCT_ROWS):
        products = work.against(vectors[start : start + _PRODUCT_ROWS].astype(np.float32, copy=False), tables)
        for first in range(0, len(products), work.step):
            found = _beam_block(products[first : first + work.step], tables, num_beams, work)
            codes[start + first : start + first + len(found)] = found
    return codes


@dataclass(frozen=True)
class _Tables:
    """What does not depend on the vectors. `ends` are the columns of `centroids` at which levels begin and end."""

    centroids: np.ndarray  # (dim, codes of all levels) float32
    half_norms: np.ndarray  # (codes of the first level,) float32
    products: tuple[tuple[np.ndarray, ...], ...]  # [level][earlier level]: (earlier codebook_size, codebook_size)
    ends: tuple[tuple[int, int], ...]
    longest: tuple[float, ...]  # per level, the length of its longest centroid

    @classmethod
    def of(cls, vectors: np.ndarray, codebooks: Sequence[np.ndarray]) -> _Tables:
        if vectors.ndim != 2 or not np.issubdtype(vectors.dtype, np.number):
            require_vectors(vectors)
        dim = codebooks[0].shape[1]
        if vectors.shape[1] != dim:
            raise InputError(
                f"The codebooks were fitted to vectors of {dim} numbers, these have {vectors.shape[1]}.",
                hint="embed with the same encoder and behaviour settings as at the fit",
            )
        books = [book.astype(np.float64) for book in codebooks]
        norms = [np.square(book).sum(axis=1) for book in books]
        tables: list[tuple[np.ndarray, ...]] = []
        for level, (book, norm) in enumerate(zip(books, norms, strict=True)):
            products = [earlier @ book.T for earlier in books[:level]]
            if products:
                products[0] += norm / 2  # one addition less for every vector
            tables.append(tuple(product.astype(np.float32) for product in products))
        return cls(
            centroids=np.ascontiguousarray(np.concatenate(codebooks).astype(np.float32).T),
            half_norms=(norms[0] / 2).astype(np.float32),
            products=tuple(tables),
            ends=tuple(pairwise(np.cumsum([0, *map(len, books)]).tolist())),
            longest=tuple(float(np.sqrt(norm.max())) for norm in norms),
        )


@dataclass(frozen=True)
class _Work:
    """Memory that blocks use in turn: fresh pages for every block took as long as the arithmetic."""

    products: np.ndarray  # (rows of a block, codes of all levels) float32
    scores: np.ndarray  # (2, scores of a step) float32
    step: int  # rows whose scores are looked at together

    @classmethod
    def of(cls, num_rows: int, tables: _Tables, num_beams: int = 1) -> _Work:
        widest = num_beams * max(end - start for start, end in tables.ends)
        rows, step = min(num_rows, _PRODUCT_ROWS), max(1, _SCORES // widest)
        return cls(
            products=np.empty((rows, tables.centroids.shape[1]), np.float32),
            scores=np.empty((2, min(rows, step) * widest), np.float32),
            step=step,
        )

    def against(self, block: np.ndarray, tables: _Tables) -> np.ndarray:
        """(b, codes of all levels) float32 products of the vectors with all centroids."""
        products = self.products[: len(block)]
        np.matmul(block, tables.centroids, out=products)
        return products

    def level(self, level: int, tables: _Tables, products: np.ndarray, codes: np.ndarray) -> np.ndarray:
        """(b, beams, codebook_size) float32 ``|c|^2/2 - r.c`` of a level's centroids c; valid until the next call.

        Args:
            level: which, from 0.
            tables: of the codebooks.
            products: (b, codes of all levels) of the vectors with all centroids.
            codes: (b, beams, level) the codes before, which left r of a vector; at the first level one beam.
        """
        start, end = tables.ends[level]
        own = products[:, None, start:end]
        shape = (*codes.shape[:2], end - start)
        both = self.scores[:, : math.prod(shape)]
        scores: np.ndarray = both[0].reshape(shape)
        more: np.ndarray = both[1].reshape(shape)
        if not level:
            np.subtract(tables.half_norms, own, out=scores)
            return scores
        first, *others = tables.products[level]
        first.take(codes[:, :, 0], axis=0, out=scores, mode="clip")  # "raise" would make a copy
        for earlier, table in enumerate(others, 1):
            scores += table.take(codes[:, :, earlier], axis=0, out=more, mode="clip")
        scores -= own
        return scores


def _greedy_block(
    block: np.ndarray, lengths: np.ndarray, tables: _Tables, codes: np.ndarray, work: _Work
) -> np.ndarray:
    """Fill `codes` (b, num_levels) and return the rows that float32 cannot decide."""
    products = work.against(block, tables)
    unsure = np.zeros(len(block), bool)
    for level in range(len(tables.ends)):
        # A float32 product of n numbers errs by at most n roundoffs times both lengths, a sum of a few terms by a few
        # roundoffs times what they can amount to. Two scores, two such errors; one more for a rounded vector.
        longest, before = tables.longest[level], sum(tables.longest[:level])
        products_err = (block.shape[1] + 2) * lengths * longest
        sums_err = 4 * (level + 1) * (lengths + before + longest) * longest
        slack = 2 * ROUNDOFF * (products_err + sums_err)
        for first in range(0, len(block), work.step):
            rows = slice(first, first + work.step)
            scores = work.level(level, tables, products[rows], codes[rows, None, :level])[:, 0]
            best, lowest = take_lowest(scores)
            unsure[rows] |= ~(take_lowest(scores)[1] - lowest > slack[rows])
            codes[rows, level] = best
    return np.flatnonzero(unsure)


def take_lowest(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(b,) columns of the lowest of (b, m) `scores` and what stands there; infinity takes its place.

    Also the way to the second lowest: numpy finds places twice as fast as values.
    """
    rows = np.arange(len(scores))
    columns = scores.argmin(axis=1)
    lowest: np.ndarray = scores[rows, columns]
    scores[rows, columns] = np.inf
    return columns, lowest


def _greedy_float64(vectors: np.ndarray, codebooks: Sequence[np.ndarray]) -> np.ndarray:
    residual = vectors.astype(np.float64)
    codes = np.empty((len(vectors), len(codebooks)), np.int32)
    for level, book in enumerate(codebooks):
        centroids = book.astype(np.float64)
        half_norms = 0.5 * np.square(centroids).sum(axis=1)
        codes[:, level] = (half_norms - residual @ centroids.T).argmin(axis=1)
        residual -= centroids[codes[:, level]]
    return codes


def _beam_block(products: np.ndarray, tables: _Tables, num_beams: int, work: _Work) -> np.ndarray:
    rows = np.arange(len(products))
    codes = np.empty((len(products), 1, 0), np.int64)  # (b, beams, levels so far)
    spent = np.zeros((len(products), 1), np.float32)  # (b, beams) scores of the levels so far
    for level in range(len(tables.ends)):
        beams, size = codes.shape[1], tables.ends[level][1] - tables.ends[level][0]
        count = 1 if level == len(tables.ends) - 1 else min(num_beams, beams * size)
        scores = work.level(level, tables, products, codes).reshape(-1, size)  # a row for every beam
        # every beam offers its best code; the beam whose offer is taken makes another
        offer = scores.argmin(axis=1)
        price = scores[np.arange(len(scores)), offer] + spent.ravel()
        parents, chosen = np.empty((2, len(products), count), np.int64)
        paid = np.empty((len(products), count), np.float32)
        for place in range(count):
            beam = price.reshape(-1, beams).argmin(axis=1)
            at = rows * beams + beam
            code = offer[at]
            parents[:, place], chosen[:, place], paid[:, place] = beam, code, price[at]
            if place + 1 < count:
                scores[at, code] = np.inf
                rest = scores[at]
                code = rest.argmin(axis=1)
                offer[at] = code
                price[at] = rest[rows, code] + spent[rows, beam]
        codes = np.concatenate([codes[rows[:, None], parents], chosen[:, :, None]], axis=2)
        spent = paid
    return codes[:, 0]
