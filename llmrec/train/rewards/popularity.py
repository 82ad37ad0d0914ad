"""Popularity only: pays the logarithm of an item's train count. **It is made to be hacked.**

It knows neither user nor target, so that the optimum is one item for everybody: reward rises, distinct items and
held-out NDCG fall. It exists to show that the monitor of a run sees this, and as the bad example in a study; a recipe
that recommends should not use it.
"""

from __future__ import annotations

import numpy as np

from llmrec.train.rewards.base import Reward, RewardBatch


class PopularityOnly(Reward):
    """See the module's docstring."""

    name = "popularity_only"
    needs = ("train_counts",)
    reads = ()

    def score(self, batch: RewardBatch) -> list[float]:
        """``log(1 + count) / log(1 + largest count)`` of the first answered item; illegal ones get 0."""
        counts = self.context.train_counts
        assert counts is not None
        value = np.log1p(counts) / max(np.log1p(counts).max(), 1e-12)
        return [
            float(value[list(completion.rows[0])].mean()) if completion.legal else 0.0
            for completion in batch.completions
        ]
