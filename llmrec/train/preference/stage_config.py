"""Settings of the stage ``preference``: which losses, against which reference, for how long."""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import Field, model_validator

from llmrec.config import Config
from llmrec.train.config import Head, LoRASettings

PairLoss = Literal[
    "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired",
    "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm",
]  # fmt: skip
"""TRL's losses over pairs, by TRL's names; "sigmoid" is DPO."""

PAIR_LOSSES: tuple[PairLoss, ...] = get_args(PairLoss)

S_DPO = "s_dpo"
"""One chosen item against all rejected ones of its row (`llmrec.train.preference.losses`)."""

UNWEIGHTED = ("aot", "aot_unpaired", "sft")
"""Losses of a whole batch (two sort its pairs, one is a mean over tokens): no pair has a weight of its own."""

DIVERGENT = ("sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop", "sft")
"""Losses for which TRL takes another divergence than the reverse KL."""


class PreferenceConfig(Config):
    """A preference stage: what it minimises and how it learns."""

    losses: dict[PairLoss | Literal["s_dpo"], float] = Field(default={"s_dpo": 1.0}, min_length=1)
    """Losses and how much each counts: ``s_dpo``, or TRL's losses over pairs."""
    beta: float = Field(default=0.1, gt=0)
    """How strongly the model is held to the reference."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """Probability that a preference is wrong: used by ``robust``, ``exo_pair`` and the two ``aot``."""
    f_divergence: Literal["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"] = "reverse_kl"
    """The divergence from the reference, for TRL's losses that have one."""
    sft_weight: float = Field(default=0.0, ge=0)
    """Anchor: how much the mean negative log-likelihood of the chosen item's tokens counts beside the losses."""
    head: Head = "level"
    """Normalisation of SID tokens; serving uses the same one."""
    iterations: int = Field(default=1, ge=1)
    """Times the reference moves to where the model is; each trains `epochs`, on rows of its own where they are made."""
    precompute_reference: bool = True
    """Score all rows by the reference once, before training; otherwise a copy of the adapter scores each batch."""
    method: Literal["full", "lora"] = "lora"
    """"lora" trains adapters; "full", every weight but the rows of the base vocabulary, needs a full model to start."""
    train_sid_rows: bool = False
    """Whether SID rows learn, too; only where they lie in the adapter (flow "adapter")."""
    lora: LoRASettings = Field(default_factory=LoRASettings)
    """Of the new adapter where the start is a full model; an adapter that is there learns on as it is."""
    epochs: float = Field(default=1.0, gt=0)
    """Passes over the rows in each iteration; fractions are allowed."""
    learning_rate: float = Field(default=2e-5, gt=0)
    """Peak learning rate of adapters, in each iteration."""
    sid_learning_rate: float = Field(default=2e-5, gt=0)
    """Peak learning rate of SID rows where they lie in the adapter."""
    warmup_ratio: float = Field(default=0.1, ge=0, lt=1)
    """Part of all steps in which the learning rate rises."""
    schedule: Literal["linear", "cosine", "constant_with_warmup"] = "linear"
    """How the learning rate falls after the warm-up."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Of weights and adapters; embeddings have none."""
    batch_rows: int = Field(default=8, ge=1)
    """Rows of a batch; prompts of similar length share one."""
    gradient_accumulation: int = Field(default=1, ge=1)
    """Batches per optimizer step."""
    window: int = Field(default=20, ge=1)
    """Items of the history that a prompt shows."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are clipped to this norm."""
    evaluations: int = Field(default=3, ge=2)
    """Times the valid loss is measured in an iteration, before the first and after the last step included."""
    valid_users: int = Field(default=200, ge=1)
    """Users, chosen by hash, of that valid loss."""
    save_steps: int = Field(default=50, ge=1)
    """Steps between two states to resume from."""
    seed: int = 0
    """Of a new adapter and the order of rows."""
    trackers: list[str] = Field(default=[])
    """Trackers of transformers' ``report_to`` besides the console and the log file, such as ``trackio``."""

    @model_validator(mode="after")
    def _consistent(self) -> PreferenceConfig:
        problems = [f"losses.{name} must be above 0" for name, weight in self.losses.items() if not weight > 0]
        if "exo_pair" in self.losses and not self.label_smoothing:
            problems.append("exo_pair needs label_smoothing above 0; its authors recommend 0.001")
        rest = [name for name in self.losses if name not in DIVERGENT]
        if self.f_divergence != "reverse_kl" and rest:
            problems.append(
                f"f_divergence {self.f_divergence} is defined for {', '.join(DIVERGENT)}, not for {', '.join(rest)}"
            )
        if problems:
            raise ValueError("; ".join(problems))
        return self
