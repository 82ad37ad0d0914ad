"""Settings of a GRPO stage."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from llmrec.config import Config
from llmrec.decode.result import Normalise
from llmrec.recommendation import MAX_THOUGHT_TOKENS
from llmrec.train.config import LoRASettings
from llmrec.train.grpo.estimators import EstimatorName
from llmrec.train.grpo.losses import LOSSES, LossName
from llmrec.train.rewards.compose import RewardsConfig


class RolloutConfig(Config):
    """What a group is made of."""

    kind: Literal["sample", "beam", "thought"] = "sample"
    """"sample" draws items without replacement, with their probabilities: a policy gradient. "beam" takes the best
    beams as hard negatives (MiniOneRec, ReRe): a contrast with what the policy ranks high, which estimates nothing.
    "thought" draws thoughts and searches behind each of them: a policy gradient for the thoughts."""
    group_size: int = Field(default=16, ge=2)
    """Items of a group, all distinct; of "thought" its thoughts, whose items may repeat."""
    temperature: float = Field(default=1.0, gt=0)
    """Of "sample", level by level, and of the tokens of "thought"; in the rollout and in the loss."""
    estimator: EstimatorName = "importance"
    """How the items of a sample count; see `llmrec.train.grpo.estimators`."""
    add_target: bool = False
    """Of "beam": the target takes the place of the last beam where no beam found it."""
    max_thought_tokens: int = Field(default=MAX_THOUGHT_TOKENS, ge=1)
    """Of "thought": drawn tokens of a thought at most; then it is closed."""
    num_beams: int = Field(default=10, ge=1)
    """Of "thought": width of the search behind each thought, and the items that ``best_beam`` sees."""
    learn_item: bool = False
    """Of "thought": whether the SID of the best beam is reinforced besides. It is no draw, so this is a contrast as
    with "beam"; for rewards that judge this item (``hit``, ``prefix_depth``), not for ``best_beam``."""
    exclude_history: bool = True
    """Items of the history cannot be drawn, as in filtered evaluation. Prompts whose target is one are left out."""

    @model_validator(mode="after")
    def _consistent(self) -> RolloutConfig:
        if self.kind == "sample" and self.add_target:
            raise ValueError("add_target needs kind: beam: a target that was not drawn has no probability to be drawn; "
                             "with kind: sample the anchor teaches it")  # fmt: skip
        if self.kind == "thought" and self.add_target:
            raise ValueError("add_target needs kind: beam: nobody has thought of a target that was not found")
        if self.kind == "beam" and self.temperature != 1.0:
            raise ValueError("temperature belongs to kind: sample and thought; beams are the best items whatever it is")
        if self.kind != "sample" and self.estimator != "importance":
            raise ValueError("estimator belongs to kind: sample; thoughts and beams count equally")
        fields = RolloutConfig.model_fields
        of_thoughts = ("max_thought_tokens", "num_beams", "learn_item")
        given = [name for name in of_thoughts if getattr(self, name) != fields[name].default]
        if self.kind != "thought" and given:
            raise ValueError(f"{' and '.join(given)}: only kind: thought reads this")
        return self

    def learned_tokens(self, num_levels: int) -> int:
        """Tokens of a completion that are learned from, at most."""
        if self.kind != "thought":
            return num_levels
        return self.max_thought_tokens + (num_levels if self.learn_item else 0)


class GRPOStageConfig(Config):
    """A stage of reinforcement learning with TRL's GRPOTrainer."""

    # -- what is rolled out
    users: int | None = Field(default=None, ge=1)
    """This many users, chosen by the hash of their id; None takes all."""
    recent_events: int | None = Field(default=1, ge=1)
    """A prompt for each of a user's most recent train events; None takes all."""
    min_history: int = Field(default=1, ge=1)
    """Events that must come before the target."""
    max_length: int = Field(default=1024, ge=16)
    """Tokens of a prompt; the oldest items give way."""
    rollout: RolloutConfig = Field(default_factory=RolloutConfig)
    """What a group is made of."""
    rewards: RewardsConfig = Field(default_factory=RewardsConfig)
    """What is paid for."""
    normalise: Normalise = "legal"
    """Over what SID log-probabilities are normalised in rollout, loss, KL and anchor. "legal" is what a sample is drawn
    from, hence the exact policy gradient. With "level" (or "vocab") the loss is the one of SFT, the gradient also moves
    probability between legal and illegal codes, and a sample's weights stay those of the legal choice."""

    # -- the loss
    loss: LossName = "grpo"
    """See `llmrec.train.grpo.losses`."""
    ratio: Literal["token", "sequence"] = "token"
    """Level of the probability ratio; "sequence" is GSPO's."""
    epsilon: float = Field(default=0.2, gt=0, lt=1)
    """Clipping range of the ratio."""
    epsilon_high: float | None = Field(default=None, gt=0)
    """Upper clipping range; None is `epsilon`, and 5.0 for ``cispo``, where it is the largest ratio itself (TRL)."""
    delta: float = Field(default=0.1, gt=0)
    """What ECPO allows a bad item's ratio beyond `epsilon` (0.1 in OneRec's report)."""
    scale_rewards: bool = True
    """Divide advantages by the group's standard deviation (GRPO); off is Dr. GRPO's choice."""
    beta: float = Field(default=0.04, ge=0)
    """Weight of the KL divergence from the reference (0.04 in DeepSeekMath); it is measured at 0 as well."""
    anchor: float = Field(default=0.1, ge=0)
    """Weight of the target's negative log-likelihood, nats a token: SFT beside the reward."""
    num_iterations: int = Field(default=1, ge=1)
    """Updates per rollout."""

    # -- how it learns
    method: Literal["full", "lora"] = "lora"
    """"full" trains every weight but the rows of the base vocabulary; "lora" trains adapters."""
    lora: LoRASettings = Field(default_factory=LoRASettings)
    """Used where the stage makes an adapter of its own."""
    train_sid_rows: bool = False
    """Whether SID rows learn."""
    prompts_per_step: int = Field(default=8, ge=1)
    """Prompts (whole groups) of a forward."""
    gradient_accumulation: int = Field(default=1, ge=1)
    """Forwards per optimizer step."""
    epochs: float = Field(default=1.0, gt=0)
    """Passes over the prompts."""
    max_steps: int | None = Field(default=None, ge=1)
    """Optimizer steps, whatever `epochs` says."""
    learning_rate: float = Field(default=5e-5, gt=0)
    """Peak learning rate of weights or adapters."""
    sid_learning_rate: float = Field(default=5e-5, gt=0)
    """Peak learning rate of SID rows."""
    warmup_ratio: float = Field(default=0.05, ge=0, lt=1)
    """Part of all steps in which the learning rate rises."""
    schedule: Literal["linear", "cosine", "constant_with_warmup"] = "constant_with_warmup"
    """How the learning rate falls after the warm-up."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Of weights and adapters."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are clipped to this norm."""

    # -- what is watched
    evaluate_steps: int = Field(default=20, ge=1)
    """Steps between two evaluations on valid users; also before the first and after the last step."""
    valid_users: int = Field(default=200, ge=2)
    """Valid users, chosen by hash."""
    keep_best: bool = True
    """Whether the weights of the best evaluation are handed on; off hands on the last ones."""
    save_steps: int = Field(default=20, ge=1)
    """Steps between two states to resume from; rounded up to whole rollouts."""
    seed: int = Field(default=0, ge=0)
    """Of prompts' order and rollouts; a prompt's draws depend on seed, prompt and step alone."""
    trackers: list[str] = Field(default=[])
    """Trackers of transformers' ``report_to`` besides the console and the log file."""

    @model_validator(mode="after")
    def _consistent(self) -> GRPOStageConfig:
        problems = []
        if self.ratio == "sequence" and self.loss in ("ecpo", "gbpo"):
            problems.append(f'loss {self.loss} bounds the probability of a token: use ratio "token"')
        if self.epsilon_high is not None and not LOSSES[self.loss].clipped:
            problems.append(f"loss {self.loss} does not clip: epsilon_high has no effect")
        about_thoughts = sorted({"best_beam", "grounded", "path_consistency"} & set(self.rewards.parts))
        if self.rollout.kind != "thought" and about_thoughts:
            problems.append(f"{' and '.join(about_thoughts)} judge thoughts: set rollout.kind: thought")
        if problems:
            raise ValueError("; ".join(problems))
        return self
