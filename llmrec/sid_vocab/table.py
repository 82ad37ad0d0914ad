"""`SIDTable`: the contract between items, Semantic IDs (SIDs) and tokens that every other part builds on.

A SID is a fixed-length tuple of codes, one per level, spelled as tokens: ``(12, 7, 200)`` is ``<a_12><b_7><c_200>``
(the notation of LC-Rec, Zheng et al. 2024; TIGER, Rajput et al. 2023, has no text form). Codes mean nothing without the
codebooks and token ids of the fit they come from, so a table carries two fingerprints and refuses to load when its
content does not match them:

* *vocabulary*: levels, codebook sizes, codebooks, token ids. A trained model needs exactly this.
* *rows*: item ids, codes, status. These may change in a descendant version (new items, retired items).

On disk: ``sid_table.parquet`` (rows), ``codebooks/codebooks.safetensors`` (codebooks, token ids; in a folder
of its own, because vLLM takes every safetensors file beside a model for weights), ``sid_table.json`` (the rest).
"""

from __future__ import annotations

import hashlib
import json
import re
import string
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from llmrec.errors import DataError, InputError, MismatchError
from llmrec.sid_vocab.table_checks import table_problems

LEVEL_LETTERS = string.ascii_lowercase
ACTIVE, RETIRED = 0, 1
FORMAT_VERSION = 2
_ROWS, _TENSORS, _META = "sid_table.parquet", "codebooks/codebooks.safetensors", "sid_table.json"


