"""Dataset: everything read, checked and split. `read_data` is the one way in.

>>> from llmrec.data.config import DataConfig
>>> dataset = read_data(DataConfig(path="asset:ml-100k"))  # doctest: +SKIP
>>> print("\\n".join(dataset.report.lines()))  # doctest: +SKIP
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl

from llmrec.data import folder, movielens, recbole
from llmrec.data.catalog import Catalog
from llmrec.data.config import DataConfig
from llmrec.data.files import Files
from llmrec.data.interactions import Interactions
from llmrec.data.problems import Problems, listed
from llmrec.data.report import DataReport
from llmrec.data.source import RawData
from llmrec.data.split import MIN_EVENTS, Split, leave_one_out
from llmrec.data.validate import check_interactions, check_items
from llmrec.errors import DataError

SOURCES: dict[str, tuple[Callable[[Files], bool], Callable[[Files, DataConfig, Problems], RawData]]] = {
    "folder": (folder.detect, folder.read),
    "movielens": (movielens.detect, movielens.read),
    "recbole": (recbole.detect, recbole.read),
}


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set as every later stage sees it."""

    name: str
    interactions: Interactions
    catalog: Catalog
    split: Split
    report: DataReport

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the content of interactions and catalogue, for stage caching; file formats do not count."""
        digest = hashlib.sha256()
        for frame in (self.interactions.frame, self.catalog.frame):
            _digest_frame(digest, frame)
        digest.update(repr((self.catalog.text_fields, self.catalog.attributes)).encode())
        return digest.hexdigest()


def read_data(config: DataConfig) -> Dataset:
    """Read, validate and split what `config` names.

    Raises:
        DataError: something is wrong with the data; all problems are listed, with file and line.
        InputError: an unknown asset.
        EnvironmentProblem: an asset cannot be fetched.
    """
    path = locate(config.path)
    name = config.name or (config.path.partition(":")[2] if config.path.startswith("asset:") else path.stem)
    files = Files.open(path)
    source = config.source if config.source != "auto" else _detect(files)
    problems = Problems()
    raw = SOURCES[source][1](files, config, problems)
    interactions = check_interactions(raw.interactions, config.columns, problems) if raw.interactions else None
    catalog = (
        check_items(raw.items, config, problems, text_fields=raw.text_fields, attributes=raw.attributes)
        if raw.items
        else None
    )
    split = leave_one_out(interactions) if interactions else None
    if split and not split.users:
        where = raw.interactions.file if raw.interactions else path
        problems.add("no users", f"{where}: none of {split.counts.users:,} users has {MIN_EVENTS} events")
    unknown = (
        interactions.frame.filter(~pl.col("item_id").is_in(catalog.frame["item_id"].implode()))
        if (interactions and catalog)
        else pl.DataFrame({"item_id": []})
    )
    if interactions and catalog and unknown.height == interactions.num_events:
        theirs = listed(catalog.item_ids, 2)
        ours = listed(interactions.frame["item_id"].head(2).to_list())
        problems.add(
            "no known item", f"{path}: no event has an item of the catalogue (events: {ours}; items: {theirs})"
        )
    problems.raise_any(f"The data set {name} ({path})")
    assert interactions is not None  # else there was a problem
    assert catalog is not None
    assert split is not None
    assert raw.interactions is not None
    assert raw.items is not None

    used = {"item_id", config.columns.item_id, config.columns.title, *catalog.frame.columns}
    seen = interactions.frame["item_id"].unique()
    report = DataReport(
        name=name,
        source=source,
        files=(raw.interactions.file, raw.items.file),
        events=interactions.num_events,
        users=split.counts.users,
        catalog_items=catalog.num_items,
        users_too_short=split.counts.users_too_short,
        events_too_short=split.counts.events_too_short,
        unknown_item_events=unknown.height,
        unknown_items=unknown["item_id"].n_unique(),
        items_without_events=int((~catalog.frame["item_id"].is_in(seen.implode())).sum()),
        empty_titles=int((catalog.frame["title"].str.strip_chars() == "").sum()),
        blank_lines=raw.interactions.blank_lines + raw.items.blank_lines,
        unused_columns=tuple(column for column in raw.items.frame.columns if column not in used),
        notes=raw.notes,
    )
    return Dataset(name, interactions, catalog, split, report)


def locate(path: str) -> Path:
    """The local path that a recipe's ``data.path`` means; an asset is fetched where the cache lacks it."""
    if path.startswith("asset:"):
        from llmrec.data.assets import resolve_asset

        return Path(resolve_asset(path, kind="data"))
    expanded = os.path.expandvars(os.path.expanduser(path))
    if "$" in expanded:
        raise DataError(
            "The data set cannot be read:",
            [f"{path}: the environment variable is not set"],
            hint="export it, or give the path itself as data.path",
        )
    return Path(expanded)


def _detect(files: Files) -> str:
    found = [name for name, (detect, _) in SOURCES.items() if detect(files)]
    if len(found) == 1:
        return found[0]
    if found:
        raise DataError(
            "The format of the data set is not clear:",
            [f"{files.path}: looks like {' and like '.join(found)}"],
            hint=f"set data.source to one of {', '.join(SOURCES)}",
        )
    raise DataError(
        "The data set cannot be read:",
        [f"{files.path}: no data set in a known format; there is {listed([Path(n).name for n in files.names])}"],
        hint=(
            f"a plain folder has {' or '.join(folder.INTERACTIONS)} and {' or '.join(folder.ITEMS[:3])}; "
            "MovieLens and RecBole folders are read as they are"
        ),
    )


def _digest_frame(digest: hashlib._Hash, frame: pl.DataFrame) -> None:
    """Column by column: name, type, then lengths and bytes, so that no two contents share a digest."""
    for series in frame.iter_columns():
        digest.update(f"\n{series.name}\t{series.dtype}\t{len(series)}\n".encode())
        while isinstance(series.dtype, pl.List):
            digest.update(series.list.len().fill_null(2**32 - 1).cast(pl.UInt32).to_numpy().tobytes())
            series = series.explode(empty_as_null=False, keep_nulls=False)
        if series.dtype.is_numeric():
            digest.update(series.is_null().to_numpy().tobytes())
            digest.update(np.ascontiguousarray(series.fill_null(0).to_numpy()).tobytes())
            continue
        text = series.cast(pl.String)
        digest.update(text.str.len_bytes().fill_null(2**32 - 1).cast(pl.UInt32).to_numpy().tobytes())
        text = text.fill_null("")
        for start in range(0, len(text), 1_000_000):  # one joined text a slice: bounded memory
            digest.update(text.slice(start, 1_000_000).str.join("").item().encode())
