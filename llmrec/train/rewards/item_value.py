"""Rewards that pay what an item is like: the shared rule, and percentiles within the catalogue.

Such a reward knows no right answer, and left alone it would teach away from the one that the log holds. So **the target
is always paid 1, the maximum**; every other item is paid its value between 0 and 1. In a list every SID counts alike, a
repeated one pays nothing, and items that share a SID are paid their mean. Malformed and illegal completions pay 0.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import numpy as np

from llmrec.sid_vocab.table import ACTIVE, SIDTable
from llmrec.train.rewards.base import Reward, RewardBatch


class ItemValueReward(Reward):
    """Pays the value of the answered items; the target pays 1."""

    @abstractmethod
    def item_values(self, batch: RewardBatch) -> Sequence[np.ndarray]:
        """Per completion the (n_items,) values of all items between 0 and 1; completions may share an array."""

    def score(self, batch: RewardBatch) -> list[float]:
        """Between 0 and 1."""
        if not len(batch):
            return []
        rewards = []
        for completion, target, values in zip(
            batch.completions, batch.target_sids, self.item_values(batch), strict=True
        ):
            paid = {
                sid: 1.0 if sid == target else float(values[list(rows)].mean())
                for sid, rows in zip(completion.sids, completion.rows, strict=True)
                if rows
            }
            rewards.append(sum(paid.values()) / len(completion.sids) if completion.legal else 0.0)
        return rewards


def percentiles(scores: np.ndarray, table: SIDTable) -> np.ndarray:
    """(n_items,) share of the other living items that score lower than each item; 0 for one that scores -inf.

    Equal scores share the lowest place, so that all the items that a teacher knows nothing about get 0 and not .5.
    """
    living = np.sort(scores[table.status == ACTIVE])
    below: np.ndarray = np.searchsorted(living, scores, side="left") / max(len(living) - 1, 1)
    shares: np.ndarray = np.minimum(below, 1.0)
    return shares
