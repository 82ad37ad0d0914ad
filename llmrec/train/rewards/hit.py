"""Hit: 1 for the target, 0 for everything else: the rule-based reward of MiniOneRec (arXiv:2510.24431) and ReRe.

Items that share a SID cannot be told apart by it, so that the SID of the target is a hit whichever of them was meant;
a held-out metric shares the place instead.

How it is hacked: it is not; it is only sparse. A group without a hit has no variance and teaches nothing, and a group
of hits teaches nothing either. It pays nothing for a good recommendation that the log does not hold.
"""

from __future__ import annotations

from pydantic import Field

from llmrec.train.rewards.base import Reward, RewardBatch, RewardConfig


class HitConfig(RewardConfig):
    """Settings of `Hit`."""

    top_k: int = Field(default=1, ge=1)
    """Leading SIDs of a list among which the target must be."""


class Hit(Reward):
    """See the module's docstring."""

    name = "hit"
    config_class = HitConfig

    def score(self, batch: RewardBatch) -> list[float]:
        """1 or 0."""
        return [
            float(completion.legal and target in completion.sids[: self.config.top_k])
            for completion, target in zip(batch.completions, batch.target_sids, strict=True)
        ]
