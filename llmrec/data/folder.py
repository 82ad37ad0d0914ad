"""A plain folder (or a zip of one): ``interactions.{csv,csv.gz,parquet}`` and ``items.{jsonl,parquet,csv}``.

Text files are UTF-8; CSV has a header line and may quote with ``"``; a JSON-lines item may have lists as values.
"""

from __future__ import annotations

from collections.abc import Sequence

from llmrec.data.config import DataConfig
from llmrec.data.files import Files
from llmrec.data.problems import Problems
from llmrec.data.source import RawData
from llmrec.data.tables import Table, read_delimited, read_json_lines, read_parquet

INTERACTIONS = ("interactions.csv", "interactions.csv.gz", "interactions.parquet")
ITEMS = ("items.jsonl", "items.parquet", "items.csv", "items.jsonl.gz", "items.csv.gz")


def detect(files: Files) -> bool:
    """Whether `files` looks like a plain data folder."""
    return any(files.find(name) for name in (*INTERACTIONS, *ITEMS))


def read(files: Files, config: DataConfig, problems: Problems) -> RawData:
    """Read both tables; `config` plays its part in the validation only."""
    return RawData(
        interactions=_read(files, INTERACTIONS, problems, "interactions"),
        items=_read(files, ITEMS, problems, "items"),
    )


def _read(files: Files, names: Sequence[str], problems: Problems, what: str) -> Table | None:
    name = files.find_one(names, problems, what)
    raw = files.read(name, problems) if name else None
    if name is None or raw is None:
        return None
    if name.endswith(".parquet"):
        return read_parquet(raw, files.label(name), problems)
    if name.removesuffix(".gz").endswith(".jsonl"):
        return read_json_lines(raw, files.label(name), problems)
    return read_delimited(raw, files.label(name), problems)
