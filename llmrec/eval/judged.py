"""Which users are judged: everybody, or some chosen by a hash of their id so that every run takes the same ones."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from llmrec.data.split import Part, Split


@dataclass(frozen=True, eq=False)
class Judged:
    """The judged users of a split.

    Attributes:
        split: where they come from.
        part: which of their events is the target.
        rows: (num_users,) rows of ``split.users``, ascending.
    """

    split: Split
    part: Part
    rows: np.ndarray

    @classmethod
    def choose(cls, split: Split, part: Part, users: int | None) -> Judged:
        """All users, or the `users` of them with the lowest hash (`by_hash`)."""
        rows = np.arange(len(split.users))
        if users is not None and users < len(rows):
            rows = np.sort(by_hash(split.users)[:users])
        return cls(split, part, rows)

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def user_ids(self) -> tuple[str, ...]:
        """Their ids."""
        return tuple(self.split.users[row] for row in self.rows)

    @cached_property
    def histories(self) -> tuple[np.ndarray, ...]:
        """Per user the events before the target, oldest first, as indices into ``split.items``."""
        return tuple(self.split.history(int(row), self.part) for row in self.rows)

    @cached_property
    def targets(self) -> np.ndarray:
        """(num_users,) indices into ``split.items``."""
        chosen: np.ndarray = self.split.targets(self.part)[self.rows]
        return chosen


def by_hash(user_ids: tuple[str, ...]) -> np.ndarray:
    """Places of `user_ids` in the order of their SHA-256: the same users on every machine and in every run."""
    return np.array(
        sorted(range(len(user_ids)), key=lambda place: hashlib.sha256(user_ids[place].encode()).digest()), np.int64
    )
