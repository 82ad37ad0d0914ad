"""Rewards by a model's score of the item for the user: a collaborative teacher, and a learned preference score.

Both pay the percentile of the score within the living catalogue, so that scores of any scale mean the same and a group
has variance; the target pays 1 (`llmrec.train.rewards.item_value`).

**Teacher** (`Teacher`): a baseline fitted on train (ItemKNN, EASE, SASRec) knows who takes what together, which text
and SIDs do not say. *How it is hacked:* the policy becomes the teacher, and its held-out NDCG stops at the teacher's.
The teacher was fitted on the very train events that are the targets here, so it looks better in training than it is.

**Preference** (`Preference`): the P-score of OneRec's technical report (arXiv:2506.13695), a learned score of the
user's preference. Theirs fuses predictions of many kinds of online feedback; ours is a small network on train
interactions (`llmrec.train.rewards.preference_model`) which states its own held-out AUC. *How it is hacked:* through
its errors. A policy finds the items that the model overrates, and overrates them for everybody: watch distinct items,
and refit or lower the weight when reward rises while held-out NDCG does not."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np
from pydantic import Field, model_validator

from llmrec.baselines import make_baseline
from llmrec.errors import InputError
from llmrec.train.rewards.base import RewardBatch, RewardConfig
from llmrec.train.rewards.context import ItemScorer
from llmrec.train.rewards.item_value import ItemValueReward, percentiles
from llmrec.train.rewards.preference_model import PreferenceModelConfig


class ScoredReward(ItemValueReward):
    """Pays the percentile of a scorer's score; histories that completions share are scored once."""

    reads = ("target", "history")

    @abstractmethod
    def scorer(self) -> ItemScorer:
        """The model that scores."""

    def item_values(self, batch: RewardBatch) -> list[np.ndarray]:
        """One array per different history.

        Raises:
            InputError: the scorer gives another shape, or NaN.
        """
        different = {id(history): history for history in batch.histories}
        table = self.context.table
        scores = np.asarray(self.scorer().scores(list(different.values())), dtype=np.float64)
        shape, holds_nan = (len(different), table.num_items), bool(np.isnan(scores).any())
        if scores.shape != shape or holds_nan:
            raise InputError(
                f"The scorer of the reward {self.name!r} must give numbers of shape {shape}; given {scores.shape}"
                f"{' with NaN' if holds_nan else ''}."
            )
        values = {key: percentiles(row, table) for key, row in zip(different, scores, strict=True)}
        return [values[id(history)] for history in batch.histories]


class TeacherConfig(RewardConfig):
    """Settings of `Teacher`."""

    baseline: str = "itemknn"
    """The model that teaches (`llmrec.baselines.BASELINES`), fitted on train when the context is built."""
    settings: dict[str, Any] = Field(default={})
    """Its settings."""

    @model_validator(mode="after")
    def _known_baseline(self) -> TeacherConfig:
        try:
            make_baseline(self.baseline, self.settings)
        except InputError as error:
            raise ValueError(str(error).replace("\n  - ", " ").replace("\n", "; ")) from error
        return self


class PreferenceConfig(RewardConfig):
    """Settings of `Preference`."""

    model: PreferenceModelConfig = Field(default_factory=PreferenceModelConfig)
    """How the score is learned when the context is built."""


class Teacher(ScoredReward):
    """See the module's docstring."""

    name = "teacher"
    config_class = TeacherConfig
    needs = ("teacher",)

    def scorer(self) -> ItemScorer:
        """The context's teacher."""
        assert self.context.teacher is not None
        return self.context.teacher


class Preference(ScoredReward):
    """See the module's docstring."""

    name = "preference"
    config_class = PreferenceConfig
    needs = ("preference",)

    def scorer(self) -> ItemScorer:
        """The context's preference model."""
        assert self.context.preference is not None
        return self.context.preference
