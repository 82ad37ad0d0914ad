"""EASE: a linear item-to-item model with a zero diagonal, in closed form (Steck 2019, "Embarrassingly Shallow
Autoencoders for Sparse Data").

Minimise ``|X - XB|^2 + l2 |B|^2`` subject to ``diag(B) = 0``; with ``P = (X'X + l2 I)^-1`` the solution is
``B = I - P diag(1 / diag(P))``. The history's latest distinct items are the input row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from pydantic import Field

from llmrec.baselines.base import Progress, Validation, train_matrix, user_item_matrix
from llmrec.baselines.itemknn import latest_distinct
from llmrec.config import Config
from llmrec.errors import InputError

_MAX_ITEMS = 20_000  # the dense float64 inverse takes 3.2 GB there, and its time grows with the cube


class EASEConfig(Config):
    """Settings of EASE."""

    l2: float = Field(default=100.0, gt=0)
    """Regularisation; valid prefers small values on ML-100K and on Amazon games at a window of 50."""
    history_window: int = Field(default=50, ge=1)
    """How many of the latest distinct history items are the input; the textbook takes all of them.

    Shorter is stronger where order matters: on ML-100K, valid NDCG@10 is .095 at 50 and .114 to .117 at 5 to 10 (with
    `l2` of 1000 to 2000).
    """


@dataclass(frozen=True)
class EASEModel:
    """Fitted EASE.

    Attributes:
        weights: (num_items, num_items) float64, B of the paper: row = history item, column = candidate.
        history_window: see `EASEConfig`.
    """

    weights: np.ndarray
    history_window: int

    def scores(self, histories: Sequence[np.ndarray]) -> np.ndarray:
        """Sum of the weights from the latest items: (len(histories), num_items)."""
        latest = [latest_distinct(history, self.history_window) for history in histories]
        return np.asarray(user_item_matrix(latest, len(self.weights)) @ self.weights)


class EASE:
    """See the module's docstring."""

    config_class: ClassVar[type[Config]] = EASEConfig

    def __init__(self, config: EASEConfig | None = None) -> None:
        self.config = config or EASEConfig()

    def fit(
        self,
        train: Sequence[np.ndarray],
        num_items: int,
        *,
        validation: Validation | None = None,
        progress: Progress | None = None,
    ) -> EASEModel:
        """Invert the regularised item-item matrix; see `llmrec.baselines.base.Baseline.fit`.

        Raises:
            InputError: also when the catalogue is too large for a dense inverse.
        """
        if num_items > _MAX_ITEMS:
            raise InputError(
                f"EASE inverts a dense matrix of {num_items} x {num_items}; it is offered up to {_MAX_ITEMS} items",
                hint="use itemknn or sasrec for this catalogue",
            )
        matrix = train_matrix(train, num_items)
        gram = (matrix.T @ matrix).toarray()
        gram[np.diag_indices(num_items)] += self.config.l2
        inverse = np.linalg.inv(gram)
        weights = inverse / -np.diag(inverse)  # column j divided by P_jj: the off-diagonal of I - P diag(1/diag P)
        np.fill_diagonal(weights, 0.0)
        return EASEModel(weights, self.config.history_window)
