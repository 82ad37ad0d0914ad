"""What learns in an alignment: the adapter that SFT left learns on, a full model gets a new one, or learns in full."""

from __future__ import annotations

from typing import Any

from llmrec.checkpoint import Checkpoint
from llmrec.checkpoint_card import Card
from llmrec.errors import InputError
from llmrec.sid_vocab.adapter_rows import patch_trainable_tokens_bias
from llmrec.train.config import Flow, StageConfig
from llmrec.train.cpt import add_adapter
from llmrec.train.trainer import freeze_base_rows

SERVED_TASK = "behaviour"
"""The task whose prompts are served: what an alignment refines."""


def has_learnt(card: Card) -> bool:
    """Whether a checkpoint has learnt to recommend: in SFT, or in any stage that trained the served task.

    A model from scratch often has its whole training in ``cpt``. Aligning a model without either would reward noise.
    """
    return any(entry.stage == "sft" for entry in card.lineage) or SERVED_TASK in card.tasks


def prepare_start(name: str, start: Checkpoint, config: StageConfig, flow: Flow) -> Any:
    """The model that learns.

    Args:
        name: of the stage, for messages.
        start: a checkpoint that has learnt to recommend (`has_learnt`).
        config: its ``method``, ``train_sid_rows``, ``lora`` and ``seed``.
        flow: of the pipeline.

    Raises:
        InputError: a checkpoint that has not learnt to recommend, or settings that contradict the flow or it.
    """
    if not has_learnt(start.card):
        stages = ", ".join(entry.stage for entry in start.card.lineage) or "none"
        raise InputError(
            f"{name} starts from a model that has learnt to recommend, but {start.folder} has seen no sft, and no "
            f"stage with the task {SERVED_TASK} (stages: {stages}).",
            hint="run the stage sft first, and start from its checkpoint",
        )
    if config.train_sid_rows and flow == "extended_base":
        raise InputError(
            f'{name}.train_sid_rows is true, but in the flow "extended_base" SID rows belong to the base.',
            hint=f'set {name}.train_sid_rows: false, or flow: "adapter"',
        )
    if start.card.kind == "adapter":
        if config.method == "full":
            raise InputError(
                f"{name}.method is full, but {start.folder} is an adapter.", hint="use method: lora, or merge it first"
            )
        patch_trainable_tokens_bias()
        model = start.load_peft("float32", trainable=True)
        if not config.train_sid_rows:
            for parameter_name, parameter in model.named_parameters():
                if "trainable_tokens_delta" in parameter_name:
                    parameter.requires_grad_(False)
        return model.train()
    model = start.load_model("float32")
    if config.method == "full":
        model.requires_grad_(True)
        freeze_base_rows(model, start.table)
        return model.train()
    return add_adapter(model, start.table, config).train()
