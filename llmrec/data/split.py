"""Leave-one-out over the full catalogue, the evaluation protocol of this project.

Per user, events are sorted by time and **ties keep the order of the file** (MovieLens-100K has 100,000
events at 49,439 distinct pairs of user and time; sorting ties by item id changes 30 % of its test targets). A user's
``s_1..s_n`` gives train ``s_1..s_{n-2}``, the valid target ``s_{n-1}`` with history ``s_1..s_{n-2}`` and the test
target ``s_n`` with history ``s_1..s_{n-1}``. Users with fewer than three events take no part and are counted.

`Split.loo_sha256` is the SHA-256 over the lines ``user_id<TAB>valid_item<TAB>test_item\\n``: two runs compare only
when it agrees.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import polars as pl

from llmrec.data.interactions import Interactions

Part = Literal["valid", "test"]
MIN_EVENTS = 3
_INTEGER = re.compile(r"-?[0-9]+")


@dataclass(frozen=True)
class SplitCounts:
    """What went into a split and what stayed out of it."""

    events: int
    """All rows of the interactions."""
    events_too_short: int
    """Rows of users with fewer than three events."""
    users: int
    """All users."""
    users_too_short: int
    """Users with fewer than three events, who take no part."""
    items: int
    """Items of the evaluation catalogue."""
    items_too_short: int
    """Items that only users with fewer than three events met: outside the evaluation catalogue."""


@dataclass(frozen=True, eq=False)
class Split:
    """Sequences of the participating users over the evaluation catalogue.

    Attributes:
        users: participating users, ascending (as integers where all ids are integers).
        items: the evaluation catalogue: every item in some participating user's sequence, same order rule.
        sequences: per user the indices into `items` (int32, read-only), ``s_1..s_n`` in protocol order.
        loo_sha256: check value of the targets.
        counts: what took part and what did not.
    """

    users: tuple[str, ...]
    items: tuple[str, ...]
    sequences: tuple[np.ndarray, ...]
    loo_sha256: str
    counts: SplitCounts

    def train(self) -> list[np.ndarray]:
        """Per user ``s_1..s_{n-2}`` as indices into `items`: the only events that anything is fitted on."""
        return [sequence[:-2] for sequence in self.sequences]

    def history(self, user: int, part: Part) -> np.ndarray:
        """What is known before the target of row `user`: indices into `items`, oldest first."""
        return self.sequences[user][: -2 if part == "valid" else -1]

    def targets(self, part: Part) -> np.ndarray:
        """One target a user: (num_users,) int32 indices into `items`."""
        place = -2 if part == "valid" else -1
        return np.fromiter((sequence[place] for sequence in self.sequences), np.int32, len(self.sequences))

    def cold_items(self) -> np.ndarray:
        """Items seen only as targets: ascending int32 indices into `items`."""
        return np.flatnonzero(self._train_counts == 0).astype(np.int32)

    def train_counts(self) -> np.ndarray:
        """Events per item in train: (num_items,) int64, indexed like `items`."""
        return self._train_counts.copy()

    @cached_property
    def _train_counts(self) -> np.ndarray:
        events = np.concatenate([np.empty(0, np.int32), *self.train()])
        return np.bincount(events, minlength=len(self.items))


def ordered_ids(ids: Iterable[str]) -> list[str]:
    """Distinct ids ascending: as integers where all are integers (``"9" < "10"``), else as text."""
    distinct = set(ids)
    if all(_INTEGER.fullmatch(name) for name in distinct):
        return sorted(distinct, key=lambda name: (int(name), name))
    return sorted(distinct)


def leave_one_out(interactions: Interactions) -> Split:
    """Split `interactions` as the module says; no filter but the three-event rule, no loop per row."""
    frame = interactions.frame.select("user_id", "item_id", "timestamp")
    lengths = frame.group_by("user_id").len()
    users = ordered_ids(lengths.filter(pl.col("len") >= MIN_EVENTS)["user_id"])

    # 1. Rows of participating users, still in file order.
    kept = frame.filter(pl.col("user_id").is_in(pl.Series(users, dtype=pl.String).implode()))
    items = ordered_ids(kept["item_id"].unique())
    # 2. Ids become their rank: an Enum's physical value is the place of its category.
    user_rank = _ranks(kept["user_id"], users)
    item_rank = _ranks(kept["item_id"], items).astype(np.int32)
    # 3. By user, then time. lexsort is stable, so that ties keep the file's order.
    order = np.lexsort((kept["timestamp"].to_numpy(), user_rank))
    events = item_rank[order]
    events.flags.writeable = False
    # 4. Cut where the user changes.
    ends = np.cumsum(np.bincount(user_rank, minlength=len(users)))
    sequences = tuple(np.split(events, ends[:-1])) if users else ()

    digest = hashlib.sha256()
    for user, sequence in zip(users, sequences, strict=True):
        digest.update(f"{user}\t{items[sequence[-2]]}\t{items[sequence[-1]]}\n".encode())
    return Split(
        users=tuple(users),
        items=tuple(items),
        sequences=sequences,
        loo_sha256=digest.hexdigest(),
        counts=SplitCounts(
            events=frame.height,
            events_too_short=frame.height - kept.height,
            users=lengths.height,
            users_too_short=lengths.height - len(users),
            items=len(items),
            items_too_short=frame["item_id"].n_unique() - len(items),
        ),
    )


def _ranks(values: pl.Series, categories: list[str]) -> np.ndarray:
    return values.cast(pl.Enum(categories)).to_physical().to_numpy().astype(np.int64)
