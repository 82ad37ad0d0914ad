"""`RecommenderTrainer`: TRL's SFTTrainer with the loss over targets, rows of their own learning rate, frozen base rows.

Three public methods are overridden and nothing private is used: ``compute_loss`` (hidden states go to `TargetHead`, so
that no full logits are made), ``create_optimizer`` (SID rows learn at ``sid_learning_rate``) and ``log`` (losses are
means over targets, not over batches). Batches come ready-made and in order (`llmrec.train.batches`), so the sampler is
sequential and a resumed run sees exactly the batches that an uninterrupted one would have seen. What this relies on in
TRL and transformers is pinned by ``tests/train/test_trl_seam.py`` and explained in ``docs/decisions/0005-trl-seam.md``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from trl import SFTTrainer

from llmrec.quantized import is_packed
from llmrec.sid_vocab.table import SIDTable
from llmrec.train.config import StageConfig
from llmrec.train.loss import TargetHead, TargetLoss
from llmrec.train.mixed_precision import MixedPrecision
from llmrec.train.wrapped_forward import within_forward


class RecommenderTrainer(MixedPrecision, SFTTrainer):  # type: ignore[misc]  # trl is untyped
    """Trains one stage; see the module's docstring. `table` holds the SIDs, `stage` the settings."""

    optimizer: Any

    def __init__(self, *, model: Any, table: SIDTable, stage: StageConfig, **kwargs: Any) -> None:
        learns = [(weight, weight.data) for weight in model.parameters() if weight.requires_grad and is_packed(model)]
        super().__init__(model=model, **kwargs)
        for weight, values in learns:
            weight.data = values  # TRL rounds what learns on a packed base to bfloat16: small steps would vanish in it
        if isinstance(self.model, PeftModel):
            # PEFT compares vocabularies with the base it finds under this name, on the hub if need be, and would save
            # the whole extended matrix with each state. What `Checkpoint` hands on names its base itself.
            self.model.peft_config["default"].base_model_name_or_path = None
        self._stage = stage
        self._target_head = TargetHead(self.model, table, stage.head)
        self._since_log = {"train": _Sums(), "eval": _Sums()}

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Mean negative log-likelihood over the targets of the step (all its accumulated batches)."""
        inner = self.accelerator.unwrap_model(model)
        loss = within_forward(model, inner, partial(self.loss_of, inner, inputs, num_items_in_batch))
        return (loss, {}) if return_outputs else loss

    def loss_of(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any) -> Tensor:
        """The loss of one batch, by the `model` without its wrapper."""
        states = model.get_decoder()(input_ids=inputs["input_ids"], use_cache=False).last_hidden_state
        parts = self._target_head(states, inputs["labels"], inputs["sid_level"])
        self._since_log[self._mode].add(parts)
        total = parts.total if parts.tokens else states.sum() * 0.0  # a batch that only evens out the processes
        return self.share(total, parts.tokens, num_items_in_batch)

    def share(self, total: Tensor, count: int, num_items_in_batch: Any) -> Tensor:
        """The share of a batch of `count` targets in the step's loss.

        ``num_items_in_batch`` are the targets of all processes, whose gradients are averaged: hence the factor.
        """
        if num_items_in_batch is None:
            return total / max(count, 1)
        shared: Tensor = total / num_items_in_batch * self.accelerator.num_processes
        return shared

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the losses of SID and text targets since the last call; all are means over targets.

        The Trainer's own ``eval_loss`` is the mean of the batches' means. Batches are of equal tokens, not of equal
        users, so it would weigh a user with a long history more; the mean over all targets replaces it.
        """
        means = self._since_log[self._mode].over(self.accelerator).means()
        if self._mode == "train":
            logs.update({name: value for name, value in means.items() if name != "loss"})
        else:
            logs.update({f"eval_{name}": value for name, value in means.items()})
        self._since_log[self._mode] = _Sums()
        super().log(logs, start_time)

    @property
    def _mode(self) -> str:
        return "train" if self.model.training else "eval"

    def create_optimizer(self, model: Any = None) -> Any:
        """AdamW with three groups: weights, weights without decay (norms, biases), SID rows."""
        if self.optimizer is None:
            decayed = set(self.get_decay_parameter_names(self.model))
            embeddings = row_parameters(self.model)
            groups: dict[str, list[nn.Parameter]] = {"decay": [], "plain": [], "rows": []}
            for name, parameter in self.model.named_parameters():
                if parameter.requires_grad:
                    kind = "rows" if id(parameter) in embeddings else "decay" if name in decayed else "plain"
                    groups[kind].append(parameter)
            optimizer_class, settings = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            self.optimizer = optimizer_class(
                [
                    {"params": groups["decay"], "weight_decay": self.args.weight_decay},
                    {"params": groups["plain"], "weight_decay": 0.0},
                    {"params": groups["rows"], "weight_decay": 0.0, "lr": self._stage.sid_learning_rate},
                ],
                **settings,
            )
        return self.optimizer


