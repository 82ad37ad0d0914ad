"""What a task is: it makes examples with typed values from a catalogue and *training* sequences, and reads answers.

Tasks never see valid or test items as targets because they are given train sequences only. The words around the values
are not here but in the template file of the task's name.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from llmrec.data.catalog import Catalog
from llmrec.errors import InputError
from llmrec.prompts.answers import Answer, AnswerReader


@dataclass(frozen=True)
class Prefix:
    """The first `depth` levels of an item's SID: the kind of thing the item is."""

    item_id: str
    depth: int
    """At least 1 and less than all levels; the renderer, which knows the levels, refuses others."""


Value = str | tuple[str, ...]
"""A typed value of a template variable: text of an item or user, or a tuple of item ids."""


@dataclass(frozen=True)
class Example:
    """One row before rendering. The target travels with it; nothing is looked up by history or prompt."""

    task: str
    row_id: str
    values: Mapping[str, Value]
    """Values of the template's variables; those of the answer may be left out in a prompt for serving."""
    target: Value = ()
    """What `Task.parse` makes of the gold answer."""
    truncated_items: int = 0
    """Oldest history items that the task left out of ``values["history"]``."""
    prefixes: Mapping[str, Prefix] = field(default_factory=dict)
    """Values of variables that are the beginning of a SID."""


@dataclass(frozen=True)
class Examples:
    """The examples of a task and how many were not made, by reason."""

    rows: tuple[Example, ...]
    skipped: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Task(ABC):
    """A kind of row. Subclasses are frozen dataclasses whose fields are the task's settings."""

    name: ClassVar[str]
    """Also the stem of its template file."""
    prompt_variables: ClassVar[frozenset[str]]
    answer_variables: ClassVar[frozenset[str]]
    worded_answer: ClassVar[bool] = False
    """Whether a template may put words into the answer; otherwise the answer is one variable and nothing else."""
    sid_answer: ClassVar[bool] = False
    """Whether the answer ends with SIDs: their length is fixed, so that plain forms need no EOS behind them."""
    thinks: ClassVar[bool] = False
    """Whether the row is a thought: it continues the serving prompt of ``history`` with the template's ``prompt`` (the
    opening marker), the words of ``answer``, the template's ``closing`` marker and then ``item``. A folder of
    templates may lack the file of such a task: checkpoints that were never taught to think have none."""

    @abstractmethod
    def examples(self, catalog: Catalog, sequences: Sequence[Sequence[str]], seed: int) -> Examples:
        """Every example of one epoch. `sequences` are the item ids of each user's training part, oldest first."""

    @abstractmethod
    def parse(self, answer: Answer, reader: AnswerReader) -> Value:
        """The target that an answer (token ids or text) names. ``()`` or ``""`` where it names nothing."""

    def accepts(self, answer: Answer, example: Example, reader: AnswerReader) -> bool:
        """Whether the answer is right."""
        return self.parse(answer, reader) == example.target


def chunks(length: int, window: int, context: int = 0) -> list[tuple[int, int, int]]:
    """Cut positions ``0..length-1`` from the recent end into ``(start, first target, end)``, oldest chunk first.

    Every position is a target in exactly one chunk; a chunk spans at most `window` positions, `context` of which (in
    all but the oldest) come before its first target.

    Raises:
        InputError: unless ``0 <= context < window``.
    """
    if not 0 <= context < window:
        raise InputError(
            f"context={context} leaves no room for a target in window={window}", hint="keep context below window"
        )
    found = []
    end = length
    while end > window:
        first = end - (window - context)
        found.append((first - context, first, end))
        end = first
    if end:
        found.append((0, 0, end))
    return found[::-1]


def choose_positions(length: int, count: int, key: str) -> list[int]:
    """Up to `count` positions with something before them, ascending: the last one, then by hash of `key`."""
    others = sorted(range(1, length - 1), key=lambda place: hash_number(f"{key}:{place}"))
    return sorted([length - 1, *others[: count - 1]]) if length > 1 and count > 0 else []


def hash_number(key: str) -> int:
    """A number below 2**64 that depends on `key` alone: the same on every machine and in every process."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")
