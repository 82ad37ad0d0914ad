"""Format: 1 for a completion of the form that was asked for, else 0, as in DeepSeek-R1 (arXiv:2501.12948).

The form is: a thought with its closing tokens where the context has them, then exactly `num_items` complete SIDs, and
nothing else. Whether items have these SIDs is for `legal` to say.

How it is hacked: trivially, by any answer of that form; an empty thought is one. It is solved within some steps and
then without variance. Never use it alone, and give it a small weight.
"""

from __future__ import annotations

from pydantic import Field

from llmrec.train.rewards.base import Reward, RewardBatch, RewardConfig


class AnswerFormatConfig(RewardConfig):
    """Settings of `AnswerFormat`."""

    num_items: int = Field(default=1, ge=0)
    """SIDs that the answer must have; 0 where completions are thoughts and a search names the items."""


class AnswerFormat(Reward):
    """See the module's docstring."""

    name = "format"
    config_class = AnswerFormatConfig
    reads = ()

    def score(self, batch: RewardBatch) -> list[float]:
        """1 or 0."""
        return [
            float(completion.well_formed and len(completion.sids) == self.config.num_items)
            for completion in batch.completions
        ]
