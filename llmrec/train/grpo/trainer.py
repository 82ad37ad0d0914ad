"""`ConstrainedGRPOTrainer`: TRL's GRPOTrainer with rollouts from the search and one forward per prompt's tree.

This is the one file that touches TRL's private members; ``docs/decisions/0012-grpo-seam.md`` says which and why, and
``tests/train/test_grpo_seam.py`` pins what they rely on. Overridden are

* ``_prepare_inputs``: groups come from `Rollouts` and stay whole (TRL shuffles their rows), rewards read token ids (TRL
  decodes them), groups without variance are left out, advantages follow the estimator of the rollout;
* ``_get_per_token_logps_and_entropies``: what `TreeForward` has computed, instead of a forward per completion;
* ``_compute_loss``: TRL's loss over these, then the KL from the reference, weighted like the items, and the anchor;
* ``create_optimizer``: SID rows learn at a rate of their own.

The loss of a step is a mean over all its groups with variance, however they fall on batches and processes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor, nn

from llmrec import processes
from llmrec.errors import LLMRecError
from llmrec.train.grpo.batch import Batch, Paid, make_batch, pay, record
from llmrec.train.grpo.config import GRPOStageConfig
from llmrec.train.grpo.even_batches import evened, filled_up
from llmrec.train.grpo.losses import LOSSES, denominator
from llmrec.train.grpo.rollouts import Rollouts, Row
from llmrec.train.grpo.trl_trainer import GRPOTrainer
from llmrec.train.mixed_precision import MixedPrecision
from llmrec.train.rewards.compose import RewardSet
from llmrec.train.trainer import row_parameters
from llmrec.train.tree_forward import TreeForward
from llmrec.train.wrapped_forward import within_forward


class Reference(Protocol):
    """The model that the KL divergence is measured from."""

    def active(self) -> AbstractContextManager[None]:
        """Within it, the policy's forward is the reference's."""
        ...


class ConstrainedGRPOTrainer(MixedPrecision, GRPOTrainer):  # type: ignore[misc]  # trl is untyped
    """See the module's docstring.

    Args:
        settings: of the stage; TRL's arguments are made from them (`llmrec.train.grpo.stage`).
        rollouts: answers prompts.
        rewards: paid for the answers.
        policy: scores completions by the model that learns.
        reference: of the KL divergence.
        percentile: (n_items,) popularity of the table's rows.
        sid_of: token ids of every item id's SID, for the anchor.
    """

    optimizer: Any
    _buffered_inputs: Any

    def __init__(
        self,
        *args: Any,
        settings: GRPOStageConfig,
        rollouts: Rollouts,
        rewards: RewardSet,
        policy: TreeForward,
        reference: Reference,
        percentile: np.ndarray,
        sid_of: Mapping[str, np.ndarray],
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if isinstance(self.model, PeftModel):  # as in `RecommenderTrainer`
            self.model.peft_config["default"].base_model_name_or_path = None
        self._settings = settings
        self._rollouts = rollouts
        self._rewards = rewards
        self._policy = policy
        self._reference = reference
        self._percentile = percentile
        self._sid_of = sid_of
        self._form = LOSSES[settings.loss]
        self._scored: tuple[Tensor, Tensor] | None = None

    # -- rollouts --------------------------------------------------------------------------------------------------

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        """The next batch of the rollout at hand, or of a new one where it is time for it."""
        steps = self.args.steps_per_generation
        if self._step % (steps * self.num_iterations) == 0 or self._buffered_inputs is None:
            self._buffered_inputs = self._roll_out(generation_batch[:: self.num_generations])
        batch: dict[str, Any] = self._buffered_inputs[self._step % steps]
        return batch

    def _roll_out(self, rows: Sequence[Row]) -> list[dict[str, Any]]:
        generation = self.state.global_step // self.num_iterations
        seed = int(np.random.SeedSequence([self._settings.seed, generation]).generate_state(1)[0])
        groups = self._rollouts.draw(rows, seed)
        if not any(len(group.items) for group in groups):
            raise LLMRecError(
                f"No prompt of step {self.state.global_step + 1} could be answered: no living item is left to draw.",
                hint="check the trie's living items; histories are excluded unless rollout.exclude_history is false",
            )
        paid = pay(self._rewards, rows, groups)
        self._note_rollout(paid)
        size, device = len(rows) // self.args.steps_per_generation, self.accelerator.device
        batches = evened(
            [
                make_batch(paid[start : start + size], self._settings, self._sid_of, device)
                for start in range(0, len(paid), size)
            ]
        )
        counts = [
            sum(int(batch.mask.sum()) for batch in batches),
            sum(len(batch.rollout) for batch in batches),
            sum(one.kept for one in paid),
        ]
        totals = self.accelerator.reduce(torch.tensor(counts, device=device), reduction="sum").tolist()
        tokens, completions, known = (max(total, 1) for total in totals)
        return [
            {
                "batch": batch,
                "advantages": batch.advantages,
                # TRL concatenates these for a forward that is not made; of the ids only the shape counts.
                "completion_mask": batch.mask,
                "completion_ids": torch.zeros_like(batch.mask),
                "prompt_ids": batch.mask[:, :0],
                "prompt_mask": batch.mask[:, :0],
                "num_items_in_batch": torch.tensor(float(tokens), device=device),
                "completions_of_step": completions,
                "groups_of_step": known,
                **self._scored_before(batch),
            }
            for batch in batches
        ]

    def _scored_before(self, batch: Batch) -> dict[str, Tensor]:
        """Log-probabilities of the rollout's completions under the policy that wrote them and the reference."""
        if not len(batch.rollout):
            return {"reference": batch.advantages.new_zeros(0, 0)}
        found = {}
        with torch.no_grad(), self.compute_loss_context_manager():
            if self.num_iterations > 1:
                found["old"] = self._policy(batch.tree).tokens[batch.rollout]
            with self._reference.active():
                found["reference"] = self._policy(batch.tree).tokens[batch.rollout]
        return found

    # -- loss ------------------------------------------------------------------------------------------------------

    def _compute_loss(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        inner = self.accelerator.unwrap_model(model)
        return within_forward(model, inner, partial(self._loss_of, inner, inputs))

    def _loss_of(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        """The share of one batch in the step's loss; its policy loss is zero where only other processes have rows."""
        batch: Batch = inputs["batch"]
        parts = self.current_gradient_accumulation_steps * self.accelerator.num_processes
        shape = inputs["completion_mask"].shape
        scores = self._policy(batch.tree, entropy=True) if batch.tree else None
        if scores is None:  # a zero with a gradient of zeros: this process keeps step
            trained = [parameter.sum() for parameter in model.parameters() if parameter.requires_grad]
            loss = torch.stack(trained).sum() * 0.0
            log_p = entropy = batch.advantages.new_zeros(shape)
        else:
            assert scores.entropy is not None
            loss = scores.tokens.sum() * 0.0
            log_p, entropy = (filled_up(each[batch.rollout], shape) for each in (scores.tokens, scores.entropy))
        if len(batch.mask):
            loss = loss + self._policy_loss(model, inputs, batch, log_p, entropy, parts)
        if scores is not None and len(batch.target):
            of_target = -scores.tokens[batch.target].sum(dim=1) / scores.mask[batch.target].sum(dim=1)
            self._note("anchor", float(of_target.detach().mean()))
            loss = loss + self._settings.anchor * of_target.mean() / self.current_gradient_accumulation_steps
        return loss

    def _policy_loss(
        self, model: nn.Module, inputs: dict[str, Any], batch: Batch, log_p: Tensor, entropy: Tensor, parts: int
    ) -> Tensor:
        settings, mask = self._settings, inputs["completion_mask"]
        old = filled_up(inputs.get("old", log_p.detach()), mask.shape)
        below = denominator(
            settings.loss, log_p, old, inputs["advantages"], epsilon=settings.epsilon, delta=settings.delta
        )
        self._scored = (log_p, entropy)
        loss: Tensor = super()._compute_loss(model, {**inputs, "old_per_token_logps": below})
        self._scored = None
        if self._form.batch_mean:  # TRL took the mean over the rows of this batch
            loss = loss * (parts * len(log_p) / inputs["completions_of_step"])
        ratio = (log_p - old).exp()
        outside = ((ratio.detach() - 1).abs() > settings.epsilon) & mask.bool()
        self._note("clip_share", float(outside.sum() / mask.sum()))
        # Schulman's estimate, with the ratio that makes its gradient the divergence's (TRL's use_bias_correction_kl)
        apart = filled_up(inputs["reference"], mask.shape) - log_p
        per_row = ((apart.exp() - apart - 1) * ratio * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)
        divergence = (batch.weight * per_row).sum()
        groups = batch.weight.sum()  # weights of a group sum to 1
        self._note("kl", float(divergence.detach() / groups))
        if settings.beta:
            scale = self.accelerator.num_processes / inputs["groups_of_step"]
            loss = loss + settings.beta * divergence * scale
        return loss

    def _get_per_token_logps_and_entropies(
        self, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """What `_policy_loss` has scored."""
        assert self._scored is not None
        return *self._scored, None

    # -- record and optimizer --------------------------------------------------------------------------------------

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Take the means over all processes of what `_note` has here; TRL's own metrics are that already."""
        noted = self._metrics["train"]
        names = ("anchor", "clip_share", "kl")
        everywhere = processes.gathered({name: noted[name] for name in names if name in noted})
        for name in names:
            if found := [value for there in everywhere for value in there.get(name, [])]:
                noted[name] = found
        super().log(logs, start_time)

    def _note(self, name: str, value: float) -> None:
        self._metrics["train"][name].append(value)

    def _note_rollout(self, paid: Sequence[Paid]) -> None:
        """Record what was drawn and paid, over all processes."""
        measured = record(paid, self._rewards, self._percentile)
        everywhere = processes.gathered(measured)
        for name in measured:
            values = [there[name] for there in everywhere if name in there]
            self._note(name, sum(values) / (1 if name in ("groups", "dropped") else len(values)))

    def create_optimizer(self, model: Any = None) -> Any:
        """AdamW with SID rows in a group of their own, without weight decay."""
        if self.optimizer is None:
            rows = row_parameters(self.model)
            trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
            own = [parameter for parameter in trained if id(parameter) in rows]
            rest = [parameter for parameter in trained if id(parameter) not in rows]
            optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            groups: list[dict[str, Any]] = [{"params": rest, "weight_decay": self.args.weight_decay}]
            if own:
                groups.append({"params": own, "weight_decay": 0.0, "lr": self._settings.sid_learning_rate})
            self.optimizer = optimizer_class(groups, **options)
        return self.optimizer
