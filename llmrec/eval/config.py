"""The ``eval:`` part of a recipe: who is judged, how the model searches, what stands beside it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from llmrec.baselines import make_baseline
from llmrec.config import Config
from llmrec.data.split import Part
from llmrec.decode.result import Normalise
from llmrec.errors import InputError
from llmrec.metrics import MAX_CUTOFF

Mode = Literal["filtered", "unfiltered"]
"""Whether the history is out of the ranking. Both are reported, never mixed."""


class EvalConfig(Config):
    """Settings of an evaluation."""

    part: Part = "test"
    """The target: ``test`` is a user's last event, ``valid`` the one before. Choose on valid, look at test once."""
    users: int | None = Field(None, ge=1)
    """Judge this many users, chosen by the SHA-256 of their ids; all of them if unset or if there are fewer."""
    modes: tuple[Mode, ...] = ("filtered", "unfiltered")
    """The first one is the main mode: slices, plots and examples are drawn from it."""
    search: Literal["beam", "exact"] = "beam"
    """``exact`` equals scoring every item; ``beam`` is what serving does."""
    num_beams: int = Field(20, ge=1)
    """Width of the beam, at least `top_k`."""
    top_k: int = Field(MAX_CUTOFF, ge=MAX_CUTOFF)
    """Items a model lists per user; no metric looks beyond place 20."""
    normalise: Normalise | None = None
    """Over what probabilities are normalised; the checkpoint's own setting if unset."""
    window: int | None = Field(None, ge=1)
    """Most recent history items in the prompt; the checkpoint's own setting if unset."""
    batch_size: int = Field(16, ge=1)
    """Prompts prefilled together."""
    baselines: dict[str, dict[str, Any]] = Field({"popularity": {}, "itemknn": {}, "ease": {}, "sasrec": {}})
    """Baselines in the same table, with their settings (`llmrec.baselines.BASELINES`)."""
    exact_users: int = Field(50, ge=0)
    """Users (chosen by hash) on whom the first model's beam is compared with exact search; 0 skips it."""
    seed: int = 0
    """Of the sign flips in paired tests."""

    @field_validator("baselines")
    @classmethod
    def _known_baselines(cls, value: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        for name, settings in value.items():
            try:
                make_baseline(name, settings)
            except InputError as error:
                raise ValueError(str(error).replace("\n  - ", " ").replace("\n", "; ")) from error
        return value

    @model_validator(mode="after")
    def _consistent(self) -> EvalConfig:
        if not self.modes or len(set(self.modes)) != len(self.modes):
            raise ValueError(f"modes {list(self.modes)} are empty or name one twice")
        if self.search == "beam" and self.num_beams < self.top_k:
            raise ValueError(f"num_beams {self.num_beams} is below top_k {self.top_k}: a beam gives no more items")
        return self

    @property
    def main_mode(self) -> Mode:
        """The first mode."""
        return self.modes[0]
