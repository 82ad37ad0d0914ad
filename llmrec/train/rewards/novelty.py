"""Novelty: the self-information of an item, ``-log2 p``, over that of an item with one train event.

``p`` is the share of train events (the novelty of Zhou et al. 2010, PNAS 107(10), and Vargas and Castells 2011,
RecSys). Items without train events count as one event, and an item of the history is not new to its user: it pays 0.
The target pays 1 (`llmrec.train.rewards.item_value`).

How it is hacked: by the long tail at random; nothing in it asks whether the user would want the item. Watch held-out
NDCG, and keep the weight small.
"""

from __future__ import annotations

import numpy as np

from llmrec.train.rewards.base import RewardBatch
from llmrec.train.rewards.item_value import ItemValueReward


class Novelty(ItemValueReward):
    """See the module's docstring."""

    name = "novelty"
    needs = ("train_counts",)
    reads = ("target", "history")

    def item_values(self, batch: RewardBatch) -> list[np.ndarray]:
        """One array per completion."""
        counts = self.context.train_counts
        assert counts is not None
        events = max(float(counts.sum()), 2.0)
        information = np.log(events / np.maximum(counts, 1.0)) / np.log(events)
        values = []
        for history in batch.histories:
            new = information.copy()
            new[history] = 0.0
            values.append(new)
        return values
