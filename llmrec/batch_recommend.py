"""Recommendations for a file of users, in numbered parts, so that a killed run goes on where it stopped.

Users are read once, in the order of the file; part N holds users ``N * PART_SIZE`` and following, and is written beside
its place and renamed. ``<output>.parts/job.json`` says what the parts were made from; going on with another input,
checkpoint or setting is refused. At the end the parts become one Parquet file and their folder goes.
"""

from __future__ import annotations

import difflib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from llmrec.data.assets import sha256_file
from llmrec.data.config import Columns
from llmrec.data.files import Files
from llmrec.data.problems import SHOWN, Problems, listed
from llmrec.data.tables import Table, read_delimited, read_json_lines, read_parquet
from llmrec.data.validate import check_interactions
from llmrec.errors import InputError, MismatchError
from llmrec.recommendation import Search
from llmrec.recommender import Recommender

PART_SIZE = 128
"""Users a part: what a kill loses at most, seconds to a minute or two of work."""
SCHEMA = {
    "user_id": pl.String,
    "rank": pl.Int32,
    "item_id": pl.String,
    "title": pl.String,
    "sid": pl.String,
    "score": pl.Float64,
}


@dataclass(frozen=True)
class UserHistories:
    """Users in the order of their file, and the items of each, oldest first."""

    user_ids: tuple[str, ...]
    histories: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class BatchSummary:
    """What `recommend_file` did."""

    output: Path
    users: int
    """Users of the input."""
    users_resumed: int
    """Users whose recommendations an earlier run had finished."""
    users_unknown_only: tuple[str, ...]
    """Users whose history has no item with a SID: they are not in the output."""
    users_short: int
    """Users with fewer recommendations than were asked for."""
    unknown_items: int
    """History entries without a SID that were skipped, over all users."""


def read_histories(path: Path) -> UserHistories:
    """Read ``user_id`` with ``item_id`` (and ``timestamp``) rows, or with a list ``history``.

    Rows are sorted by time where there is one, ties and rows without time in file order.

    Args:
        path: ``.parquet``, ``.csv``, ``.csv.gz``, ``.jsonl`` or ``.jsonl.gz``.

    Raises:
        DataError: every problem of the file (missing columns, empty ids, unparsable times, a user twice).
        InputError: another kind of file.
    """
    problems = Problems()
    table = _read_table(path, problems)
    found = None
    if table is not None and not problems:
        kind = "history" if "history" in table.frame.columns else "item_id"
        missing = [name for name in ("user_id", kind) if name not in table.frame.columns]
        for name in missing:
            near = difflib.get_close_matches(name, table.frame.columns, n=1, cutoff=0.5)
            advice = f"did you mean {near[0]!r}?" if near else f"there are: {listed(table.frame.columns)}"
            problems.add("missing column", f"{table.file}: no column {name!r}; {advice}")
        if not missing:
            found = (_from_lists if kind == "history" else _from_rows)(table, problems)
    problems.raise_any(str(path), hint="give columns user_id and item_id (and timestamp), or user_id and history")
    return found or UserHistories((), ())


def recommend_file(
    recommender: Recommender,
    source: Path,
    output: Path,
    *,
    k: int = 10,
    num_beams: int | None = None,
    search: Search = "beam",
    progress: Callable[[int, int], None] | None = None,
) -> BatchSummary:
    """Recommend to every user of `source` and write ``user_id, rank, item_id, title, sid, score`` to `output`.

    Args:
        recommender: what to ask.
        source: see `read_histories`.
        output: a new Parquet file.
        k: items a user.
        num_beams: as for `Recommender.recommend`.
        search: as for `Recommender.recommend`.
        progress: called with (users done, users) after each part.

    Raises:
        InputError: `output` exists, or `source` cannot be used.
        MismatchError: unfinished parts of another job lie there.
    """
    if output.exists():
        raise InputError(f"{output} exists already and is not overwritten", hint="remove it or give another name")
    users = read_histories(source)
    folder = output.with_name(output.name + ".parts")
    job = {
        "input_sha256": sha256_file(source),
        "checkpoint": recommender.checkpoint.fingerprint,
        "sid_table": recommender.checkpoint.table.rows_fingerprint,
        "k": k,
        "num_beams": num_beams,
        "search": search,
        "engine": recommender.engine,
        "part_size": PART_SIZE,
    }
    _open_job(folder, job)

    starts = range(0, len(users.user_ids), PART_SIZE)
    parts = [folder / f"part-{number:05d}.parquet" for number in range(len(starts))]
    resumed = 0
    for start, part in zip(starts, parts, strict=True):
        chosen = slice(start, start + PART_SIZE)
        done = min(start + PART_SIZE, len(users.user_ids))
        if part.exists():
            resumed += done - start
        else:
            frame = _recommend(recommender, users.user_ids[chosen], users.histories[chosen], k, num_beams, search)
            _write(frame, part)
        if progress:
            progress(done, len(users.user_ids))

    result = pl.concat([pl.DataFrame(schema=SCHEMA), *(pl.read_parquet(part) for part in parts)])
    _write(result, output)
    shutil.rmtree(folder)
    unknown_only = [
        user
        for user, history in zip(users.user_ids, users.histories, strict=True)
        if not recommender.knows_any(history)
    ]
    counts = result.group_by("user_id").len()["len"]
    known = frozenset(recommender.checkpoint.table.item_ids)
    return BatchSummary(
        output=output,
        users=len(users.user_ids),
        users_resumed=resumed,
        users_unknown_only=tuple(unknown_only),
        users_short=int((counts < k).sum()) + len(users.user_ids) - len(unknown_only) - len(counts),
        unknown_items=sum(item_id not in known for history in users.histories for item_id in history),
    )


