"""What rewards know besides the row and the completion: built once, read by all of them, never changed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np

from llmrec.errors import DataError
from llmrec.prompts.grounding import Grounding
from llmrec.sid_vocab.table import SIDTable
from llmrec.train.rewards.completion import SID, CompletionReader


class ItemScorer(Protocol):
    """Scores items for a history: a collaborative teacher or a learned preference model.

    The same protocol as a fitted baseline's (`llmrec.baselines.base.Scorer`), with indices that are table rows.
    """

    def scores(self, histories: Sequence[np.ndarray]) -> np.ndarray:
        """(len(histories), table.num_items) float, higher is better; -inf for items that it cannot judge."""
        ...


GroundingCheck = Callable[[Sequence[int], Collection[str]], Grounding]
"""Holds the token ids of a thought against what is known of the items, and against a history of item ids."""


@dataclass(frozen=True, eq=False)
class RewardContext:
    """The shared knowledge of rewards. All arrays and scorers are indexed by rows of `table`.

    A field that is None is knowledge that no reward of the run asked for (`Reward.needs`); a reward that needs it says
    so when it is made. Nothing here may be fitted on a user's last two events.

    Raises:
        DataError: an array is not one finite row per item; all problems together.
    """

    table: SIDTable
    """With token ids; living items are the legal answers."""
    closing_ids: tuple[int, ...] = ()
    """Tokens that end a thought; ``()`` where completions have no thought."""
    stop_ids: frozenset[int] = frozenset()
    """A completion ends before the first of these."""
    train_counts: np.ndarray | None = None
    """(n_items,) train events of each item; 0 for items that train does not know."""
    text_vectors: np.ndarray | None = None
    """(n_items, dim) unit vectors of the items' texts."""
    teacher: ItemScorer | None = None
    """A collaborative model fitted on train."""
    preference: ItemScorer | None = None
    """A learned preference model fitted on train."""
    grounding: GroundingCheck | None = None
    """Checks what thoughts say."""

    def __post_init__(self) -> None:
        problems = []
        for name, dimensions in (("train_counts", 1), ("text_vectors", 2)):
            array = {"train_counts": self.train_counts, "text_vectors": self.text_vectors}[name]
            if array is None:
                continue
            if array.ndim != dimensions or len(array) != self.table.num_items:
                problems.append(f"{name} has the shape {array.shape}; the table has {self.table.num_items} items")
            elif not np.isfinite(array).all():
                problems.append(f"{name} holds NaN or infinity")
            elif name == "train_counts" and (array < 0).any():
                problems.append("train_counts holds negative numbers")
        if problems:
            raise DataError("This is no context for rewards:", problems)

    @cached_property
    def reader(self) -> CompletionReader:
        """Reads completions of this context's table."""
        return CompletionReader(self.table, self.closing_ids, self.stop_ids)

    def sid(self, row: int) -> SID:
        """The SID of a table row."""
        return tuple(self.table.codes[row].tolist())
