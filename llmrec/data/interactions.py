"""Interactions: who met which item, when. One row is one positive event; repeats are separate events."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from llmrec.errors import InputError

REQUIRED = ("user_id", "item_id", "timestamp")


@dataclass(frozen=True, eq=False)
class Interactions:
    """A table of events in the order of its file, which breaks ties between equal timestamps.

    Attributes:
        frame: ``user_id`` and ``item_id`` (String), ``timestamp`` (Int64 or Float64, any unit: only its order
            counts), optionally ``event`` (String) and ``weight`` (Float64), then whatever context columns the
            source carries. No nulls in the first three.
    """

    frame: pl.DataFrame

    def __post_init__(self) -> None:
        if missing := [name for name in REQUIRED if name not in self.frame.columns]:
            raise InputError(f"interactions lack the columns {missing}; there are {self.frame.columns}")
        for name in ("user_id", "item_id"):
            if self.frame.schema[name] != pl.String:
                raise InputError(f"{name} is {self.frame.schema[name]}, not text", hint="ids are text: cast to String")
        if self.frame.schema["timestamp"] not in (pl.Int64, pl.Float64):
            raise InputError(f"timestamp is {self.frame.schema['timestamp']}, not Int64 or Float64")
        unusable = sum(self.frame[name].null_count() for name in REQUIRED)
        if self.frame.schema["timestamp"] == pl.Float64:
            unusable += int(self.frame["timestamp"].is_nan().sum())
        if unusable:
            raise InputError(f"{unusable} values of user_id, item_id or timestamp are missing")

    @property
    def num_events(self) -> int:
        """Number of rows."""
        return self.frame.height

    @property
    def context_columns(self) -> tuple[str, ...]:
        """Columns beyond user, item, time, event and weight, in file order."""
        known = {*REQUIRED, "event", "weight"}
        return tuple(name for name in self.frame.columns if name not in known)
