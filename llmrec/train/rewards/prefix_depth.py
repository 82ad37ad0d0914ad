"""Prefix depth: the share of levels, from the first one on, at which answer and target agree: k of L levels pay k / L.

The graded reward of STREAM-Rec (arXiv:2504.09627), so that a group without a hit still has variance. Departures: here
an answer that no living item has pays nothing, however deep it agrees, and levels count alike.

How it is hacked: by the largest subtree. Answers settle where many targets share a first code, depth 1 is paid again
and again, and the leaf is never learnt: watch hits beside it, and keep its weight below the hit's. It is as good as the
SIDs: where codes mean nothing (hashed ids), a shared prefix means nothing either.
"""

from __future__ import annotations

from llmrec.train.rewards.base import Reward, RewardBatch
from llmrec.train.rewards.completion import common_depth


class PrefixDepth(Reward):
    """See the module's docstring."""

    name = "prefix_depth"

    def score(self, batch: RewardBatch) -> list[float]:
        """0, 1/L, ..., 1."""
        levels = self.context.table.num_levels
        return [
            0.0 if answer is None else common_depth(answer, target) / levels
            for answer, target in zip(batch.answers, batch.target_sids, strict=True)
        ]