def _recommend(
    recommender: Recommender,
    user_ids: tuple[str, ...],
    histories: tuple[tuple[str, ...], ...],
    k: int,
    num_beams: int | None,
    search: Search,
) -> pl.DataFrame:
    asked = [place for place, history in enumerate(histories) if recommender.knows_any(history)]
    answers = recommender.recommend_many([histories[i] for i in asked], k, num_beams=num_beams, search=search)
    rows = [
        (user_ids[place], rank, item.item_id, item.title, item.sid, item.score)
        for place, answer in zip(asked, answers, strict=True)
        for rank, item in enumerate(answer, start=1)
    ]
    return pl.DataFrame(rows, schema=SCHEMA, orient="row")


def _open_job(folder: Path, job: dict[str, Any]) -> None:
    record = folder / "job.json"
    if not folder.exists():
        folder.mkdir(parents=True)
    if not record.exists():
        waiting = folder / ".job.json"
        waiting.write_text(json.dumps(job, indent=2) + "\n", encoding="utf-8")
        waiting.rename(record)
        return
    before = json.loads(record.read_text(encoding="utf-8"))
    changed = [f"{key} was {before.get(key)}, is {value}" for key, value in job.items() if before.get(key) != value]
    if changed:
        raise MismatchError(
            f"{folder} holds unfinished recommendations of another job: {'; '.join(changed)}.",
            hint="repeat that job to finish it, or remove the folder to start anew",
        )


def _write(frame: pl.DataFrame, path: Path) -> None:
    waiting = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        frame.write_parquet(waiting)
        waiting.rename(path)
    finally:
        waiting.unlink(missing_ok=True)


# -- reading -----------------------------------------------------------------------------------------------------------


def _read_table(path: Path, problems: Problems) -> Table | None:
    kind = path.name.removesuffix(".gz").rpartition(".")[2]
    readers = {"csv": read_delimited, "jsonl": read_json_lines, "parquet": read_parquet}
    if kind not in readers:
        raise InputError(f"{path} is none of .parquet, .csv and .jsonl", hint="convert it to one of them")
    if not path.is_file():
        raise InputError(f"{path} does not exist", hint="check the path given to --input")
    raw = Files(path.parent, (path.name,)).read(path.name, problems)
    return None if raw is None else readers[kind](raw, path.name, problems)


def _from_rows(table: Table, problems: Problems) -> UserHistories | None:
    frame = table.frame
    if "timestamp" not in frame.columns:
        frame = frame.with_columns(timestamp=pl.int_range(pl.len(), dtype=pl.Int64))
    used = table.with_frame(frame.select("user_id", "item_id", "timestamp"))
    interactions = check_interactions(used, Columns(), problems)
    if interactions is None:
        return None
    users = list(dict.fromkeys(interactions.frame["user_id"]))
    ordered = interactions.frame.sort("timestamp", maintain_order=True)
    items = ordered.group_by("user_id", maintain_order=True).agg("item_id")
    by_user = dict(zip(items["user_id"], items["item_id"].to_list(), strict=True))
    return UserHistories(tuple(users), tuple(tuple(by_user[user]) for user in users))


def _from_lists(table: Table, problems: Problems) -> UserHistories | None:
    frame = table.frame
    if not isinstance(frame.schema["history"], pl.List):
        problems.add(
            "no lists", f"{table.file}: 'history' is {frame.schema['history']}, not lists; CSV files take item_id rows"
        )
        return None
    users = frame["user_id"].cast(pl.String)
    histories = frame["history"].cast(pl.List(pl.String))
    checks = {
        "empty user_id": users.is_null() | (users == "").fill_null(value=True),
        "user_id again": ~users.is_first_distinct(),
        "no history (an empty list is fine)": histories.is_null(),
        "an empty item id in the history": histories.list.eval(pl.element().is_null())
        .list.any()
        .fill_null(value=False),
    }
    for kind, bad in checks.items():
        rows = np.flatnonzero(bad.to_numpy())
        problems.add_many(kind, [f"{place}: {kind}" for place in table.places(rows[:SHOWN])], len(rows))
    if problems:
        return None
    return UserHistories(tuple(users), tuple(tuple(history) for history in histories.to_list()))
