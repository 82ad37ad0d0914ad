"""Judge what another recommender wrote to a file: the same users, targets, catalogue and metrics as every other model.

Two forms, as Parquet, CSV or JSON lines; ids are text, other columns are ignored:

* one row a user: ``user_id`` and a list column ``items`` (or ``item_ids``, ``recommendations``), best first; in CSV the
  ids are separated by spaces, or the cell is a JSON list;
* one row a recommendation: ``user_id``, ``item_id`` and ``rank`` (1 is best) or ``score`` (more is better).

A file holds one ranking, both modes are made from it: filtered mode takes the history out and the rest moves up, so
give some more items than 20. What is wrong with single rows is counted, not dropped in silence: an item that the
catalogue lacks keeps its place and can be no hit; an item outside the evaluation catalogue is taken out, as for every
other model; the first place of a duplicate counts; a user without a list is a miss.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from llmrec.data.dataset import Dataset
from llmrec.errors import DataError, InputError
from llmrec.eval.config import EvalConfig, Mode
from llmrec.eval.judged import Judged
from llmrec.eval.ranker import Progress, RankedUsers, Ranking
from llmrec.metrics import ranks_from_lists

LIST_COLUMNS = ("items", "item_ids", "recommendations")
_SHAPES = "user_id with a list column items, or rows of user_id, item_id and rank or score"


@dataclass(frozen=True, eq=False)
class PredictionsRanker:
    """A `Ranker` that looks up lists by user id.

    Attributes:
        lists: item ids per user id, best first.
        source: where they come from, for the report.
    """

    lists: dict[str, list[str]]
    source: str

    @classmethod
    def read(cls, path: Path) -> PredictionsRanker:
        """Read a file of predictions.

        Raises:
            InputError: the file is not there, cannot be parsed, or has another ending.
            DataError: columns or rows are wrong; all problems are listed.
        """
        return cls(_lists(_read(path), path), path.name)

    def rank(self, dataset: Dataset, judged: Judged, config: EvalConfig, progress: Progress) -> RankedUsers:
        """Place the targets in the lists.

        Raises:
            DataError: no judged user has a list, or no item of the lists is in the catalogue.
        """
        place_of = {item_id: place for place, item_id in enumerate(judged.split.items)}
        known = place_of.keys() | set(dataset.catalog.item_ids)
        missing = sum(user not in self.lists for user in judged.user_ids)
        mine = [self.lists.get(user, []) for user in judged.user_ids]
        everybody = set(judged.split.users) | set(dataset.interactions.frame["user_id"].unique())
        problems = []
        if missing == len(judged):
            problems.append(
                f"none of the {len(judged):,} judged users has a list ({_some(self.lists, judged.user_ids)})"
            )
        listed = {item_id for items in self.lists.values() for item_id in items}
        if listed and not listed & known:
            problems.append(f"no listed item is in the catalogue ({_some(listed, judged.split.items)})")
        if problems:
            raise DataError(
                f"{self.source} cannot be judged on {dataset.name}:", problems, hint="ids must be the data's"
            )

        duplicates = invalid = outside = repeated = checked = 0
        found: dict[Mode, list[list[int]]] = {mode: [] for mode in config.modes}
        for items, history in zip(mine, judged.histories, strict=True):
            distinct = list(dict.fromkeys(items))
            checked += len(distinct)
            duplicates += len(items) - len(distinct)
            unknown = sum(item not in known for item in distinct)
            invalid += unknown
            inside = [item for item in distinct if item in place_of or item not in known]
            outside += len(distinct) - len(inside)
            # An unknown item holds its place under a number that no item has.
            places = [place_of.get(item, -1 - number) for number, item in enumerate(inside)]
            past = set(history.tolist())
            repeated += sum(place in past for place in places)
            for mode in config.modes:
                found[mode].append([place for place in places if mode == "unfiltered" or place not in past])
        progress("predictions", len(judged), len(judged))
        rankings = {
            mode: Ranking(
                ranks_from_lists(lists, judged.targets),
                tuple(np.array([p for p in places[: config.top_k] if p >= 0], np.int64) for places in lists),
            )
            for mode, lists in found.items()
        }
        lengths = [len(places) for places in found[config.main_mode]]
        details = {
            "kind": "predictions",
            "source": self.source,
            "users_without_list": missing,
            "unknown_users": sum(user not in everybody for user in self.lists),
            "unknown_items": invalid,
            "items_outside_evaluation": outside,
            "duplicates": duplicates,
            "history_items": repeated,
            "short_lists": sum(length < config.top_k for length in lengths),
        }
        return RankedUsers(rankings, checked=checked, invalid=invalid, duplicates=duplicates, details=details)


def _read(path: Path) -> pl.DataFrame:
    readers: dict[str, Callable[[Path], pl.DataFrame]] = {
        ".parquet": lambda file: pl.read_parquet(file),
        ".csv": lambda file: pl.read_csv(file, infer_schema=False),
        ".jsonl": lambda file: pl.read_ndjson(file, infer_schema_length=None),
    }
    if path.suffix not in readers:
        raise InputError(f"{path}: predictions end in {', '.join(readers)}", hint=f"give {_SHAPES}")
    if not path.is_file():
        raise InputError(f"{path}: there is no such file")
    try:
        return readers[path.suffix](path)
    except (pl.exceptions.PolarsError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path} cannot be read as {path.suffix[1:]}: {reason}", hint=f"give {_SHAPES}") from error


def _lists(frame: pl.DataFrame, path: Path) -> dict[str, list[str]]:
    problems: list[str] = []
    columns = set(frame.columns)
    if "user_id" not in columns:
        problems.append("there is no column user_id")
    list_column = next((name for name in LIST_COLUMNS if name in columns), None)
    order = next((name for name in ("rank", "score") if name in columns), None)
    if list_column is None and not ("item_id" in columns and order):
        problems.append(f"there is neither a list column ({', '.join(LIST_COLUMNS)}) nor item_id with rank or score")
    if frame.is_empty():
        problems.append("there is no row")
    if problems:
        _refuse(path, problems, f"the columns are {', '.join(frame.columns)}; give {_SHAPES}")
    if nulls := frame["user_id"].null_count():
        problems.append(f"{nulls:,} rows have no user_id")
    frame = frame.with_columns(pl.col("user_id").cast(pl.String))
    if list_column is not None:
        return _from_lists(frame, list_column, path, problems)
    assert order is not None
    return _from_rows(frame, order, path, problems)


def _from_lists(frame: pl.DataFrame, column: str, path: Path, problems: list[str]) -> dict[str, list[str]]:
    if repeats := frame.height - frame["user_id"].n_unique():
        problems.append(f"{repeats:,} rows repeat a user_id, so that it is not clear which list counts")
    if frame[column].dtype == pl.String:
        cells: list[list[str] | None] = [_cell(cell) for cell in frame[column].to_list()]
    elif isinstance(frame[column].dtype, pl.List):
        cells = frame[column].cast(pl.List(pl.String)).to_list()
    else:
        cells = []
        problems.append(f"{column} is {frame[column].dtype}, not a list of ids")
    if broken := sum(cell is None or any(item is None for item in cell) for cell in cells):
        problems.append(f"{broken:,} rows have no list in {column}, or one with an empty or unreadable entry")
    if problems:
        _refuse(path, problems, f"give {_SHAPES}")
    return {user: cell or [] for user, cell in zip(frame["user_id"].to_list(), cells, strict=True)}


def _cell(cell: str | None) -> list[str] | None:
    """A list from a CSV cell: a JSON list, or ids separated by spaces; None where it is neither."""
    if cell is None or not cell.lstrip().startswith("["):
        return None if cell is None else cell.split()
    try:
        values = json.loads(cell)
    except ValueError:
        return None
    return [str(value) for value in values] if all(isinstance(value, str | int) for value in values) else None


def _from_rows(frame: pl.DataFrame, order: str, path: Path, problems: list[str]) -> dict[str, list[str]]:
    values = frame[order].cast(pl.Float64, strict=False)
    if unusable := int((values.is_null() | values.is_nan()).sum()):
        problems.append(f"{unusable:,} rows have no number in {order}")
    if nulls := frame["item_id"].null_count():
        problems.append(f"{nulls:,} rows have no item_id")
    if problems:
        _refuse(path, problems, f"give {_SHAPES}")
    ordered = frame.with_columns(pl.col("item_id").cast(pl.String), values.alias(order)).sort(
        order, descending=order == "score", maintain_order=True
    )
    grouped = ordered.group_by("user_id", maintain_order=True).agg("item_id")
    return dict(zip(grouped["user_id"].to_list(), grouped["item_id"].to_list(), strict=True))


def _refuse(path: Path, problems: list[str], hint: str) -> None:
    raise DataError(f"{path} holds no predictions that can be judged:", problems, hint=hint)


def _some(given: Iterable[str], known: Iterable[str]) -> str:
    def first(ids: Iterable[str]) -> str:
        return ", ".join(repr(one) for one in sorted(ids)[:3])

    return f"the file has {first(given)} …; the data {first(known)} …"
