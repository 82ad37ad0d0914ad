"""Path consistency: the answer follows from where the thought ended.

REG4Rec (arXiv:2508.15308) reasons along unordered semantic tokens of an item, aligns these paths by rewards and
discards inconsistent ones when it serves. Only the idea is taken over: here the steps of a thought are the bare
prefixes of SIDs that it names. Earlier ones may speak of the history, so the last one alone is the conclusion: where
the answer begins with it, the reward is its depth over the deepest that a thought may name (L - 1 levels), and
otherwise 0. A thought that names no prefix pays nothing.

How it is hacked: by deciding first. A thought that names the prefix of the answer it would have given anyway is
consistent and worth nothing: it pays for being bound to the thought, not for being right. Use it beside a reward that
knows the target.
"""

from __future__ import annotations

from typing import Any, Literal

from llmrec.errors import InputError
from llmrec.train.rewards.base import Reward, RewardBatch, RewardConfig
from llmrec.train.rewards.completion import SID
from llmrec.train.rewards.context import RewardContext


class PathConsistencyConfig(RewardConfig):
    """Settings of `PathConsistency`."""

    answer: Literal["completion", "beams"] = "completion"
    """Where the answer stands: written behind the thought, or first in column ``beams``."""


class PathConsistency(Reward):
    """See the module's docstring.

    Raises:
        InputError: completions have no thought, or SIDs have one level and so no prefix.
    """

    name = "path_consistency"
    config_class = PathConsistencyConfig
    reads: tuple[str, ...] = ()

    def __init__(self, context: RewardContext, config: Any = None) -> None:
        super().__init__(context, config)
        if not context.closing_ids or context.table.num_levels < 2:
            raise InputError(
                "The reward 'path_consistency' needs thoughts (closing_ids) and SIDs of two levels or more.",
                hint="use it for think-then-recommend alone",
            )
        if self.config.answer == "beams":
            self.reads = ("beams",)

    def score(self, batch: RewardBatch) -> list[float]:
        """Between 0 and 1."""
        deepest = self.context.table.num_levels - 1
        rewards = []
        for completion, answer in zip(batch.completions, self._answers(batch), strict=True):
            conclusion = completion.prefixes[-1][:deepest] if completion.prefixes else ()
            follows = answer is not None and answer[: len(conclusion)] == conclusion
            rewards.append(len(conclusion) / deepest if follows and completion.well_formed else 0.0)
        return rewards

    def _answers(self, batch: RewardBatch) -> list[SID | None]:
        if self.config.answer == "completion":
            return batch.answers
        table = self.context.table
        return [self.context.sid(table.row(beams[0])) if len(beams) else None for beams in batch.columns["beams"]]
