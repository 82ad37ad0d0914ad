"""Settings of a training stage. Every stage reads the same knobs; a recipe sets what differs."""

from __future__ import annotations

import difflib
from dataclasses import fields
from typing import Any, Literal

from pydantic import Field, TypeAdapter, ValidationError, field_validator

from llmrec.config import Config
from llmrec.prompts.task import Task
from llmrec.prompts.tasks import TASKS

Flow = Literal["extended_base", "adapter"]
"""Where SID rows live. "extended_base" (A): CPT trains a SID-extended base, whose rows are frozen from then on, and
later stages are plain LoRA. "adapter" (B): one adapter of LoRA and SID rows on the untouched base, in all stages."""

Head = Literal["level", "vocab"]
"""Over what the loss of a SID token is normalised: the codes of its level, or the whole vocabulary."""


class LoRASettings(Config):
    """Low-rank adapters (Hu et al., 2022)."""

    rank: int = Field(default=16, ge=1)
    """Rank r of the update."""
    alpha: int = Field(default=32, ge=1)
    """The update is scaled by alpha / r."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout before the down-projection."""
    target_modules: str | list[str] = "all-linear"
    """Modules that get an adapter; "all-linear" is every linear layer but the head."""


class TaskMix(Config):
    """One task of a stage."""

    share: float = Field(default=1.0, gt=0, le=1)
    """Part of the task's examples that an epoch uses, chosen anew for each epoch."""
    settings: dict[str, Any] = Field(default={})
    """The task's own settings, such as ``window`` of ``behaviour``."""


class StageConfig(Config):
    """A training stage: what it reads, for how long, and how it learns."""

    tasks: dict[str, TaskMix] = Field(default={"behaviour": TaskMix()})
    """Tasks by name (`llmrec.prompts.tasks.TASKS`)."""
    recent_items: int | None = Field(default=None, ge=2)
    """Only the most recent train items of each user; what that leaves out is counted. None takes all."""
    method: Literal["full", "lora"] = "lora"
    """"full" trains every weight but the rows of the base vocabulary; "lora" trains adapters."""
    lora: LoRASettings = Field(default_factory=LoRASettings)
    """Used by ``method: lora``."""
    train_sid_rows: bool = True
    """Whether SID rows (embedding and head) learn. Off in the SFT of an extended base: vLLM then serves the adapter."""
    head: Head = "level"
    """Normalisation of the loss of SID tokens; serving uses the same one."""
    epochs: float = Field(default=1.0, gt=0)
    """Passes over the examples; fractions are allowed."""
    learning_rate: float = Field(default=3e-4, gt=0)
    """Peak learning rate of weights or adapters."""
    sid_learning_rate: float = Field(default=3e-3, gt=0)
    """Peak learning rate of SID rows, which start nearly untrained and bear about ten times as much."""
    warmup_ratio: float = Field(default=0.05, ge=0, lt=1)
    """Part of all steps in which the learning rate rises."""
    schedule: Literal["linear", "cosine", "constant_with_warmup"] = "linear"
    """How the learning rate falls after the warm-up."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Of weights and adapters; embeddings have none, so that frozen rows stay bit-identical."""
    batch_tokens: int = Field(default=1024, ge=16)
    """Tokens of a batch, padding included; sequences of similar length share a batch."""
    gradient_accumulation: int = Field(default=1, ge=1)
    """Batches per optimizer step."""
    max_length: int = Field(default=1024, ge=16)
    """Tokens of a row; the oldest items give way, never a target."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are clipped to this norm."""
    evaluations: int = Field(default=6, ge=2)
    """Times the valid loss is measured, before the first and after the last step included."""
    valid_users: int = Field(default=200, ge=1)
    """Users, chosen by hash, of that valid loss."""
    save_steps: int = Field(default=100, ge=1)
    """Steps between two states to resume from."""
    seed: int = 0
    """Of initialisation, order, phrasings and dropout."""
    trackers: list[str] = Field(default=[])
    """Trackers of transformers' ``report_to`` besides the console and the log file, such as ``trackio``."""

    @field_validator("tasks")
    @classmethod
    def _known_tasks(cls, tasks: dict[str, TaskMix]) -> dict[str, TaskMix]:
        problems = [] if tasks else [f"no task is named; known are {', '.join(TASKS)}"]
        for name, mix in tasks.items():
            if name not in TASKS:
                near = difflib.get_close_matches(name, TASKS, n=1)
                advice = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(TASKS)}"
                problems.append(f"{name!r} is no task; {advice}")
                continue
            known = {field.name: field for field in fields(TASKS[name])}
            problems += [
                f"task {name} has no setting {setting!r}; known are {', '.join(known) or 'none'}"
                for setting in mix.settings
                if setting not in known
            ]
            try:
                TypeAdapter(TASKS[name]).validate_python(
                    {key: value for key, value in mix.settings.items() if key in known}
                )
            except ValidationError as error:
                problems += [
                    f"setting {each['loc'][0]} of task {name}: {each['msg']} (given {each['input']!r})"
                    for each in error.errors()
                ]
        if problems:
            raise ValueError("; ".join(problems))
        return tasks

    def make_tasks(self) -> dict[str, Task]:
        """The stage's tasks with their settings."""
        return {name: TASKS[name](**mix.settings) for name, mix in self.tasks.items()}
