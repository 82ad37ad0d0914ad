"""What is compared, and the settings of the proxy: the small next-SID model that is trained for every tokenizer alike.

The defaults are those of the recipe ``ml-100k-small``: a Llama of about a million parameters, every item of a history a
target, the loss normalised over the codes of a level. Budget and schedule are the same for all tokenizers; nothing is
tuned for one of them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import Field, field_validator

from llmrec.config import Config
from llmrec.data.config import DataConfig
from llmrec.decode.result import Normalise
from llmrec.eval.config import EvalConfig
from llmrec.sid_vocab.build import SIDConfig
from llmrec.train.base import BaseConfig
from llmrec.train.config import StageConfig, TaskMix

SMALL_LLAMA = {
    "model_type": "llama",
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}


@dataclass(frozen=True)
class Arm:
    """A tokenizer to compare."""

    name: str
    """What tables call it."""
    data: DataConfig
    """Its data set: the same split for all arms. Fields that are joined into the items' text may differ."""
    sid: SIDConfig
    """How items get their SIDs."""


class ProxyConfig(Config):
    """The proxy: one training and one evaluation per tokenizer and seed."""

    tokens: int = Field(default=2_500_000, ge=1000)
    """Training tokens, padding apart; minutes on two cores. Equal for all, up to one batch."""
    seeds: tuple[int, ...] = (0,)
    """Of weights, SID rows and order of the batches. A user counts with the mean over them."""
    base: BaseConfig = Field(default_factory=lambda: BaseConfig(config=dict(SMALL_LLAMA), tokenizer_size=300))
    """A model from scratch: no tokenizer gains from words that a pretrained model knows."""
    learning_rate: float = Field(default=3e-3, gt=0)
    """Peak, for weights and SID rows; it falls linearly to 0 at the end of the budget."""
    batch_tokens: int = Field(default=1600, ge=16)
    """Tokens of an optimizer step, padding included."""
    window: int = Field(default=50, ge=1)
    """Items of a training row and of a prompt, whatever the length of a SID."""
    users: int | None = Field(default=None, ge=1)
    """Judge this many valid users, chosen by the SHA-256 of their ids; all of them if unset."""
    num_beams: int = Field(default=20, ge=20)
    """Width of the constrained beam search."""
    normalise: Normalise = "legal"
    """Over what scores are normalised (docs/decisions/0004)."""
    exact_users: int = Field(default=50, ge=0)
    """Users on whom the beam is compared with exact search, which shows what it costs long SIDs; 0 skips it."""

    @field_validator("seeds")
    @classmethod
    def _some_seeds(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if not seeds or len(set(seeds)) != len(seeds):
            raise ValueError(f"{list(seeds)} is empty or names a seed twice")
        return seeds

    @field_validator("base")
    @classmethod
    def _from_scratch(cls, base: BaseConfig) -> BaseConfig:
        if base.model is not None:
            raise ValueError("the proxy is made from scratch: set base.config, not base.model")
        return base

    def stage(self, *, epochs: float, max_length: int, seed: int) -> StageConfig:
        """The training stage."""
        return StageConfig(
            tasks={"behaviour": TaskMix(settings={"window": self.window})},
            method="full",
            epochs=epochs,
            learning_rate=self.learning_rate,
            sid_learning_rate=self.learning_rate,
            batch_tokens=self.batch_tokens,
            max_length=max_length,
            seed=seed,
        )

    def evaluation(self, baselines: Mapping[str, dict[str, Any]]) -> EvalConfig:
        """The evaluation: valid, filtered."""
        return EvalConfig.model_validate(
            {"part": "valid", "modes": ("filtered",), "baselines": dict(baselines), **self.judged_by}
        )

    @property
    def trained_by(self) -> dict[str, Any]:
        """Those settings that a trained model depends on, its seed apart."""
        return self.model_dump(mode="json", include={"tokens", "base", "learning_rate", "batch_tokens", "window"})

    @property
    def judged_by(self) -> dict[str, Any]:
        """Those settings that decide, given a model, what it is found to be worth."""
        return self.model_dump(mode="json", include={"users", "num_beams", "normalise", "exact_users"})


def content_key(parts: Mapping[str, Any]) -> str:
    """12 hex digits by which work on equal `parts` finds its folder again."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]
