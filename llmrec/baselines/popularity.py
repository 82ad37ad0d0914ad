"""Popularity: an item's score is the number of users who have it in train, whatever the history."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from llmrec.baselines.base import Progress, Validation, train_matrix
from llmrec.config import Config


class PopularityConfig(Config):
    """Popularity has no settings."""


@dataclass(frozen=True)
class PopularityModel:
    """Fitted popularity.

    Attributes:
        counts: (num_items,) float64, users per item; a user who came back to an item counts once.
    """

    counts: np.ndarray

    def scores(self, histories: Sequence[np.ndarray]) -> np.ndarray:
        """The counts, once per history: (len(histories), num_items)."""
        return np.tile(self.counts, (len(histories), 1))


class Popularity:
    """See the module's docstring."""

    config_class: ClassVar[type[Config]] = PopularityConfig

    def __init__(self, config: PopularityConfig | None = None) -> None:
        self.config = config or PopularityConfig()

    def fit(
        self,
        train: Sequence[np.ndarray],
        num_items: int,
        *,
        validation: Validation | None = None,
        progress: Progress | None = None,
    ) -> PopularityModel:
        """Count users per item; see `llmrec.baselines.base.Baseline.fit`."""
        return PopularityModel(np.asarray(train_matrix(train, num_items).sum(axis=0)).ravel())
