"""RecBole's atomic files: ``NAME.inter`` and ``NAME.item``, tabs, a header of typed names (``class:token_seq``).

A ``token_seq`` column becomes a list of words, apart from the title, where RecBole means one text. The film data of
RecBole names its columns ``movie_title``, ``release_year`` and ``class``; they become title, year and genres, and a
trailing article goes to the front as for `llmrec.data.movielens`. RecBole writes what it does not know as
``unknown`` (or ``unkonwn``): such attribute values are left out and counted; a title stays as it is.
"""

from __future__ import annotations

from pathlib import PurePosixPath

import polars as pl

from llmrec.data.config import DataConfig
from llmrec.data.files import Files
from llmrec.data.movielens import natural_titles
from llmrec.data.problems import Problems, counted
from llmrec.data.source import RawData
from llmrec.data.tables import Table, read_delimited

_RENAMED = {"movie_title": "title", "release_year": "year", "class": "genres"}
_UNKNOWN = ("unknown", "unkonwn", "")


def detect(files: Files) -> bool:
    """Whether there is an ``.inter`` file."""
    return any(name.endswith(".inter") for name in files.names)


def read(files: Files, config: DataConfig, problems: Problems) -> RawData:
    """Read the one ``.inter`` file and the ``.item`` file beside it."""
    stems = sorted({name.removesuffix(".inter") for name in files.names if name.endswith(".inter")})
    if len(stems) != 1:
        what = f"several data sets ({', '.join(stems)}); keep one" if stems else "no .inter file"
        problems.add("missing file", f"{files.path}: {what}")
        return RawData(None, None)
    name = PurePosixPath(stems[0]).name
    events = _read(files, f"{name}.inter", problems, "interactions")
    items = _read(files, f"{name}.item", problems, "items")
    interactions = None
    if events is not None:
        plain = {typed: typed.partition(":")[0] for typed in events.frame.columns}
        interactions = events.with_frame(events.frame.rename(plain))
    if items is None:
        return RawData(interactions, None)
    return _tidy(interactions, items, config)


def _read(files: Files, name: str, problems: Problems, what: str) -> Table | None:
    found = files.find_one([name], problems, what)
    raw = files.read(found, problems) if found else None
    if found is None or raw is None:
        return None
    return read_delimited(raw, files.label(found), problems, separator="\t", quoted=False)


def _tidy(interactions: Table | None, items: Table, config: DataConfig) -> RawData:
    types = {name: kind for name, _, kind in (typed.partition(":") for typed in items.frame.columns)}
    frame = items.frame.rename({typed: typed.partition(":")[0] for typed in items.frame.columns})
    renamed = {old: new for old, new in _RENAMED.items() if old in types and new not in types}
    if config.columns.title != "title":
        renamed.pop("movie_title", None)
    frame = frame.rename(renamed)
    types = {renamed.get(name, name): kind for name, kind in types.items()}
    notes = []
    title = config.columns.title
    if title in frame.columns and "movie_title" in renamed:
        titles, moved = natural_titles(frame[title])
        frame = frame.with_columns(titles.alias(title))
        notes.append(f"{counted(moved, 'title')} put into natural order (Net, The: The Net)")

    lists = [name for name, kind in types.items() if kind == "token_seq" and name != title]
    scalars = [name for name, kind in types.items() if kind == "token" and name not in (title, config.columns.item_id)]
    for name in (*lists, *scalars):
        unknown = frame[name].is_in(_UNKNOWN).fill_null(value=False)
        if num_unknown := int(unknown.sum()):
            notes.append(f"{counted(num_unknown, 'item')} with unknown {name}")
            frame = frame.with_columns(pl.when(~unknown).then(pl.col(name)).alias(name))
    frame = frame.with_columns(
        pl.col(name).fill_null("").str.split(" ").list.filter(pl.element() != "") for name in lists
    )
    return RawData(
        interactions,
        items.with_frame(frame),
        text_fields=("title",),
        attributes=(*lists, *scalars),
        notes=tuple(notes),
    )
