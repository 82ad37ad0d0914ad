"""Grounded: the share of a thought's statements that are true, by the check that think data passes.

What a statement is, and what it is held against, is said in `llmrec.prompts.grounding`: prefixes, titles and attributes
against the catalogue and the SIDs, "you chose" against the history. A thought that states nothing pays nothing, and so
does one that is not closed. What is answered behind it is not read.

How it is hacked: by saying little. One safe statement pays as much as a good thought, and a true thought may be beside
the point: use a small weight beside a reward that knows the target, and watch the thoughts' length.
"""

from __future__ import annotations

from llmrec.train.rewards.base import Reward, RewardBatch


class Grounded(Reward):
    """See the module's docstring."""

    name = "grounded"
    needs = ("grounding",)
    reads = ("history",)

    def score(self, batch: RewardBatch) -> list[float]:
        """Between 0 and 1."""
        check = self.context.grounding
        assert check is not None
        rewards = []
        for completion, history in zip(batch.completions, batch.columns["history"], strict=True):
            found = None if completion.thought is None else check(completion.thought, history)
            said = sum(found.statements.values()) if found else 0
            rewards.append((said - len(found.untrue)) / said if found and said else 0.0)
        return rewards
