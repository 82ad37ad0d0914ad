"""ItemKNN: items are close when the same users have them (Sarwar et al. 2001, with a shrunk cosine).

The similarity of two items is ``c / (sqrt(n_i) * sqrt(n_j) + shrink)``, where c counts the users who have both and n
those who have one. Each candidate keeps its k best neighbours, and its score is the sum of its similarities to the
last few items of the history. That window is the departure from the textbook, which sums over the whole history: it
is what makes the model answer to the order of events, and most of its quality on leave-one-out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from llmrec.baselines.base import Progress, Validation, train_matrix, user_item_matrix
from llmrec.config import Config


class ItemKNNConfig(Config):
    """Settings of ItemKNN; the defaults are those of ML-100K."""

    num_neighbors: int = Field(default=200, ge=1)
    """Neighbours kept per candidate item; ties at the edge go to the lower index."""
    shrink: float = Field(default=10.0, ge=0)
    """Added to the denominator: larger values distrust similarities that rest on few users."""
    history_window: int = Field(default=5, ge=1)
    """How many of the latest distinct history items vote."""


@dataclass(frozen=True)
class ItemKNNModel:
    """Fitted ItemKNN.

    Attributes:
        similarity: scipy CSR (num_items, num_items); row = history item, column = candidate, at most
            `num_neighbors` entries per column.
        history_window: see `ItemKNNConfig`.
    """

    similarity: Any
    history_window: int

    def scores(self, histories: Sequence[np.ndarray]) -> np.ndarray:
        """Sum of similarities to the latest items: (len(histories), num_items), 0 where nothing is known."""
        latest = [latest_distinct(history, self.history_window) for history in histories]
        scores: np.ndarray = (user_item_matrix(latest, self.similarity.shape[0]) @ self.similarity).toarray()
        return scores


class ItemKNN:
    """See the module's docstring."""

    config_class: ClassVar[type[Config]] = ItemKNNConfig

    def __init__(self, config: ItemKNNConfig | None = None) -> None:
        self.config = config or ItemKNNConfig()

    def fit(
        self,
        train: Sequence[np.ndarray],
        num_items: int,
        *,
        validation: Validation | None = None,
        progress: Progress | None = None,
    ) -> ItemKNNModel:
        """Compute and prune the similarities; see `llmrec.baselines.base.Baseline.fit`."""
        from scipy.sparse import csr_matrix

        matrix = train_matrix(train, num_items)
        counts = (matrix.T @ matrix).tocsr()
        counts.sort_indices()
        roots = np.sqrt(counts.diagonal())

        # Row by row of the symmetric count matrix = candidate by candidate; only pairs that occur are touched.
        neighbors: list[np.ndarray] = []
        values: list[np.ndarray] = []
        for item in range(num_items):
            entries = slice(counts.indptr[item], counts.indptr[item + 1])
            others, together = counts.indices[entries], counts.data[entries]
            others, together = others[others != item], together[others != item]
            similarity = together / (roots[item] * roots[others] + self.config.shrink)
            best = np.argsort(-similarity, kind="stable")[: self.config.num_neighbors]
            neighbors.append(others[best])
            values.append(similarity[best])
        pointers = np.concatenate([[0], np.cumsum([len(row) for row in neighbors])])
        by_candidate = csr_matrix((np.concatenate(values), np.concatenate(neighbors), pointers), shape=counts.shape)
        return ItemKNNModel(by_candidate.T.tocsr(), self.config.history_window)


def latest_distinct(history: np.ndarray, window: int) -> np.ndarray:
    """The last `window` distinct items of `history`, in order of their last occurrence."""
    backwards = np.asarray(history, dtype=np.int64)[::-1]
    _, last_seen = np.unique(backwards, return_index=True)
    return backwards[np.sort(last_seen)[:window]][::-1]
