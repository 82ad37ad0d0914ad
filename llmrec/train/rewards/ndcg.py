"""NDCG of a list: the completion is a list of SIDs, best first, and pays what evaluation would give it.

Rec-R1 (arXiv:2503.24289) rewards a text by the NDCG of what a retriever finds with it; here the model writes the list
itself, and the one target makes the ideal DCG 1. Places are counted as in `llmrec.metrics`: a SID that several items
share takes as many places, over which the gain is averaged, so that a target with company gets less than 1 at best. A
SID that no living item has, or that was there before, takes a place like any other; a malformed list pays nothing.

How it is hacked: by the same list for everybody, popular items first: watch distinct items over users, not over a list.
"""

from __future__ import annotations

import numpy as np
from pydantic import Field

from llmrec.train.rewards.base import Reward, RewardBatch, RewardConfig
from llmrec.train.rewards.completion import SID, Completion


class ListNDCGConfig(RewardConfig):
    """Settings of `ListNDCG`."""

    top_k: int = Field(default=10, ge=1)
    """Places that are looked at."""


class ListNDCG(Reward):
    """See the module's docstring."""

    name = "ndcg"
    config_class = ListNDCGConfig

    def score(self, batch: RewardBatch) -> list[float]:
        """Between 0 and 1."""
        return [
            self._gain(completion, target) if completion.well_formed else 0.0
            for completion, target in zip(batch.completions, batch.target_sids, strict=True)
        ]

    def _gain(self, completion: Completion, target: SID) -> float:
        place = 1
        for sid, rows in zip(completion.sids, completion.rows, strict=True):
            if sid == target and rows:
                places = np.arange(place, place + len(rows))
                return float(np.where(places <= self.config.top_k, 1 / np.log2(1 + places), 0.0).mean())
            place += max(len(rows), 1)
        return 0.0
