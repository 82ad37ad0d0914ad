"""What a pipeline recipe (``train/pipelines/*.yaml``) holds: data, base, SIDs, training stages, serving, evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import Field, model_validator

from llmrec import recipes
from llmrec.config import Config, load_config
from llmrec.data.config import DataConfig
from llmrec.decode.result import Normalise
from llmrec.eval.config import EvalConfig
from llmrec.sid_vocab.build import SIDConfig
from llmrec.sid_vocab.rows import Init
from llmrec.train.base import BaseConfig
from llmrec.train.config import Flow, StageConfig


class ServingConfig(Config):
    """How the finished checkpoint is asked."""

    window: int = Field(default=50, ge=1)
    """Most recent history items in a prompt, in evaluation and serving."""
    window_step: int = Field(default=1, ge=1)
    """A full window starts at a multiple of this many items, so that a growing history keeps its prefix: a server with
    a prefix cache then reads a returning user's new events only."""
    num_beams: int = Field(default=20, ge=1)
    """Width of the beam search."""
    normalise: Normalise | None = None
    """Over what scores are normalised; None takes what the last training stage used as its head."""


class PipelineConfig(Config):
    """A pipeline recipe."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Of the run: its folder below ``runs/``."""
    data: DataConfig
    """Interactions and catalogue."""
    base: BaseConfig
    """The model that learns."""
    sid: SIDConfig = Field(default_factory=SIDConfig)
    """How items get their Semantic IDs."""
    init: Init = "title_mean"
    """How SID rows start (`llmrec.sid_vocab.rows`); ``llmrec sid init-report`` compares the ways on a recipe."""
    pad_to_multiple: int | None = Field(default=None, ge=1)
    """Round the rows of embedding and head up to a multiple of this; 64 suits tensor cores."""
    spare_rows_only: bool = False
    """Whether SID tokens must fit into the rows that the base has to spare (Qwen3 has 267), so that no matrix grows."""
    flow: Flow = "extended_base"
    """Where SID rows live."""
    prompts: str | None = None
    """A folder of templates of one's own (`llmrec recipes cp`); None takes those that ship with llmrec."""
    cpt: StageConfig
    """Continued pretraining."""
    sft: StageConfig | None = None
    """Supervised fine-tuning; None ends with the checkpoint of cpt."""
    serving: ServingConfig = Field(default_factory=ServingConfig)
    """Defaults of the checkpoint."""
    eval: EvalConfig = Field(default_factory=lambda: EvalConfig.model_validate({}))
    """Evaluation."""
    untrained: bool = True
    """Whether the same model with untrained SID rows stands in the evaluation's table."""
    seed: int = 0
    """Of SID rows, and of the weights of a model from scratch; stages have their own."""

    @model_validator(mode="after")
    def _consistent(self) -> PipelineConfig:
        problems = []
        if self.flow == "adapter" and self.base.model is None:
            problems.append('flow "adapter" needs base.model: an adapter of a model from scratch has nothing to sit on')
        if not self.cpt.train_sid_rows:
            problems.append("cpt.train_sid_rows must be true: SID rows would stay as they were initialised")
        if self.cpt.method == "full" and self.flow == "adapter":
            problems.append('cpt.method full has no place in flow "adapter", which leaves the base untouched: use lora')
        if self.sft is not None and self.sft.method == "full":
            problems.append("sft.method must be lora: full fine-tuning belongs to cpt")
        if self.sft is not None and self.sft.train_sid_rows and self.flow == "extended_base":
            problems.append('sft.train_sid_rows must be false in flow "extended_base": the rows belong to the base')
        if self.base.quantize and self.flow == "extended_base":
            problems.append(
                'base.quantize needs flow "adapter": flow "extended_base" writes a new base, which packing would round'
            )
        if self.pad_to_multiple and self.spare_rows_only:
            problems.append("pad_to_multiple adds rows, which spare_rows_only forbids: give one of them")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @property
    def stages(self) -> dict[str, StageConfig]:
        """The training stages in their order."""
        return {"cpt": self.cpt, **({"sft": self.sft} if self.sft else {})}

    @property
    def max_length(self) -> int:
        """Tokens of a prompt: the longest row of any stage."""
        return max(stage.max_length for stage in self.stages.values())

    @property
    def normalise(self) -> Normalise:
        """Of the search: what training's head was normalised over, unless the recipe says otherwise."""
        return self.serving.normalise or next(reversed(self.stages.values())).head

    @property
    def explains(self) -> bool:
        """Whether a stage teaches explanations."""
        return any("explain" in stage.tasks for stage in self.stages.values())


def load_recipe(name_or_path: str | Path, overrides: Sequence[str] = ()) -> PipelineConfig:
    """Read a pipeline recipe by shipped name or path, with dotted ``key=value`` overrides.

    Raises:
        InputError: there is no such recipe, or it is not YAML.
        ConfigError: unknown keys or wrong values, all of them.
    """
    return load_config(PipelineConfig, recipes.find(name_or_path), overrides)
