"""Longest common subsequence of the written list and what the user really did next (RecLLM-R1, arXiv:2506.19235).

Column ``continuation`` holds the items that followed in train, the target first. The reward is the length of the
longest common subsequence over the longer of the two lists. Dividing by the longer one is ours: without it a list of
everything would pay 1. A malformed list, or one with a SID that no living item has, pays nothing.

How it is hacked: by one safe item. Where continuations are short, a list of the most popular item alone gets 1 / length
often enough to be learnt; and order within the list counts less than being on it.
"""

from __future__ import annotations

from collections.abc import Sequence

from llmrec.errors import InputError
from llmrec.train.rewards.base import Reward, RewardBatch
from llmrec.train.rewards.completion import SID


class CommonSubsequence(Reward):
    """See the module's docstring."""

    name = "common_subsequence"
    reads = ("continuation",)

    def score(self, batch: RewardBatch) -> list[float]:
        """Between 0 and 1.

        Raises:
            InputError: a continuation is empty.
        """
        rewards = []
        for completion, continuation in zip(batch.completions, batch.columns["continuation"], strict=True):
            wanted = [self.context.sid(self.context.table.row(item_id)) for item_id in continuation]
            if not wanted:
                raise InputError("A row has an empty continuation.", hint="it starts with the row's target")
            longest = max(len(wanted), len(completion.sids))
            rewards.append(common_subsequence(completion.sids, wanted) / longest if completion.legal else 0.0)
        return rewards


def common_subsequence(one: Sequence[SID], other: Sequence[SID]) -> int:
    """Length of the longest common subsequence."""
    best = [0] * (len(other) + 1)  # of what was read of `one` and each beginning of `other`
    for ours in one:
        diagonal = 0
        for place, theirs in enumerate(other, start=1):
            above = best[place]
            best[place] = diagonal + 1 if ours == theirs else max(above, best[place - 1])
            diagonal = above
    return best[-1]
