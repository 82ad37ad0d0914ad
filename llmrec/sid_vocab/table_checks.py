"""What makes parts a `SIDTable`: each check yields one line per problem, so that all of them are reported together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np

MAX_LEVELS = 26  # a level is a letter


def table_problems(
    item_ids: tuple[str, ...],
    codes: np.ndarray,
    codebook_sizes: tuple[int, ...],
    has_suffix: bool,
    status: np.ndarray,
    token_ids: tuple[np.ndarray, ...] | None,
    codebooks: tuple[np.ndarray, ...],
) -> list[str]:
    """Every reason why these parts are no SID table, in words; shapes are those of `SIDTable`'s fields."""
    return [
        *_item_id_problems(item_ids),
        *_level_problems(codebook_sizes, has_suffix),
        *_code_problems(codes, len(item_ids), codebook_sizes),
        *_status_problems(status, len(item_ids)),
        *_token_id_problems(token_ids, codebook_sizes),
        *_codebook_problems(codebooks, codebook_sizes[: len(codebook_sizes) - has_suffix]),
    ]


def _item_id_problems(item_ids: tuple[str, ...]) -> Iterator[str]:
    if not item_ids:
        yield "there are no items"
    bad = [item_id for item_id in item_ids if not isinstance(item_id, str) or not item_id or not _encodable(item_id)]
    if bad:
        yield f"item ids must be non-empty text; {len(bad)} are not, first {bad[0]!r}"
    elif len(set(item_ids)) < len(item_ids):
        repeated = [item_id for item_id, count in Counter(item_ids).items() if count > 1]
        yield f"item ids must be unique; {len(repeated)} occur more than once: {_first(repeated)}"


def _level_problems(codebook_sizes: tuple[int, ...], has_suffix: bool) -> Iterator[str]:
    if not 1 <= len(codebook_sizes) <= MAX_LEVELS:
        yield f"a SID has 1 to {MAX_LEVELS} levels, not {len(codebook_sizes)}"
    if has_suffix and len(codebook_sizes) == 1:
        yield "the only level cannot be the suffix"
    for level, size in enumerate(codebook_sizes):
        if not 1 <= size <= np.iinfo(np.int32).max:
            yield f"level {level} has a codebook size of {size}"


def _code_problems(codes: np.ndarray, num_items: int, codebook_sizes: tuple[int, ...]) -> Iterator[str]:
    if codes.shape != (num_items, len(codebook_sizes)) or not np.issubdtype(codes.dtype, np.integer):
        yield f"codes must be integers of shape {(num_items, len(codebook_sizes))}, not {codes.dtype} {codes.shape}"
        return
    for level, size in enumerate(codebook_sizes):
        outside = np.flatnonzero((codes[:, level] < 0) | (codes[:, level] >= size))
        if outside.size:
            code = int(codes[outside[0], level])
            yield f"level {level} has {outside.size} codes outside 0..{size - 1}, first {code} in row {outside[0]}"


def _status_problems(status: np.ndarray, num_items: int) -> Iterator[str]:
    if status.shape != (num_items,) or not np.issubdtype(status.dtype, np.integer):
        yield f"status must be integers of shape {(num_items,)}, not {status.dtype} {status.shape}"
    elif not np.isin(status, (0, 1)).all():
        yield f"status must be 0 (active) or 1 (retired), not {_first(sorted(set(status.tolist()) - {0, 1}))}"


def _token_id_problems(token_ids: tuple[np.ndarray, ...] | None, codebook_sizes: tuple[int, ...]) -> Iterator[str]:
    if token_ids is None:
        return
    shapes = [ids.shape for ids in token_ids]
    if shapes != [(size,) for size in codebook_sizes]:
        yield f"token ids must be one array per level of sizes {codebook_sizes}, not of shapes {shapes}"
    elif not all(np.issubdtype(ids.dtype, np.integer) for ids in token_ids):
        yield "token ids must be integers"
    else:
        together = np.concatenate(token_ids)
        if (together < 0).any():
            yield "token ids must not be negative"
        if len(np.unique(together)) < len(together):
            yield "token ids must be unique: two codes share a token"


def _codebook_problems(codebooks: tuple[np.ndarray, ...], sizes: tuple[int, ...]) -> Iterator[str]:
    if not codebooks:
        return
    if len(codebooks) != len(sizes) or any(
        b.ndim != 2 or b.shape[0] != n for b, n in zip(codebooks, sizes, strict=True)
    ):
        shapes = [book.shape for book in codebooks]
        yield f"there must be one (codebook_size, dim) codebook per quantised level of sizes {sizes}, not {shapes}"
    for level, book in enumerate(codebooks):
        if not np.issubdtype(book.dtype, np.floating) or not np.isfinite(book).all():
            yield f"the codebook of level {level} must hold finite floating-point numbers"


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _first(values: list, count: int = 3) -> str:
    return ", ".join(repr(value) for value in values[:count]) + (", ..." if len(values) > count else "")
