"""Settings of a preference recipe: which events are asked about, and where chosen and rejected items come from."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from llmrec.baselines import BASELINES
from llmrec.config import Config
from llmrec.data.config import DataConfig


class RandomNegatives(Config):
    """Any item of the table, all equally likely."""

    count: int = Field(default=1, ge=1)
    """Rejected items a row."""


class PopularNegatives(Config):
    """Items by how many train events they have."""

    count: int = Field(default=1, ge=1)
    """Rejected items a row."""
    exponent: float = Field(default=1.0, gt=0)
    """An item's weight is its number of train events to this power."""


class SamePrefixNegatives(Config):
    """Items whose SID begins like the chosen one's: what the last levels have to tell apart."""

    count: int = Field(default=1, ge=1)
    """Rejected items a row; fewer where the prefix has no more."""
    levels: int = Field(default=1, ge=1)
    """Levels that are equal."""


class BeamNegatives(Config):
    """The model's best wrong answers."""

    count: int = Field(default=4, ge=1)
    """Rejected items a row."""
    num_beams: int = Field(default=20, ge=1)
    """Width of the beam search, and answers that the wrong ones are taken from."""

    @model_validator(mode="after")
    def _room(self) -> BeamNegatives:
        if self.num_beams < self.count:
            raise ValueError(f"num_beams={self.num_beams} cannot give {self.count} wrong answers: raise num_beams")
        return self


class SelfPlayNegatives(Config):
    """What the current model answers: one iteration of self-play."""

    count: int = Field(default=1, ge=1)
    """Answers drawn, of which the wrong ones are rejected items."""
    iteration: int = Field(default=1, ge=1)
    """Number of this iteration; the checkpoint is what the one before made. It is part of the seed."""
    temperature: float = Field(default=1.0, gt=0)
    """Of the draws; above 1 flatter."""


class RejectionSampledNegatives(Config):
    """Draws from the model that are wrong and that it finds at least as probable as the chosen item."""

    count: int = Field(default=1, ge=1)
    """Rejected items a row."""
    draws: int = Field(default=16, ge=1)
    """Items drawn a row; where none is accepted the row has no such item."""
    margin: float = Field(default=0.0, ge=0)
    """A draw may be this many nats less probable than the chosen item."""
    temperature: float = Field(default=1.0, gt=0)
    """Of the draws; above 1 flatter."""

    @model_validator(mode="after")
    def _room(self) -> RejectionSampledNegatives:
        if self.draws < self.count:
            raise ValueError(f"draws={self.draws} cannot give {self.count} items: raise draws")
        return self


class NegativesConfig(Config):
    """Rejected items beside the user's next event; several sources fill one row, in this order."""

    random: RandomNegatives | None = None
    """Uniform over the catalogue."""
    popular: PopularNegatives | None = None
    """By popularity in train."""
    same_prefix: SamePrefixNegatives | None = None
    """With the first SID levels of the chosen item."""
    beams: BeamNegatives | None = None
    """From the model's beams."""
    self_play: SelfPlayNegatives | None = None
    """From the model of this iteration (SPRec)."""
    rejection_sampled: RejectionSampledNegatives | None = None
    """From the model, accepted where it errs (after RosePO)."""

    @model_validator(mode="after")
    def _some(self) -> NegativesConfig:
        if not self.model_fields_set or all(getattr(self, name) is None for name in type(self).model_fields):
            raise ValueError(f"no source is named; known are {', '.join(type(self).model_fields)}")
        return self

    @property
    def needs_model(self) -> bool:
        """Whether a source asks the model."""
        return any((self.beams, self.self_play, self.rejection_sampled))


class ScorerConfig(Config):
    """Chosen and rejected are the best and the worst of the model's candidates (OneRec's IPA)."""

    baseline: str = "itemknn"
    """The teacher that judges (`llmrec.baselines.BASELINES`), fitted on train."""
    settings: dict[str, Any] = Field(default={})
    """The teacher's own settings."""
    candidates: int = Field(default=32, ge=2)
    """Items that a beam search of this width finds."""
    count: int = Field(default=1, ge=1)
    """Rejected items a row."""

    @model_validator(mode="after")
    def _consistent(self) -> ScorerConfig:
        if self.baseline not in BASELINES:
            raise ValueError(f"there is no baseline {self.baseline!r}; known are {', '.join(BASELINES)}")
        if self.candidates <= self.count:
            raise ValueError(f"candidates={self.candidates} cannot give one chosen and {self.count} rejected")
        return self


