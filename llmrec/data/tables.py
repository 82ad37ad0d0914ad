"""Reads delimited text, JSON lines and Parquet into tables that know the line of each row.

Polars parses whole files at once and stops at the first malformed line. Where it does, a slower reader goes through
the file record by record and reports every malformed line with its number.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl

from llmrec.data.problems import SHOWN, Problems, listed


@dataclass(frozen=True)
class Table:
    """Rows of one file before validation.

    Attributes:
        frame: text columns from delimited files, text or list-of-text columns from JSON lines, any type from Parquet.
        file: what messages call the file.
        line_numbers: makes the 1-based line of every row, on demand; None where rows have no lines (Parquet).
        blank_lines: lines without content, which are not rows.
        nested: per column the rows with a JSON object or a list of lists, which are null in `frame`.
    """

    frame: pl.DataFrame
    file: str
    line_numbers: Callable[[], Sequence[int] | np.ndarray] | None = None
    blank_lines: int = 0
    nested: dict[str, list[int]] | None = None

    def places(self, rows: Sequence[int] | np.ndarray) -> list[str]:
        """``file:line`` (``file row N`` where there are no lines) of 0-based rows."""
        if self.line_numbers is None:
            return [f"{self.file} row {row + 1}" for row in rows]
        numbers = self.line_numbers() if len(rows) else ()
        return [f"{self.file}:{numbers[row]}" for row in rows]

    def with_frame(self, frame: pl.DataFrame) -> Table:
        """The same rows with other columns."""
        return replace(self, frame=frame)


def read_delimited(
    raw: bytes,
    file: str,
    problems: Problems,
    *,
    separator: str = ",",
    columns: Sequence[str] | None = None,
    quoted: bool = True,
    encoding: str = "utf-8",
) -> Table:
    """Parse delimited text, every value as text (an empty one is null).

    Args:
        raw: the file's bytes.
        file: what messages call the file.
        problems: receives undecodable bytes and malformed lines.
        separator: one character.
        columns: names where the file has no header line.
        quoted: whether ``"`` quotes values.
        encoding: of `raw`.
    """
    text = _decode(raw, file, problems, encoding)
    quoting: Any = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    if columns is None:
        header = next(csv.reader(io.StringIO(text[: text.find("\n") + 1] or text), delimiter=separator), [])
        if repeated := sorted({name for name in header if header.count(name) > 1}):
            problems.add("repeated column", f"{file}:1: the columns {listed(repeated)} appear more than once")
            header = [f"{name} ({i})" if name in header[:i] else name for i, name in enumerate(header)]
    first = 2 if columns is None else 1
    names = list(columns or header)

    def records() -> Iterator[tuple[int, list[str]]]:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, quoting=quoting)
        before = 0
        for record in reader:
            start, before = before + 1, reader.line_num
            if start >= first:
                yield start, record

    if not names or not text.strip():
        return Table(pl.DataFrame(schema=dict.fromkeys(names, pl.String)), file, lambda: ())
    try:
        frame = pl.read_csv(
            io.BytesIO(text.encode()),
            separator=separator,
            has_header=False,
            skip_lines=first - 1,
            new_columns=names,
            schema=dict.fromkeys(names, pl.String),
            quote_char='"' if quoted else None,
        )
    except pl.exceptions.NoDataError:
        frame = pl.DataFrame(schema=dict.fromkeys(names, pl.String))
    except pl.exceptions.ComputeError:
        return _read_slowly(records(), names, file, problems)

    blank = frame.select(pl.all_horizontal(pl.all().is_null())).to_series()
    num_blank = int(blank.sum())
    kept = np.flatnonzero(~blank.to_numpy()) if num_blank else None

    def line_numbers() -> np.ndarray:
        if quoted and '"' in text:  # a quoted value may span lines
            numbers = np.fromiter((start for start, _ in records()), np.int64)
        else:
            numbers = np.arange(frame.height) + first
        return numbers if kept is None else numbers[kept]

    return Table(frame.filter(~blank) if num_blank else frame, file, line_numbers, num_blank)


def _read_slowly(records: Iterator[tuple[int, list[str]]], names: list[str], file: str, problems: Problems) -> Table:
    rows: list[list[str | None]] = []
    numbers: list[int] = []
    blank = 0
    start = 1
    try:
        for start, record in records:
            if not record:
                blank += 1
            elif len(record) != len(names):
                what = f"{len(record)} values where the header has {len(names)} columns"
                problems.add("wrong number of values", f"{file}:{start}: {what}")
            else:
                rows.append([value or None for value in record])
                numbers.append(start)
    except csv.Error as error:
        problems.add("malformed line", f"{file}:{start + 1}: {error} (a quote that is never closed?)")
    frame = pl.DataFrame(rows, schema=dict.fromkeys(names, pl.String), orient="row")
    return Table(frame, file, lambda: numbers, blank)


def read_json_lines(raw: bytes, file: str, problems: Problems) -> Table:
    """Parse one JSON object a line; values become text or lists of text."""
    records: list[dict[str, Any]] = []
    numbers: list[int] = []
    blank = 0
    for number, line in enumerate(_decode(raw, file, problems).removesuffix("\n").split("\n"), start=1):
        if not line.strip():
            blank += 1
            continue
        try:
            record = json.loads(line, parse_constant=lambda _: None)  # NaN, as pandas writes an empty cell
        except ValueError as error:
            problems.add("malformed line", f"{file}:{number}: not JSON ({error})")
            continue
        if isinstance(record, dict):
            records.append(record)
            numbers.append(number)
        else:
            problems.add("malformed line", f"{file}:{number}: a JSON {type(record).__name__}, not an object")

    nested: dict[str, list[int]] = {}
    columns: dict[str, pl.Series] = {}
    for name in dict.fromkeys(name for record in records for name in record):
        values = [record.get(name) for record in records]
        cells = [_cell(value) for value in values]
        odd = [row for row, value in enumerate(values) if value is not None and cells[row] is None]
        if odd:
            nested[name] = odd
        if any(isinstance(cell, list) for cell in cells):
            lists = [cell if isinstance(cell, list) or cell is None else [cell] for cell in cells]
            columns[name] = pl.Series(name, lists, dtype=pl.List(pl.String))
        else:
            columns[name] = pl.Series(name, cells, dtype=pl.String)
    return Table(pl.DataFrame(columns), file, lambda: numbers, blank, nested)


def _cell(value: Any) -> str | list[str] | None:
    if isinstance(value, list):
        parts = [_cell(part) for part in value if part is not None]
        return [part for part in parts if isinstance(part, str)] if all(isinstance(p, str) for p in parts) else None
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, str | int | float) else None


def read_parquet(raw: bytes, file: str, problems: Problems) -> Table:
    """Read a Parquet file as it is."""
    try:
        return Table(pl.read_parquet(io.BytesIO(raw)), file)
    except pl.exceptions.ComputeError as error:
        problems.add("damaged file", f"{file}: not a Parquet file, or a damaged one ({str(error).splitlines()[0]})")
        return Table(pl.DataFrame(), file)


def _decode(raw: bytes, file: str, problems: Problems, encoding: str = "utf-8") -> str:
    try:
        return raw.decode(encoding).removeprefix("\ufeff")
    except UnicodeDecodeError:
        bad: list[str] = []
        total = 0
        for number, line in enumerate(raw.split(b"\n"), start=1):
            try:
                line.decode(encoding)
            except UnicodeDecodeError as error:
                total += 1
                if total <= SHOWN:
                    byte = f"byte 0x{line[error.start]:02x} at position {error.start + 1}"
                    bad.append(f"{file}:{number}: {byte} is not {encoding.upper()}; save the file as UTF-8")
        problems.add_many("undecodable bytes", bad, total)
        return raw.decode(encoding, errors="replace").removeprefix("\ufeff")