@dataclass
class _Sums:
    """Losses (nats) and targets since the last log; tensors, so that a GPU need not wait for each batch."""

    sid: Tensor | float = 0.0
    sid_tokens: int = 0
    text: Tensor | float = 0.0
    text_tokens: int = 0

    def add(self, parts: TargetLoss) -> None:
        """Count a batch in."""
        self.sid = self.sid + parts.sid.detach()
        self.text = self.text + parts.text.detach()
        self.sid_tokens += parts.sid_tokens
        self.text_tokens += parts.text_tokens

    def over(self, accelerator: Any) -> _Sums:
        """The sums of all processes."""
        if accelerator.num_processes == 1:
            return self
        own = [float(value) for value in (self.sid, self.sid_tokens, self.text, self.text_tokens)]
        sums = accelerator.reduce(torch.tensor(own, dtype=torch.float64, device=accelerator.device), reduction="sum")
        sid, sid_tokens, text, text_tokens = sums.tolist()
        return _Sums(sid, int(sid_tokens), text, int(text_tokens))

    def means(self) -> dict[str, float]:
        """Nats per target: ``loss`` over all of them, ``sid_loss`` and ``text_loss``; none without a target."""
        sums = {
            "loss": (self.sid + self.text, self.sid_tokens + self.text_tokens),
            "sid_loss": (self.sid, self.sid_tokens),
            "text_loss": (self.text, self.text_tokens),
        }
        return {name: float(total) / tokens for name, (total, tokens) in sums.items() if tokens}


def row_parameters(model: Any) -> set[int]:
    """``id`` of the parameters that hold SID rows: embedding and head, or an adapter's trainable rows."""
    if isinstance(model, PeftModel):
        return {id(parameter) for name, parameter in model.named_parameters() if "trainable_tokens_delta" in name}
    return {id(module.weight) for module in (model.get_input_embeddings(), model.get_output_embeddings())}


def freeze_base_rows(model: Any, table: SIDTable) -> list[torch.utils.hooks.RemovableHandle]:
    """Let only SID rows of embedding and head learn: gradients of all other rows are zeroed before each step.

    With a zero gradient and no weight decay AdamW's update of a row is exactly 0, so base rows keep their bits.
    """
    assert table.token_ids is not None
    ids = torch.cat([torch.from_numpy(level.copy()) for level in table.token_ids])

    def keep_sid_rows(parameter: Tensor) -> None:
        if parameter.grad is not None:
            kept = parameter.grad[ids.to(parameter.device)]
            parameter.grad.zero_()
            parameter.grad[ids.to(parameter.device)] = kept

    modules = (model.get_input_embeddings(), model.get_output_embeddings())
    weights = {id(module.weight): module.weight for module in modules}
    return [weight.register_post_accumulate_grad_hook(keep_sid_rows) for weight in weights.values()]
