"""Diversity: how far apart answers are; the distance of two SIDs is the share of levels behind their common prefix.

Within a group: a completion pays its mean distance to the other legal completions of its group, which keeps samples
from collapsing into one item. Within a list: the mean distance of all pairs of its SIDs (intra-list diversity, Ziegler
et al. 2005), which is about what a user sees. The paper of RecLLM-R1 (arXiv:2506.19235) asks for diversity, too; taking
SIDs for the distance is ours: it needs no vectors, and says as much as the codes do.

The target is never too similar: it pays 1 in a group, and pairs with it count 1 in a list, so that a policy that is
right every time is not punished for it.

How it is hacked: by random items of far branches. It pays for spread, not for taste: use a small weight beside a
reward that knows the target, and stop when held-out NDCG falls.
"""

from __future__ import annotations

from itertools import combinations
from typing import Any, Literal

from llmrec.train.rewards.base import Reward, RewardBatch, RewardConfig
from llmrec.train.rewards.completion import SID, common_depth
from llmrec.train.rewards.context import RewardContext


class DiversityConfig(RewardConfig):
    """Settings of `Diversity`."""

    within: Literal["group", "list"] = "group"
    """Whether completions of a group, or SIDs of a list, should differ."""


class Diversity(Reward):
    """See the module's docstring."""

    name = "diversity"
    config_class = DiversityConfig
    reads: tuple[str, ...] = ("target", "row_id")

    def __init__(self, context: RewardContext, config: Any = None) -> None:
        super().__init__(context, config)
        if self.config.within == "list":
            self.reads = ("target",)

    def score(self, batch: RewardBatch) -> list[float]:
        """Between 0 and 1; 1 where a group has no other legal completion, 0 for a list of one item."""
        if self.config.within == "list":
            return [
                self._of_list(completion.sids, target) if completion.legal else 0.0
                for completion, target in zip(batch.completions, batch.target_sids, strict=True)
            ]
        rewards = [0.0] * len(batch)
        for group in batch.groups:
            answers = {int(place): sid for place in group if (sid := batch.answers[place]) is not None}
            for place, sid in answers.items():
                others = [other for number, other in answers.items() if number != place]
                right = sid == batch.target_sids[place] or not others
                rewards[place] = 1.0 if right else sum(self._distance(sid, other) for other in others) / len(others)
        return rewards

    def _of_list(self, sids: tuple[SID, ...], target: SID) -> float:
        pairs = list(combinations(sids, 2))
        far = [1.0 if target in (one, other) and one != other else self._distance(one, other) for one, other in pairs]
        return sum(far) / len(pairs) if pairs else 0.0

    def _distance(self, one: SID, other: SID) -> float:
        return 1 - common_depth(one, other) / self.context.table.num_levels
