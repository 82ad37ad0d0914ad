"""What an alignment recipe (``train/align/*.yaml``) holds: a checkpoint, one method, and who is judged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from llmrec import recipes
from llmrec.config import Config, load_config
from llmrec.data.config import DataConfig
from llmrec.data.split import Part
from llmrec.eval.config import EvalConfig
from llmrec.train.config import StageConfig
from llmrec.train.grpo.config import GRPOStageConfig
from llmrec.train.preference.config import PreferConfig
from llmrec.train.preference.stage_config import PreferenceConfig

MethodName = Literal["preference", "grpo", "continued"]
METHODS: tuple[MethodName, ...] = ("preference", "grpo", "continued")


class PreferenceMethod(PreferenceConfig):
    """A preference stage, and where its pairs come from: exactly one of `pairs` and `prefer`."""

    pairs: str | None = None
    """A data set that ``llmrec prefer`` wrote; the same rows in every iteration."""
    prefer: PreferConfig | None = None
    """A recipe of ``llmrec prefer``. Where it asks the model, each iteration asks the model as it is then."""

    @field_validator("prefer", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        return {"name": "pairs", **value} if isinstance(value, Mapping) else value

    @model_validator(mode="after")
    def _one_source(self) -> PreferenceMethod:
        problems = []
        if (self.pairs is None) == (self.prefer is None):
            given = "neither" if self.pairs is None else "both"
            problems.append(f"pairs come from exactly one of pairs (a folder) and prefer (a recipe), given {given}")
        if self.prefer is not None and self.prefer.checkpoint is not None:
            problems.append("prefer.checkpoint: the checkpoint that is aligned is the one that is asked; leave it out")
        if self.prefer is not None and self.prefer.data is not None:
            problems.append("prefer.data: pairs come from the data of this recipe; leave it out, or set data")
        if problems:
            raise ValueError("; ".join(problems))
        return self


class ContinuedMethod(StageConfig):
    """More SFT from the same start: what every other method has to beat at the same cost."""

    train_sid_rows: bool = False
    """Whether SID rows learn; only where they lie in the adapter (flow "adapter")."""
    steps: int | None = Field(default=None, ge=1)
    """Optimizer steps, whatever `epochs` says: those of the run that this is the control of."""
    tokens: int | None = Field(default=None, ge=1)
    """Tokens without padding, whatever `epochs` says; ``train.json`` of the other run names its own."""

    @model_validator(mode="after")
    def _one_budget(self) -> ContinuedMethod:
        if self.steps is not None and self.tokens is not None:
            raise ValueError("steps and tokens are both given: one of them decides how long this trains")
        return self


class AlignEvalConfig(EvalConfig):
    """The evaluation of start and aligned model."""

    part: Part = "valid"
    """The target: methods are chosen on ``valid``; ``test`` is looked at once, with the one that was chosen."""
    baselines: dict[str, dict[str, Any]] = Field({"popularity": {}, "itemknn": {}})
    """Baselines in the same table, with their settings (`llmrec.baselines.BASELINES`)."""


class AlignConfig(Config):
    """An alignment recipe: exactly one of preference, grpo and continued."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Of the run: its folder below ``runs/``."""
    checkpoint: str | None = None
    """A checkpoint that has learnt to recommend, or a run, of which the last one is taken."""
    data: DataConfig | None = None
    """None takes the data that the checkpoint was trained on; for data that has moved."""
    preference: PreferenceMethod | None = None
    """Chosen against rejected items: DPO, S-DPO, self-play."""
    grpo: GRPOStageConfig | None = None
    """Rewards: GRPO and its kin."""
    continued: ContinuedMethod | None = None
    """The control: more SFT."""
    eval: AlignEvalConfig = Field(default_factory=lambda: AlignEvalConfig.model_validate({}))
    """Evaluation of the start and of what came of it."""

    @model_validator(mode="after")
    def _one_method(self) -> AlignConfig:
        given = [name for name in METHODS if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"exactly one of {', '.join(METHODS)} aligns the model, given {' and '.join(given) or 'none'}; "
                "the checkpoint of one run can be the start of the next"
            )
        if self.grpo is not None and "text_vectors" in self.grpo.rewards.needs():
            raise ValueError(
                "grpo.rewards: a reward compares texts, and a checkpoint holds no text vectors: leave it out"
            )
        return self

    @property
    def method(self) -> MethodName:
        """Which of the three."""
        return next(name for name in METHODS if getattr(self, name) is not None)

    @property
    def settings(self) -> PreferenceMethod | GRPOStageConfig | ContinuedMethod:
        """Those of the method."""
        given: PreferenceMethod | GRPOStageConfig | ContinuedMethod = getattr(self, self.method)
        return given


def load_align_recipe(name_or_path: str, overrides: Sequence[str] = ()) -> AlignConfig:
    """Read an alignment recipe by the name it has in ``train/align``, by shipped name or by path.

    Raises:
        InputError: there is no such recipe, or it is not YAML.
        ConfigError: unknown keys or wrong values, all of them.
    """
    named = recipes.folder("train") / "align" / f"{name_or_path}.yaml"
    path = named if named.is_file() and not Path(name_or_path).is_file() else recipes.find(name_or_path)
    return load_config(AlignConfig, path, overrides)
