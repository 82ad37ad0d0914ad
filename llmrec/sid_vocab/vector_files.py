"""The user's own item vectors: ``.npy`` with a file of ids, or ``.parquet`` with an id column."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llmrec.errors import DataError, InputError
from llmrec.sid_vocab.vectors import vector_problems


@dataclass(frozen=True)
class FileVectors:
    """Vectors in the order of the catalogue, and what was left out."""

    vectors: np.ndarray
    """(n_items, dim) float32."""
    notes: tuple[str, ...]
    """One line where the file has vectors of items that the catalogue lacks."""


def read_vectors(
    path: str, item_ids: Sequence[str], ids: str | None, id_column: str, vector_column: str | None
) -> FileVectors:
    """Read vectors and put them into the order of `item_ids`.

    Args:
        path: a ``.npy`` or ``.parquet`` file.
        item_ids: (n_items,) the catalogue; each needs a vector.
        ids: for ``.npy``, the file with the ids of its rows (``.txt``, one a line, or ``.json``, a list).
        id_column: for ``.parquet``; numbers are read as text.
        vector_column: for ``.parquet``, a column of lists; default its only list column, else all numeric columns.

    Raises:
        InputError: a file cannot be read as what it claims to be.
        DataError: all problems of its content: missing items, repeated ids, NaN, zero rows, lists of unequal length.
    """
    file = Path(path).expanduser()
    if file.suffix == ".npy":
        names, matrix = _read_npy(file, ids)
    elif file.suffix == ".parquet":
        names, matrix = _read_parquet(file, id_column, vector_column)
    else:
        raise InputError(f"{file} is neither .npy nor .parquet.", hint="np.save or DataFrame.write_parquet make one")
    problems = []
    if len(names) != len(matrix):
        problems.append(f"{len(names)} ids for {len(matrix)} vectors")
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        problems.append(f"{len(repeated)} ids occur more than once, first: {_first(repeated)}")
    place = {name: row for row, name in enumerate(names)}
    if missing := [item_id for item_id in item_ids if item_id not in place]:
        problems.append(f"{len(missing)} of {len(item_ids)} catalogue items have no vector, first: {_first(missing)}")
    if len(names) == len(matrix):
        problems += vector_problems(matrix, names)
    if problems:
        raise DataError(f"The vectors in {file} cannot be used:", problems)
    unknown = len(names) - len(item_ids)
    notes = (f"{unknown} vectors of items that the catalogue lacks were left out",) if unknown else ()
    return FileVectors(matrix[[place[item_id] for item_id in item_ids]].astype(np.float32), notes)


def _read_npy(file: Path, ids: str | None) -> tuple[list[str], np.ndarray]:
    if ids is None:
        raise InputError(f"{file} has no item ids.", hint="name a file with them: ids=items.txt, one id a line")
    try:
        matrix = np.load(file, allow_pickle=False)
        text = Path(ids).expanduser().read_text(encoding="utf-8")
        names = json.loads(text) if ids.endswith(".json") else text.splitlines()
    except (OSError, ValueError) as error:
        raise InputError(f"The vectors {file} with the ids {ids} cannot be read: {error}") from error
    if not isinstance(matrix, np.ndarray) or not isinstance(names, list):
        raise InputError(f"{file} must hold one array and {ids} a list of ids.")
    return [str(name) for name in names], matrix


def _read_parquet(file: Path, id_column: str, vector_column: str | None) -> tuple[list[str], np.ndarray]:
    import polars as pl

    try:
        frame = pl.read_parquet(file)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise InputError(f"{file} cannot be read: {error}") from error
    for column in (id_column, vector_column or id_column):
        if column not in frame.columns:
            raise InputError(f"{file} has no column {column!r}.", hint=f"it has {', '.join(frame.columns)}")
    names = frame[id_column].cast(pl.String).fill_null("").to_list()
    lists = [name for name, kind in frame.schema.items() if isinstance(kind, pl.List | pl.Array)]
    if vector_column is None and len(lists) > 1:
        raise InputError(f"{file} has several list columns: {', '.join(lists)}.", hint="name one in vector_column")
    if vector_column is None and not lists:
        numbers = frame.drop(id_column).select(pl.selectors.numeric())
        if not numbers.width:
            raise InputError(f"{file} has neither a list column nor numeric columns beside {id_column!r}.")
        return names, numbers.to_numpy().astype(np.float64)  # nulls become NaN and are reported
    rows = frame[vector_column or lists[0]].to_list()
    lengths = Counter(len(row) if isinstance(row, list) else -1 for row in rows)
    if len(lengths) != 1:
        usual = lengths.most_common(1)[0][0]
        odd = [name for name, row in zip(names, rows, strict=True) if not isinstance(row, list) or len(row) != usual]
        raise DataError(
            f"The vectors in {file} cannot be used:",
            [f"{len(odd)} vectors do not have {usual} numbers like most, first: {_first(odd)}"],
        )
    try:
        return names, np.array(rows, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"{file}: {vector_column or lists[0]!r} does not hold lists of numbers: {error}") from error


def _first(values: list[str]) -> str:
    return ", ".join(repr(value) for value in values[:3])