class Level(Config):
    """A grade of feedback: the events it covers and what they are worth."""

    value: str | None = None
    """Events whose column says exactly this, such as ``buy``."""
    at_least: float | None = None
    """Events whose column is a number not below this; of several such levels the highest counts."""
    reward: float = Field(ge=0)
    """What an event of this level is worth; higher is preferred."""

    @model_validator(mode="after")
    def _one(self) -> Level:
        if (self.value is None) == (self.at_least is None):
            raise ValueError("a level has either value (text) or at_least (a number)")
        return self


class FeedbackConfig(Config):
    """Pairs of the user's own events at different grades (after OneSug's levels)."""

    column: str
    """The column of the interactions that grades an event: ``weight``, ``event``, or a further one such as
    ``rating``."""
    levels: list[Level] = Field(min_length=1)
    """Grades; events of none of them are neither chosen nor rejected."""
    count: int = Field(default=1, ge=0)
    """Rejected items a row among the user's later events of a lower grade, the nearest first."""
    unmet: int = Field(default=0, ge=0)
    """Further rejected items that the user never met, random, of reward 0."""
    weighting: Literal["inverse_gap", "gap", "equal"] = "inverse_gap"
    """A pair's weight: 1 / (difference of rewards), so that near grades, which are hard to tell apart, count most; the
    difference itself; or 1. Weights are scaled to a mean of 1 over the data set."""

    @model_validator(mode="after")
    def _consistent(self) -> FeedbackConfig:
        if not self.count and not self.unmet:
            raise ValueError("count and unmet are both 0: nothing would be rejected")
        if len({level.value is None for level in self.levels}) > 1:
            raise ValueError("levels have all value or all at_least: one column is either text or numbers")
        if self.unmet == 0 and len({level.reward for level in self.levels}) < 2:
            raise ValueError("all levels have the same reward: nothing is preferred to anything; set unmet, or grades")
        return self


class PreferConfig(Config):
    """A preference recipe (``train/preference/*.yaml``): exactly one of negatives, scorer and feedback."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Of the data set: its folder below ``runs/preference/``."""
    checkpoint: str | None = None
    """A checkpoint, or a run, of which the last one is taken: its SIDs, and its model where one is asked."""
    data: DataConfig | None = None
    """None takes the data that the checkpoint was trained on."""
    users: int | None = Field(default=None, ge=1)
    """This many users, chosen by the hash of their id; None takes all."""
    recent_events: int | None = Field(default=1, ge=1)
    """A row for each of a user's most recent train events; None takes all."""
    min_history: int = Field(default=1, ge=1)
    """Events that must come before the chosen one."""
    negatives: NegativesConfig | None = None
    """Chosen is the user's next train event, rejected come from these sources."""
    scorer: ScorerConfig | None = None
    """Chosen and rejected by a scorer over the model's candidates."""
    feedback: FeedbackConfig | None = None
    """Chosen and rejected by graded feedback of the user."""
    seed: int = Field(default=0, ge=0)
    """Of every draw; a row's draws depend on its user and position, not on the other rows."""

    @model_validator(mode="after")
    def _one_way(self) -> PreferConfig:
        ways = {"negatives": self.negatives, "scorer": self.scorer, "feedback": self.feedback}
        given = [name for name, way in ways.items() if way is not None]
        if len(given) != 1:
            raise ValueError(
                f"exactly one of {', '.join(ways)} makes the pairs, given {' and '.join(given) or 'none'}; "
                "mix data sets by reading several"
            )
        return self

    @property
    def needs_model(self) -> bool:
        """Whether the checkpoint's model is asked, or only its SIDs are used."""
        return self.scorer is not None or (self.negatives is not None and self.negatives.needs_model)
