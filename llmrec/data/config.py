"""The ``data:`` part of a recipe: where a data set lies and what its columns are called. It filters nothing."""

from __future__ import annotations

from typing import Literal

from llmrec.config import Config


class Columns(Config):
    """Names of the columns in the files, where they differ from ours."""

    user_id: str = "user_id"
    """Who: ids are text, whatever they look like."""
    item_id: str = "item_id"
    """What: the same name in the interactions and in the items."""
    timestamp: str = "timestamp"
    """When: numbers of any unit, or ISO dates and times; ties keep the order of the file."""
    event: str | None = None
    """Kind of event, such as view or buy. None takes a column ``event`` where there is one; a name must be there."""
    weight: str | None = None
    """Weight of an event, a number. None takes a column ``weight`` where there is one; a name must be there."""
    title: str = "title"
    """The name people know an item by."""


class DataConfig(Config):
    """Which data set to read, and which of its columns are an item's text and attributes."""

    path: str
    """A folder, a zip archive, or ``asset:NAME``; ``~`` and environment variables such as
    ``$LLMREC_DATA_DIR/amazon-games-10core`` are expanded."""
    source: Literal["auto", "folder", "movielens", "recbole"] = "auto"
    """The format. ``auto`` looks at the names of the files; ``folder`` is ``interactions.{csv,csv.gz,parquet}`` with
    ``items.{jsonl,parquet,csv}``, ``movielens`` GroupLens' folder or zip, ``recbole`` RecBole's atomic files."""
    name: str | None = None
    """What reports call the data set; by default the last part of the path."""
    columns: Columns = Columns()
    """Names of columns that differ from the defaults."""
    text_fields: tuple[str, ...] | None = None
    """Item columns that are joined into the text an encoder reads. By default the title and, in a plain folder, every
    other column of text that `attributes` does not name."""
    attributes: tuple[str, ...] | None = None
    """Item columns with values that items share. By default a plain folder's columns of lists; genres and year of
    MovieLens."""
