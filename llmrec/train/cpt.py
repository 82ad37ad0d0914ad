"""Continued pretraining: the new tokens meet the model's language and the users' behaviour.

The mix of SID<->text tasks and behaviour sequences follows PLUM (He et al. 2025, section 4.2) and LC-Rec (Zheng et al.
2024). In the flow "extended_base" the stage ends with a full SID-extended model (adapters are merged), in the flow
"adapter" with LoRA and SID rows on the untouched base.
"""

from __future__ import annotations

from typing import Any

from llmrec.errors import InputError
from llmrec.quantized import is_packed
from llmrec.sid_vocab.adapter_rows import patch_trainable_tokens_bias, trainable_rows_config
from llmrec.sid_vocab.table import SIDTable
from llmrec.train.config import Flow, StageConfig
from llmrec.train.trainer import freeze_base_rows


def prepare(model: Any, table: SIDTable, config: StageConfig, flow: Flow) -> Any:
    """Choose what of the extended `model` learns; returns the model or its PEFT wrapper.

    Raises:
        InputError: the stage would not teach the SID rows, or the flow has no place for what it teaches.
    """
    if not config.train_sid_rows:
        raise InputError(
            "cpt.train_sid_rows is false: SID rows would stay as they were initialised.",
            hint="leave it true in cpt; it is sft that keeps them frozen",
        )
    if flow == "adapter" and config.method == "full":
        raise InputError(
            'cpt.method is "full", but the flow "adapter" leaves the base untouched.',
            hint='use method: lora, or flow: "extended_base"',
        )
    if flow == "extended_base" and is_packed(model):
        raise InputError(
            'The base has packed weights, but the flow "extended_base" writes a new base, which packing would round.',
            hint='use flow: "adapter", or a base in full or half precision',
        )
    model.train()
    if config.method == "full":
        model.requires_grad_(True)
        freeze_base_rows(model, table)
        return model
    return add_adapter(model, table, config)


def finish(model: Any, flow: Flow) -> Any:
    """What the stage hands on: in the flow "extended_base" a full model, adapters merged; else the adapter."""
    model.eval()
    if flow == "extended_base" and hasattr(model, "merge_and_unload"):
        return model.merge_and_unload()
    return model


def add_adapter(model: Any, table: SIDTable, config: StageConfig) -> Any:
    """Wrap `model` in LoRA, with SID rows inside the adapter where the stage trains them."""
    import torch
    from peft import LoraConfig, get_peft_model

    rows = trainable_rows_config(model, table) if config.train_sid_rows else None
    if rows:
        patch_trainable_tokens_bias()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return get_peft_model(
            model,
            LoraConfig(
                task_type="CAUSAL_LM",
                r=config.lora.rank,
                lora_alpha=config.lora.alpha,
                lora_dropout=config.lora.dropout,
                target_modules=config.lora.target_modules,
                trainable_token_indices=rows,
            ),
        )
