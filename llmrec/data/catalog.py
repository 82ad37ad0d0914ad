"""Catalog: what is known about the items, as text for encoders and people and as attributes for tasks."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import polars as pl

from llmrec.errors import InputError


@dataclass(frozen=True, eq=False)
class Catalog:
    """Items by id, in the order of their file.

    Attributes:
        frame: ``item_id`` (String, unique), ``title`` (String, may be empty), further text columns and
            attribute columns (text or list of text).
        text_fields: columns that make up an item's text, most telling first, such as ``("title", "description")``.
        attributes: columns with values that items share, such as ``("genres", "year")``.
    """

    frame: pl.DataFrame
    text_fields: tuple[str, ...] = ("title",)
    attributes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        wanted = ("item_id", "title", *self.text_fields, *self.attributes)
        if missing := [name for name in dict.fromkeys(wanted) if name not in self.frame.columns]:
            raise InputError(f"the catalogue lacks the columns {missing}; there are {self.frame.columns}")
        if self.frame.schema["item_id"] != pl.String:
            raise InputError(
                f"item_id is {self.frame.schema['item_id']}, not text", hint="ids are text: cast to String"
            )
        if self.frame["item_id"].n_unique() != self.frame.height:
            raise InputError("the catalogue holds some item_id more than once")

    @cached_property
    def item_ids(self) -> tuple[str, ...]:
        """Ids in frame order."""
        return tuple(self.frame["item_id"])

    @property
    def num_items(self) -> int:
        """Number of items."""
        return self.frame.height

    def __contains__(self, item_id: object) -> bool:
        return item_id in self._rows

    def row(self, item_id: str) -> int:
        """The item's row in `frame`.

        Raises:
            InputError: no item has this id; near misses are named.
        """
        if item_id not in self._rows:
            near = difflib.get_close_matches(item_id, self.item_ids[:100_000], n=3)
            raise InputError(
                f"no item of the catalogue has the id {item_id!r}",
                hint=f"close ids: {', '.join(near)}" if near else f"ids look like {', '.join(self.item_ids[:3])}",
            )
        return self._rows[item_id]

    def title(self, item_id: str) -> str:
        """The title, or where that is empty the first text field that is not (the id as the last resort)."""
        row = self.row(item_id)
        for name in ("title", *self.text_fields):
            if text := self._joined(name, row):
                return text
        return item_id

    def text(self, item_id: str) -> str:
        """What an encoder reads: the text fields, then ``name: value, value`` for each attribute, one a line."""
        row = self.row(item_id)
        lines = [self._joined(name, row) for name in self.text_fields]
        lines += [f"{name}: {', '.join(values)}" for name, values in self.attribute_values(item_id).items()]
        return "\n".join(line for line in lines if line)

    def texts(self) -> list[str]:
        """`text` of every item, in frame order."""
        return [self.text(item_id) for item_id in self.item_ids]

    def attribute_values(self, item_id: str) -> dict[str, tuple[str, ...]]:
        """The item's values per attribute; attributes without a value are left out."""
        row = self.row(item_id)
        values = {name: _as_texts(self._columns[name][row]) for name in self.attributes}
        return {name: found for name, found in values.items() if found}

    @cached_property
    def _rows(self) -> Mapping[str, int]:
        return {item_id: row for row, item_id in enumerate(self.item_ids)}

    @cached_property
    def _columns(self) -> Mapping[str, list[Any]]:
        names = dict.fromkeys(("title", *self.text_fields, *self.attributes))
        return {name: self.frame[name].to_list() for name in names}

    def _joined(self, name: str, row: int) -> str:
        return ", ".join(_as_texts(self._columns[name][row]))


def _as_texts(value: Any) -> tuple[str, ...]:
    parts = value if isinstance(value, list) else [value]
    texts = (" ".join(str(part).split()) for part in parts if part is not None)
    return tuple(text for text in texts if text)
