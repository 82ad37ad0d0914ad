"""What every baseline has: `fit` on index sequences, `scores` for histories.

Item indices everywhere are positions in the evaluation catalogue (``Split.items``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np

from llmrec.config import Config
from llmrec.errors import InputError

Progress = Callable[[int, int, float], None]
"""Called after each epoch with (epochs done, epochs at most, valid NDCG@10 or NaN where nothing was validated)."""


@dataclass(frozen=True)
class Validation:
    """What a checkpoint is chosen by: histories ``s_1..s_{n-2}`` and their next items ``s_{n-1}``. Never fitted on.

    Attributes:
        histories: per user, item indices in order.
        targets: (num_users,) item indices.
        filtered: whether history items leave the ranking.
    """

    histories: Sequence[np.ndarray]
    targets: np.ndarray
    filtered: bool = True


class Scorer(Protocol):
    """A fitted model."""

    def scores(self, histories: Sequence[np.ndarray]) -> np.ndarray:
        """Score every item after each history: (len(histories), num_items) float, higher is better.

        Nothing is masked; taking the history out of the ranking is the caller's business. An empty history is fine.
        """
        ...


class Baseline(Protocol):
    """A model to fit, with its settings."""

    config_class: ClassVar[type[Config]]

    def __init__(self, config: Any = None) -> None:
        """Take settings of `config_class`; None means its defaults."""
        ...

    def fit(
        self,
        train: Sequence[np.ndarray],
        num_items: int,
        *,
        validation: Validation | None = None,
        progress: Progress | None = None,
    ) -> Scorer:
        """Fit on train sequences alone.

        Args:
            train: per user, item indices in order (``Split.train()``).
            num_items: size of the evaluation catalogue.
            validation: for models that choose a checkpoint; the others have nothing to choose and ignore it.
            progress: for models that train in epochs.

        Raises:
            InputError: an index lies outside the catalogue, or there is no event to fit on.
        """
        ...


def user_item_matrix(sequences: Sequence[np.ndarray], num_items: int) -> Any:
    """Binary scipy CSR matrix (len(sequences), num_items) float64: 1 where the item is in the sequence.

    Raises:
        InputError: an index lies outside ``0 .. num_items - 1``.
    """
    from scipy.sparse import csr_matrix

    unique = [np.unique(np.asarray(sequence, dtype=np.int64)) for sequence in sequences]
    items = np.concatenate([np.zeros(0, dtype=np.int64), *unique])
    if items.size and not 0 <= items.min() <= items.max() < num_items:
        raise InputError(f"item indices run from {items.min()} to {items.max()}, the catalogue has {num_items} items")
    pointers = np.concatenate([[0], np.cumsum([len(row) for row in unique], dtype=np.int64)])
    return csr_matrix((np.ones(len(items)), items, pointers), shape=(len(unique), num_items))


def train_matrix(train: Sequence[np.ndarray], num_items: int) -> Any:
    """`user_item_matrix` of sequences to fit on.

    Raises:
        InputError: also when there is no event at all.
    """
    matrix = user_item_matrix(train, num_items)
    if matrix.nnz == 0:
        raise InputError(
            "there is no train event to fit a baseline on",
            hint="leave-one-out keeps the last two events of a user for valid and test: users need three or more",
        )
    return matrix
