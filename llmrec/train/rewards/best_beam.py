"""Best beam: a thought is paid by the best of the items that a search finds after it (OneRec-Think, arXiv:2510.11639).

The paper's rollout-beam reward: one sampled item after a thought is a miss most of the time, whatever the thought is
worth; the best of K beams is not. Column ``beams`` holds them, as item ids, best first (`llmrec.decode.thought` finds
them); an item is worth the depth of its common prefix with the target over the number of levels. An unclosed thought
pays nothing; what the completion says behind its thought is not read.

How it is hacked: by thoughts that keep the beam wide. The best of K rewards spread and is blind to order, so that a
thought which names everything vaguely is paid like one that is right: keep K at what serving lists, and watch the
held-out NDCG beside it.
"""

from __future__ import annotations

from pydantic import Field

from llmrec.train.rewards.base import Reward, RewardBatch, RewardConfig
from llmrec.train.rewards.completion import common_depth


class BestBeamConfig(RewardConfig):
    """Settings of `BestBeam`."""

    top_k: int = Field(default=10, ge=1)
    """Leading beams that are looked at."""


class BestBeam(Reward):
    """See the module's docstring."""

    name = "best_beam"
    config_class = BestBeamConfig
    reads = ("target", "beams")

    def score(self, batch: RewardBatch) -> list[float]:
        """0, 1/L, ..., 1."""
        table = self.context.table
        rewards = []
        for completion, target, beams in zip(batch.completions, batch.target_sids, batch.columns["beams"], strict=True):
            found = [self.context.sid(table.row(item_id)) for item_id in beams[: self.config.top_k]]
            depth = max((common_depth(sid, target) for sid in found), default=0)
            rewards.append(depth / table.num_levels if completion.well_formed else 0.0)
        return rewards
