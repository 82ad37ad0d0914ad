"""Checks tables and makes `Interactions` and `Catalog` of them; every problem is found in one pass.

Errors (a missing column, an unparsable time, an item twice, an item without any text) go into a `Problems`. What can
be used but should be known (an empty title beside other text, an interaction with an item that the catalogue lacks)
is counted in the `DataReport` (`llmrec.data.report`). No row is dropped.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence

import numpy as np
import polars as pl

from llmrec.data.catalog import Catalog
from llmrec.data.config import Columns, DataConfig
from llmrec.data.interactions import REQUIRED, Interactions
from llmrec.data.problems import SHOWN, Problems, listed
from llmrec.data.tables import Table

_TIME_FORMATS = ("%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%dT%H:%M", "%Y-%m-%d %H:%M")


def check_interactions(table: Table, columns: Columns, problems: Problems) -> Interactions | None:
    """Interactions from a table, or None where `problems` now says why not."""
    wanted = {name: getattr(columns, name) or name for name in (*REQUIRED, "event", "weight")}
    required = [name for name in wanted if getattr(columns, name) is not None]
    if not _check_columns(table, {name: wanted[name] for name in required}, problems):
        return None
    if table.frame.is_empty():
        problems.add("empty data", f"{table.file}: no rows")
        return None
    frame = table.frame
    present = {name: given for name, given in wanted.items() if given in frame.columns}
    made: dict[str, pl.Series | None] = {
        "user_id": _check_ids(table, present["user_id"], problems),
        "item_id": _check_ids(table, present["item_id"], problems),
        "timestamp": _check_times(table, present["timestamp"], problems),
    }
    if "event" in present:
        made["event"] = _text(table, present["event"], problems)
    if "weight" in present:
        made["weight"] = _check_numbers(table, present["weight"], problems)
    context = [name for name in frame.columns if name not in present.values()]
    if clash := [name for name in context if name in made]:
        problems.add("column clash", f"{table.file}:1: {listed(clash)}: the recipe takes another column for this name")
    if problems:
        return None
    ready = [series.alias(name) for name, series in made.items() if series is not None]
    return Interactions(pl.DataFrame([*ready, *(frame[name] for name in context)]))


def check_items(
    table: Table,
    config: DataConfig,
    problems: Problems,
    *,
    text_fields: Sequence[str] | None = None,
    attributes: Sequence[str] | None = None,
) -> Catalog | None:
    """A catalogue from a table, or None where `problems` now says why not.

    Args:
        table: the items.
        config: its `text_fields` and `attributes` win over the source's.
        problems: receives what is wrong.
        text_fields: the source's default.
        attributes: the source's default.
    """
    columns = config.columns
    frame = table.frame
    if not frame.columns:
        problems.add("empty data", f"{table.file}: no items")
        return None
    ours = {columns.item_id: "item_id", columns.title: "title"}
    if clash := [name for given, name in ours.items() if given != name and name in frame.columns]:
        problems.add("column clash", f"{table.file}:1: {listed(clash)}: the recipe takes another column for this name")
        return None
    lists = [name for name, kind in frame.schema.items() if isinstance(kind, pl.List) and name not in ours]
    chosen = config.attributes if config.attributes is not None else attributes
    found_attributes = [ours.get(name, name) for name in chosen or ()]
    if config.attributes is None and attributes is None:
        found_attributes = [name for name in lists if name not in (config.text_fields or ())]
    chosen = config.text_fields if config.text_fields is not None else text_fields
    found_text = [ours.get(name, name) for name in chosen or ()]
    if config.text_fields is None and text_fields is None:
        more = [n for n, kind in frame.schema.items() if kind in (pl.String, pl.Categorical) and n not in ours]
        found_text = ["title", *(name for name in more if name not in found_attributes)]
    theirs = {name: given for given, name in ours.items()}
    wanted = {name: theirs.get(name, name) for name in ("item_id", "title", *found_text, *found_attributes)}
    if not _check_columns(table, wanted, problems):
        return None
    if frame.is_empty():
        problems.add("empty data", f"{table.file}: no items")
        return None

    before = problems.total
    ids = _check_ids(table, columns.item_id, problems)
    made = {name: _text(table, given, problems) for name, given in wanted.items() if name != "item_id"}
    if made["title"] is not None and made["title"].dtype == pl.List:
        made["title"] = made["title"].list.join(", ")
    if ids is not None:
        _check_unique(table, ids, problems)
    fields = {name: _filled(series) for name, series in made.items() if series is not None}
    if all(name in fields for name in found_text):
        silent = ~np.logical_or.reduce([fields[name] for name in found_text])
        rows = np.flatnonzero(silent)
        names = [_shown(ids, row) for row in rows[:SHOWN]]
        lines = [
            f"{place}: item {name} has no text in {' or '.join(found_text)}"
            for place, name in zip(table.places(rows[:SHOWN]), names, strict=True)
        ]
        problems.add_many("items without any text", lines, len(rows))
    if problems.total > before or ids is None:
        return None
    ready = [ids.alias("item_id"), *(series.alias(name) for name, series in made.items() if series is not None)]
    result = pl.DataFrame(ready).with_columns(pl.col("title").fill_null(""))
    return Catalog(result, tuple(found_text), tuple(found_attributes))


def _check_columns(table: Table, wanted: dict[str, str], problems: Problems) -> bool:
    have = table.frame.columns
    plain = {name.lower(): name for name in have if name not in wanted.values()}
    for name, given in wanted.items():
        if given in have:
            continue
        near = difflib.get_close_matches(given.lower(), plain, n=1, cutoff=0.5)
        advice = f"did you mean {plain[near[0]]!r}?" if near else f"there are: {listed(have)}"
        key = f"data.columns.{name}" if name in Columns.model_fields else "data.text_fields or data.attributes"
        place = table.file if table.line_numbers is None else f"{table.file}:1"
        problems.add("missing column", f"{place}: no column {given!r}; {advice} (set {key})")
    return all(given in have for given in wanted.values())


def _text(table: Table, name: str, problems: Problems) -> pl.Series | None:
    """A column as text or list of text."""
    series = table.frame[name]
    if odd := (table.nested or {}).get(name):
        lines = [f"{place}: {name!r} is an object or a nested list" for place in table.places(odd[:SHOWN])]
        problems.add_many(
            "nested values", [f"{line}; only text, numbers and flat lists can be used" for line in lines], len(odd)
        )
        return None
    kind = series.dtype
    inner = kind.inner if isinstance(kind, pl.List) else kind
    if isinstance(inner, pl.List | pl.Struct | pl.Array) or inner in (pl.Binary, pl.Object):
        problems.add(
            "nested values", f"{table.file}: {name!r} is {kind}; only text, numbers and flat lists can be used"
        )
        return None
    return series.cast(pl.List(pl.String) if isinstance(kind, pl.List) else pl.String)


def _check_ids(table: Table, name: str, problems: Problems) -> pl.Series | None:
    series = table.frame[name]
    if series.dtype.is_float() and (series.drop_nulls() == series.drop_nulls().floor()).all():
        series = series.cast(pl.Int64)  # pandas makes 7 a 7.0 in a column with gaps
        text: pl.Series | None = series.cast(pl.String)
    else:
        text = _text(table, name, problems)
    if text is None:
        return None
    if text.dtype == pl.List:
        problems.add("nested values", f"{table.file}: {name!r} holds lists, and an id is one text")
        return None
    empty = np.flatnonzero((text.is_null() | (text == "")).fill_null(value=True).to_numpy())
    problems.add_many(f"empty {name}", [f"{p}: {name} is empty" for p in table.places(empty[:SHOWN])], len(empty))
    return text


def _check_unique(table: Table, ids: pl.Series, problems: Problems) -> None:
    repeated = np.flatnonzero((~ids.is_first_distinct() & ids.is_not_null()).to_numpy())
    if len(repeated):
        first: dict[str, int] = {}
        for row, item_id in enumerate(ids):
            first.setdefault(item_id, row)
        shown = repeated[:SHOWN]
        earlier = table.places([first[ids[int(row)]] for row in shown])
        lines = [
            f"{place}: item_id {ids[int(row)]!r} again, first at {other}"
            for place, row, other in zip(table.places(shown), shown, earlier, strict=True)
        ]
        problems.add_many("duplicate item ids", lines, len(repeated))


def _check_times(table: Table, name: str, problems: Problems) -> pl.Series | None:
    series = table.frame[name]
    if series.dtype.is_temporal():
        times = series.cast(pl.Datetime("us")).cast(pl.Int64)
    elif series.dtype.is_integer():
        times = series.cast(pl.Int64, strict=False)
    elif series.dtype.is_float():
        times = series.cast(pl.Float64)
    elif series.dtype == pl.String:
        times = _parse_times(series.str.strip_chars())
    else:
        problems.add("unparsable time", f"{table.file}: {name!r} is {series.dtype}, not numbers, dates or text")
        return None
    bad = times.is_null() if times.dtype == pl.Int64 else ~times.is_finite().fill_null(value=False)
    _add_values(table, series, bad, "unparsable time", "is not a number, nor an ISO date and time", problems)
    return times


def _parse_times(text: pl.Series) -> pl.Series:
    """Numbers if at least half of the values are, else ISO dates and times (UTC unless they say otherwise)."""
    whole = text.cast(pl.Int64, strict=False)
    if whole.null_count() == 0:
        return whole
    numbers = text.cast(pl.Float64, strict=False)
    if numbers.null_count() * 2 <= len(text):
        # Only unparsable values in the way: keep whole numbers whole.
        return whole if whole.null_count() == numbers.null_count() else numbers
    plain = text.str.replace(r"(Z|[+]00:?00)$", "")
    tries = [plain.str.to_datetime(form, time_unit="us", strict=False) for form in _TIME_FORMATS]
    tries.append(plain.str.to_date("%Y-%m-%d", strict=False).cast(pl.Datetime("us")))
    zoned = text.str.to_datetime("%Y-%m-%dT%H:%M:%S%.f%:z", time_unit="us", strict=False, time_zone="UTC")
    tries.append(zoned.dt.replace_time_zone(None))
    return pl.select(pl.coalesce(*tries)).to_series().cast(pl.Int64)


def _check_numbers(table: Table, name: str, problems: Problems) -> pl.Series:
    numbers = table.frame[name].cast(pl.Float64, strict=False)
    bad = ~numbers.is_finite().fill_null(value=False)
    _add_values(table, table.frame[name], bad, f"unusable {name}", "is not a number", problems)
    return numbers


def _add_values(table: Table, series: pl.Series, bad: pl.Series, kind: str, what: str, problems: Problems) -> None:
    rows = np.flatnonzero(bad.to_numpy())
    lines = [
        f"{place}: {series.name} {series[int(row)]!r} {what}"
        if series[int(row)] is not None
        else f"{place}: {series.name} is empty"
        for place, row in zip(table.places(rows[:SHOWN]), rows[:SHOWN], strict=True)
    ]
    problems.add_many(kind, lines, len(rows))


def _filled(series: pl.Series) -> np.ndarray:
    text = series.list.join(" ", ignore_nulls=True) if series.dtype == pl.List else series
    return (text.fill_null("").str.strip_chars() != "").to_numpy()


def _shown(ids: pl.Series | None, row: int) -> str:
    return repr(ids[int(row)]) if ids is not None else "?"