@dataclass(frozen=True, eq=False)
class SIDTable:
    """Item id <-> codes <-> tokens <-> status; immutable, arrays are read-only copies of what was given.

    Raises:
        DataError: at construction, with every problem found (shapes, code ranges, duplicate ids, levels, token ids).

    Example:
        >>> table = SIDTable(item_ids=("7", "9"), codes=np.array([[0, 1], [2, 0]]), codebook_sizes=(3, 2))
        >>> table.text("9")
        '<a_2><b_0>'
    """

    item_ids: tuple[str, ...]
    """All catalogue items; the row order of `codes` and `status`."""
    codes: np.ndarray
    """(n_items, num_levels) int32; every row complete."""
    codebook_sizes: tuple[int, ...]
    """Number of codes of each level; the suffix level, if any, is the last one."""
    has_suffix: bool = False
    """The last level tells items with equal quantised codes apart and has no codebook."""
    status: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint8))
    """(n_items,) uint8: 0 active, 1 retired; an empty array (the default) becomes all active."""
    token_ids: tuple[np.ndarray, ...] | None = None
    """Per level (codebook_size,) int64 ids in the extended tokenizer; None before the extension."""
    codebooks: tuple[np.ndarray, ...] = ()
    """Per quantised level (codebook_size, dim) float32; empty when the SIDs were given by the user."""
    parent: str | None = None
    """Rows fingerprint of the version that this one descends from."""

    def __post_init__(self) -> None:
        status = np.asarray(self.status)
        if not status.size:
            status = np.full(len(self.item_ids), ACTIVE, np.uint8)
        object.__setattr__(self, "item_ids", tuple(self.item_ids))
        object.__setattr__(self, "codebook_sizes", tuple(int(size) for size in self.codebook_sizes))
        codes = np.asarray(self.codes)
        token_ids = None if self.token_ids is None else tuple(np.asarray(ids) for ids in self.token_ids)
        codebooks = tuple(np.asarray(book) for book in self.codebooks)
        problems = table_problems(
            self.item_ids, codes, self.codebook_sizes, self.has_suffix, status, token_ids, codebooks
        )
        if problems:
            raise DataError("These parts do not make a SID table:", problems)
        object.__setattr__(self, "codes", _frozen(codes, np.int32))
        object.__setattr__(self, "status", _frozen(status, np.uint8))
        object.__setattr__(self, "codebooks", tuple(_frozen(book, np.float32) for book in codebooks))
        if token_ids is not None:
            object.__setattr__(self, "token_ids", tuple(_frozen(ids, np.int64) for ids in token_ids))

    @property
    def num_items(self) -> int:
        """Number of rows, retired items included."""
        return len(self.item_ids)

    @property
    def num_levels(self) -> int:
        """Length of every SID, the suffix included."""
        return len(self.codebook_sizes)

    @property
    def num_tokens(self) -> int:
        """Number of SID tokens: the sum of the codebook sizes."""
        return sum(self.codebook_sizes)

    # -- items, codes, tokens ------------------------------------------------------------------------------------

    def row(self, item_id: str) -> int:
        """The row of `item_id`. Raises InputError where the table does not know it."""
        try:
            return self._row_of[item_id]
        except KeyError:
            raise InputError(
                f"Item {item_id!r} is not among the {self.num_items} items of the SID table.",
                hint="ids are text and must be those of the catalogue that the table was built from",
            ) from None

    def token(self, level: int, code: int) -> str:
        """The token of one code, ``<a_12>`` for code 12 of level 0. Raises InputError outside the vocabulary."""
        if not 0 <= level < self.num_levels or not 0 <= code < self.codebook_sizes[level]:
            raise InputError(f"Level {level}, code {code} is outside the codebook sizes {self.codebook_sizes}.")
        return f"<{LEVEL_LETTERS[level]}_{code}>"

    def tokens(self, item_id: str) -> tuple[str, ...]:
        """The tokens of an item's SID, one per level."""
        return tuple(f"<{LEVEL_LETTERS[i]}_{code}>" for i, code in enumerate(self.codes[self.row(item_id)].tolist()))

    def text(self, item_id: str) -> str:
        """The SID as people read it: ``<a_12><b_7><c_200>``."""
        return "".join(self.tokens(item_id))

    def sid_token_ids(self) -> np.ndarray:
        """(n_items, num_levels) int64 token ids of every item's SID. Raises InputError before the extension."""
        if self.token_ids is None:
            raise InputError(
                "This SID table has no token ids yet.",
                hint="extend a tokenizer with it first (llmrec.sid_vocab.extend)",
            )
        return np.stack([ids[self.codes[:, level]] for level, ids in enumerate(self.token_ids)], axis=1)

    def buckets(self) -> Mapping[tuple[int, ...], np.ndarray]:
        """Rows by SID, ascending, retired items included; a bucket of several rows is a shared SID."""
        return self._buckets

    def parse(self, text: str) -> list[tuple[int, ...]]:
        """Every complete SID of this vocabulary in `text`, from left to right; the tokens may have one space between.

        Whether an item has that SID is for `buckets` to say.
        """
        found = (tuple(map(int, match.groups())) for match in self._pattern.finditer(text))
        return [sid for sid in found if all(code < size for code, size in zip(sid, self.codebook_sizes, strict=True))]

    def with_token_ids(self, token_ids: Sequence[np.ndarray]) -> SIDTable:
        """The same table with the ids of its tokens in an extended tokenizer, per level (codebook_size,)."""
        return replace(self, token_ids=tuple(token_ids))

    # -- identity ------------------------------------------------------------------------------------------------

    @cached_property
    def vocabulary_fingerprint(self) -> str:
        """SHA-256 over levels, sizes, codebooks and token ids: what a trained model depends on."""
        head = {"codebook_sizes": self.codebook_sizes, "has_suffix": self.has_suffix, "token_ids": bool(self.token_ids)}
        arrays = [*self.codebooks, *(self.token_ids or ())]
        head["shapes"] = [list(array.shape) for array in arrays]
        return _digest([json.dumps(head, sort_keys=True).encode(), *(_little_endian(array) for array in arrays)])

    @cached_property
    def rows_fingerprint(self) -> str:
        """SHA-256 over item ids, codes and status, in row order: which items have which SID."""
        ids = [item_id.encode() for item_id in self.item_ids]
        lengths = np.array([len(encoded) for encoded in ids], np.int64)  # so that ("ab", "c") is not ("a", "bc")
        return _digest([_little_endian(lengths), *ids, _little_endian(self.codes), _little_endian(self.status)])

    def require_same_vocabulary(self, other: SIDTable) -> None:
        """Raise MismatchError, naming both fingerprints, unless `other` has the same vocabulary."""
        if self.vocabulary_fingerprint != other.vocabulary_fingerprint:
            raise MismatchError(
                f"The SID vocabularies differ: {self.vocabulary_fingerprint} (codebook sizes {self.codebook_sizes}) "
                f"and {other.vocabulary_fingerprint} (codebook sizes {other.codebook_sizes}).",
                hint="codes of another fit mean other items: use the table that the model was trained with",
            )

    # -- files ---------------------------------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        """Write the three files into `folder` (made if missing); the JSON comes last, so half a table never loads."""
        import polars as pl
        from safetensors.numpy import save_file

        folder.mkdir(parents=True, exist_ok=True)
        (folder / _META).unlink(missing_ok=True)
        codes = [pl.Series(f"code_{LEVEL_LETTERS[level]}", self.codes[:, level]) for level in range(self.num_levels)]
        item_ids = pl.Series("item_id", self.item_ids, dtype=pl.String)
        pl.DataFrame([item_ids, *codes, pl.Series("status", self.status)]).write_parquet(folder / _ROWS)
        tensors = {f"codebook_{level}": book for level, book in enumerate(self.codebooks)}
        tensors |= {f"token_ids_{level}": ids for level, ids in enumerate(self.token_ids or ())}
        (folder / _TENSORS).parent.mkdir(exist_ok=True)
        save_file(tensors, folder / _TENSORS)
        meta = {
            "format_version": FORMAT_VERSION,
            "num_items": self.num_items,
            "codebook_sizes": self.codebook_sizes,
            "has_suffix": self.has_suffix,
            "parent": self.parent,
            "vocabulary_fingerprint": self.vocabulary_fingerprint,
            "rows_fingerprint": self.rows_fingerprint,
        }
        (folder / _META).write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> SIDTable:
        """Read a table written by `save` and check it against its fingerprints.

        Raises:
            InputError: a file is missing or unreadable, or the format is of another version.
            MismatchError: the content is not what the stored fingerprints say; both are named.
        """
        import polars as pl
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        meta = _read_meta(folder)
        try:
            frame = pl.read_parquet(folder / _ROWS)
            tensors = load_file(folder / _TENSORS)
        except (OSError, pl.exceptions.PolarsError, SafetensorError) as error:
            raise InputError(f"The SID table in {folder} cannot be read: {error}", hint=_COPY_AGAIN) from error
        levels = range(len(meta["codebook_sizes"]))
        columns = ["item_id", *(f"code_{LEVEL_LETTERS[level]}" for level in levels), "status"]
        if frame.columns != columns:
            raise InputError(f"{folder / _ROWS} has the columns {frame.columns}, expected {columns}.", hint=_COPY_AGAIN)
        token_ids = tuple(tensors[f"token_ids_{level}"] for level in levels if f"token_ids_{level}" in tensors)
        table = cls(
            item_ids=tuple(frame["item_id"].to_list()),
            codes=frame.select(columns[1:-1]).to_numpy(),
            codebook_sizes=tuple(meta["codebook_sizes"]),
            has_suffix=meta["has_suffix"],
            status=frame["status"].to_numpy(),
            token_ids=token_ids or None,
            codebooks=tuple(tensors[f"codebook_{level}"] for level in levels if f"codebook_{level}" in tensors),
            parent=meta["parent"],
        )
        for name in ("vocabulary_fingerprint", "rows_fingerprint"):
            if meta[name] != getattr(table, name):
                raise MismatchError(
                    f"The SID table in {folder} is not the one it says it is: its stored {name} is {meta[name]}, "
                    f"its content has {getattr(table, name)}.",
                    hint=_COPY_AGAIN,
                )
        return table

    # -- indexes, made on first use ------------------------------------------------------------------------------

    @cached_property
    def _row_of(self) -> dict[str, int]:
        return {item_id: row for row, item_id in enumerate(self.item_ids)}

    @cached_property
    def _buckets(self) -> Mapping[tuple[int, ...], np.ndarray]:
        order = np.lexsort(self.codes.T[::-1])  # stable: rows of one SID stay ascending
        starts = np.flatnonzero(np.any(np.diff(self.codes[order], axis=0), axis=1)) + 1
        groups = np.split(order, starts)
        return MappingProxyType({tuple(self.codes[rows[0]].tolist()): rows for rows in groups})

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        return re.compile(" ?".join(rf"<{letter}_(0|[1-9]\d*)>" for letter in LEVEL_LETTERS[: self.num_levels]), re.A)


_COPY_AGAIN = "copy the folder again as a whole, or rebuild the table"


def _read_meta(folder: Path) -> dict[str, Any]:
    try:
        meta: dict[str, Any] = json.loads((folder / _META).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{folder} holds no SID table ({_META} is missing).", hint=_COPY_AGAIN) from None
    except (OSError, ValueError) as error:
        raise InputError(f"{folder / _META} cannot be read: {error}", hint=_COPY_AGAIN) from error
    if not isinstance(meta, dict) or meta.get("format_version") != FORMAT_VERSION:
        raise InputError(
            f"{folder / _META} is not of SID table format {FORMAT_VERSION}.", hint="it may need a newer llmrec"
        )
    needed = ("codebook_sizes", "has_suffix", "parent", "vocabulary_fingerprint", "rows_fingerprint")
    if missing := [key for key in needed if key not in meta]:
        raise InputError(f"{folder / _META} lacks {', '.join(missing)}.", hint=_COPY_AGAIN)
    return meta


def _frozen(array: np.ndarray, dtype: type) -> np.ndarray:
    copy: np.ndarray = np.array(array, dtype=dtype, order="C")
    copy.setflags(write=False)
    return copy


def _little_endian(array: np.ndarray) -> bytes:
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()


def _digest(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()
