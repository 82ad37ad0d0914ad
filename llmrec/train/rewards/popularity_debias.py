"""Popularity debias: an item pays less the more popular it is than what the user is used to.

With percentiles of train counts, an item pays ``1 - max(0, its percentile - mean percentile of the history)``: nothing
is lost by recommending at the user's own level or below. That is the user-centred view of popularity bias
(Abdollahpouri et al. 2021, "User-centered Evaluation of Popularity Bias in Recommender Systems"), as a reward.
Inverse-propensity weights of the hit would be the other way; a weight that is one per row vanishes when a group is
divided by its spread. The target pays 1 whatever its popularity (`llmrec.train.rewards.item_value`). A user without
history is used to what the median train event is.

How it is hacked: by items that nobody wants, all of which pay 1. It needs a reward that knows the target beside it.
"""

from __future__ import annotations

import numpy as np

from llmrec.train.rewards.base import RewardBatch
from llmrec.train.rewards.item_value import ItemValueReward, percentiles


class PopularityDebias(ItemValueReward):
    """See the module's docstring."""

    name = "popularity_debias"
    needs = ("train_counts",)
    reads = ("target", "history")

    def item_values(self, batch: RewardBatch) -> list[np.ndarray]:
        """One array per completion."""
        counts = self.context.train_counts
        assert counts is not None
        popular = percentiles(counts.astype(np.float64), self.context.table)
        events = np.repeat(popular, counts.astype(np.int64))
        everyone = float(np.median(events)) if len(events) else 0.0
        levels = [float(popular[rows].mean()) if len(rows) else everyone for rows in batch.histories]
        return [1 - np.maximum(0.0, popular - level) for level in levels]
