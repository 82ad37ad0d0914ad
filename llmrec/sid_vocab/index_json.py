"""SIDs that the user already has: ``index.json`` as LC-Rec and MiniOneRec write it.

The file maps item ids to tokens, ``{"0": ["<a_236>", "<b_231>", "<c_226>"], ...}``. Codebook sizes are not in it: the
recipe may state them, else they are the highest code seen plus one.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llmrec.config import Config
from llmrec.errors import DataError, InputError
from llmrec.sid_vocab.table import LEVEL_LETTERS, SIDTable

_TOKEN = re.compile(r"<([a-z])_(0|[1-9]\d{0,8})>", re.A)
_SHOWN = 5  # problems of one kind that are spelled out


class IndexConfig(Config):
    """SIDs from a file instead of a quantiser."""

    path: str
    """The ``index.json``."""
    codebook_sizes: list[int] | None = None
    """Codes per level; default: the highest code in the file plus one (no spare codes)."""
    has_suffix: bool = False
    """The last level only tells items with equal codes apart (TIGER's extra code); the report looks before it."""


@dataclass(frozen=True)
class GivenSIDs:
    """Codes in the order of the catalogue."""

    codes: np.ndarray
    """(n_items, num_levels) int32."""
    codebook_sizes: tuple[int, ...]
    notes: tuple[str, ...]
    """One line where the file has items that the catalogue lacks."""


def read_index_json(config: IndexConfig, item_ids: Sequence[str]) -> GivenSIDs:
    """Read the SIDs of `item_ids`.

    Raises:
        InputError: the file cannot be read or is not a mapping of ids to lists of tokens.
        DataError: all problems of its content: items without SID, SIDs of unequal length, tokens that are not the
            level's, codes beyond the stated codebook sizes.
    """
    path = Path(config.path).expanduser()
    index = _load(path)
    problems = []
    if missing := [item_id for item_id in item_ids if item_id not in index]:
        first = ", ".join(repr(item_id) for item_id in missing[:3])
        problems.append(f"{len(missing)} of {len(item_ids)} catalogue items have no SID, first: {first}")
    known = [item_id for item_id in item_ids if item_id in index]
    codes, found = _codes({item_id: index[item_id] for item_id in known})
    problems += found
    sizes = tuple((codes.max(axis=0) + 1).tolist()) if codes.size else ()
    if config.codebook_sizes is not None and codes.size:
        stated = tuple(config.codebook_sizes)
        if len(stated) != len(sizes) or any(size > limit for size, limit in zip(sizes, stated, strict=False)):
            problems.append(f"codebook_sizes are stated as {stated}, the file needs at least {sizes}")
        sizes = stated
    if problems:
        raise DataError(f"The SIDs in {path} cannot be used:", problems, hint="one fixed length, levels a, b, c, ...")
    unknown = len(index) - len(known)
    notes = (f"{unknown} SIDs of items that the catalogue lacks were left out",) if unknown else ()
    return GivenSIDs(codes, sizes, notes)


def to_index_json(table: SIDTable, path: Path) -> None:
    """Write the SIDs of all active items in the peers' format; retired items are left out."""
    active = [item_id for item_id, status in zip(table.item_ids, table.status.tolist(), strict=True) if not status]
    content = {item_id: list(table.tokens(item_id)) for item_id in active}
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def _load(path: Path) -> dict[str, Any]:
    def without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        repeated = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
        if repeated:
            raise InputError(f"{path} gives {len(repeated)} items two SIDs, first: {repeated[0]!r}.")
        return dict(pairs)

    try:
        index = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=without_repeats)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(index, dict) or not index:
        raise InputError(f'{path} must map item ids to tokens, {{"0": ["<a_1>", "<b_2>"], ...}}.')
    return index


def _codes(index: dict[str, Any]) -> tuple[np.ndarray, list[str]]:
    lists = {item_id: tokens for item_id, tokens in index.items() if isinstance(tokens, list) and tokens}
    bare = [item_id for item_id in index if item_id not in lists]
    problems = [f"{len(bare)} items have no list of tokens, first: {bare[0]!r}"] if bare else []
    lengths = Counter(map(len, lists.values()))
    if len(lengths) > 1:
        counts = ", ".join(f"{count} items with {length}" for length, count in sorted(lengths.items()))
        problems.append(f"SIDs differ in length: {counts} tokens; give every item the same number of levels")
    if lengths and max(lengths) > len(LEVEL_LETTERS):
        problems.append(f"SIDs have up to {max(lengths)} tokens, at most {len(LEVEL_LETTERS)} are possible")
    rows, wrong = [], []
    for item_id, tokens in lists.items():
        matches = [_TOKEN.fullmatch(token) if isinstance(token, str) else None for token in tokens]
        row = [int(m[2]) for m, letter in zip(matches, LEVEL_LETTERS, strict=False) if m and m[1] == letter]
        if len(row) == len(tokens):
            rows.append(row)
        else:
            wrong.append(f"item {item_id!r}: {tokens} are not tokens <a_N>, <b_N>, ... in this order")
    problems += wrong[:_SHOWN]
    if len(wrong) > _SHOWN:
        problems.append(f"and {len(wrong) - _SHOWN} more items like these")
    return (np.empty((0, 0), np.int32) if problems else np.array(rows, np.int32)), problems
