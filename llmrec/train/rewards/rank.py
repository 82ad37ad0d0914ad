"""Rank-aware: a hit pays 1, a miss costs the more the surer the model was of it.

The sum of the rule-based and the ranking reward of MiniOneRec (arXiv:2510.24431) and ReRe (arXiv:2510.12211): in a
group with a hit the negative of rank r gets ``-1/log2(r + 1)``, divided by the sum of these over all ranks; in a group
without a hit every negative gets 0, since then there is nothing that they should stand behind.

Departures: the rank is taken from column ``log_probability`` and not from the order of the group, so that samples may
come in any order and one item twice has one rank; a malformed or illegal completion gets -1, below every legal one.

How it is hacked: little; it pushes probability from the top negatives to the rest, so that with a high weight and no KL
term the list below the target becomes flat: watch entropy and Recall@20 beside Recall@1. Beams are hard negatives and
not samples: with them the group's mean is no estimate of the expected reward.
"""

from __future__ import annotations

import numpy as np

from llmrec.errors import InputError
from llmrec.train.rewards.base import Reward, RewardBatch


class RankAware(Reward):
    """See the module's docstring."""

    name = "rank"
    reads = ("target", "row_id", "log_probability")

    def score(self, batch: RewardBatch) -> list[float]:
        """Between -1 and 1.

        Raises:
            InputError: a log-probability is NaN.
        """
        log_probability = np.array(batch.columns["log_probability"], dtype=np.float64)
        if np.isnan(log_probability).any():
            raise InputError("Column 'log_probability' holds NaN.", hint="the policy has diverged: lower learning_rate")
        rewards = np.full(len(batch), -1.0)
        for group in batch.groups:
            legal = np.array([place for place in group if batch.answers[place] is not None], dtype=np.int64)
            hit = np.array([batch.answers[place] == batch.target_sids[place] for place in legal], dtype=bool)
            rewards[legal] = self._of_group(log_probability[legal], hit) if len(legal) else ()
        return rewards.tolist()

    @staticmethod
    def _of_group(log_probability: np.ndarray, hit: np.ndarray) -> np.ndarray:
        if not hit.any():
            return np.zeros(len(hit))
        distinct, ascending = np.unique(log_probability, return_inverse=True)
        ranks = len(distinct) - ascending  # 1 is the most probable
        penalties = 1 / np.log2(1 + ranks)
        return np.where(hit, 1.0, -penalties / (1 / np.log2(1 + np.arange(1, len(distinct) + 1))).sum())
