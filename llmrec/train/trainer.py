"""`RecommenderTrainer`: TRL's SFTTrainer with the loss over targets, rows of their own learning rate, frozen base rows.

What is overridden, all of it public API of transformers' Trainer: ``compute_loss`` (hidden states go to `TargetHead`,
so that no full logits are made), ``create_optimizer`` (SID rows learn at ``sid_learning_rate``) and
``prediction_step`` (losses only). Batches come ready-made and in order (`llmrec.train.batches`), so the sampler is
sequential and a resumed run sees exactly the batches that an uninterrupted one would have seen.
"""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from trl import SFTTrainer

from llmrec.sid_vocab.table import SIDTable
from llmrec.train.config import StageConfig
from llmrec.train.loss import TargetHead, TargetLoss


class RecommenderTrainer(SFTTrainer):  # type: ignore[misc]  # trl is untyped
    """Trains one stage; see the module's docstring. `table` holds the SIDs, `stage` the settings."""

    optimizer: Any

    def __init__(self, *args: Any, table: SIDTable, stage: StageConfig, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if isinstance(self.model, PeftModel):
            # PEFT compares vocabularies with the base it finds under this name, on the hub if need be, and would save
            # the whole extended matrix with each state. What `Checkpoint` hands on names its base itself.
            self.model.peft_config["default"].base_model_name_or_path = None
        self._stage = stage
        self._target_head = TargetHead(self.model, table, stage.head)

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Mean negative log-likelihood over the targets of the step (all its accumulated batches)."""
        parts = self._losses(inputs)
        mode = "train" if self.model.training else "eval"
        for name, total, tokens in (("sid", parts.sid, parts.sid_tokens), ("text", parts.text, parts.text_tokens)):
            if tokens:
                self._metrics[mode][f"{name}_loss"].append(float(total.detach()) / tokens)
        loss = parts.total / (parts.tokens if num_items_in_batch is None else num_items_in_batch)
        return (loss, {}) if return_outputs else loss

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[Tensor, None, None]:
        """The loss alone: ranking metrics come from the search, not from logits."""
        with torch.no_grad():
            loss = self.compute_loss(model, self._prepare_inputs(inputs))
        return loss.detach(), None, None

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

    def _losses(self, inputs: dict[str, Tensor]) -> TargetLoss:
        decoder = self.accelerator.unwrap_model(self.model).get_decoder()
        with self.compute_loss_context_manager():
            states = decoder(input_ids=inputs["input_ids"], use_cache=False).last_hidden_state
            return self._target_head(states, inputs["labels"], inputs["sid_level"])


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
