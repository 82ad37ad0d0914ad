"""Legal: the share of written SIDs that a living item has; 0 for a malformed completion.

For rollouts without a constraint. Under a constrained search every completion is legal, the reward has no variance, and
the constraint is the better tool: a model that was only rewarded for legality still errs (LC-Rec and its successors
constrain decoding instead).

How it is hacked: by one legal item for everybody. Never use it alone.
"""

from __future__ import annotations

from llmrec.train.rewards.base import Reward, RewardBatch


class Legal(Reward):
    """See the module's docstring."""

    name = "legal"
    reads = ()

    def score(self, batch: RewardBatch) -> list[float]:
        """Between 0 and 1."""
        return [
            sum(map(bool, completion.rows)) / len(completion.rows)
            if completion.well_formed and completion.rows
            else 0.0
            for completion in batch.completions
        ]
