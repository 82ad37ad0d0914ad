"""Checks of item vectors, shared by the embedding readers and the quantisers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from llmrec.errors import DataError


def vector_problems(vectors: np.ndarray, names: Sequence[str] | None = None) -> list[str]:
    """What is wrong with (n, dim) vectors, one line per kind of problem with its count and the first rows concerned.

    Args:
        vectors: one vector per row.
        names: (n,) what to call each row, usually its item id; row numbers where not given.
    """
    if vectors.ndim != 2 or not vectors.size or not np.issubdtype(vectors.dtype, np.number):
        return [f"vectors must be numbers of shape (items, dim), not {vectors.dtype} {vectors.shape}"]
    finite = np.isfinite(vectors).all(axis=1)
    zero = finite & ~vectors.any(axis=1)
    problems = []
    for rows, words in ((~finite, "hold NaN or infinity"), (zero, "are zero")):
        if rows.any():
            first = np.flatnonzero(rows)[:3]
            called = ", ".join(repr(names[row]) if names else f"row {row}" for row in first)
            problems.append(f"{int(rows.sum())} of {len(vectors)} vectors {words}, first: {called}")
    return problems


def require_vectors(vectors: np.ndarray, names: Sequence[str] | None = None, *, source: str = "The vectors") -> None:
    """Raise DataError with all of `vector_problems`, if there are any."""
    if problems := vector_problems(vectors, names):
        raise DataError(f"{source} cannot be used:", problems, hint="give one finite, non-zero vector per item")


def normalise(vectors: np.ndarray) -> np.ndarray:
    """(n, dim) rows at unit length, float32; zero rows stay zero."""
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    scaled: np.ndarray = vectors / np.where(lengths > 0, lengths, 1)
    return scaled.astype(np.float32)
