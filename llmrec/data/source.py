"""What every source format hands over: two tables, and what it knows about their columns."""

from __future__ import annotations

from dataclasses import dataclass

from llmrec.data.tables import Table


@dataclass(frozen=True)
class RawData:
    """A data set as read, before validation.

    Attributes:
        interactions: None where the file is missing or damaged (then a problem says so).
        items: likewise.
        text_fields: the source's default; None lets the validation choose.
        attributes: likewise.
        notes: what reading changed, with counts.
    """

    interactions: Table | None
    items: Table | None
    text_fields: tuple[str, ...] | None = None
    attributes: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()
