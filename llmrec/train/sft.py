"""Supervised fine-tuning with LoRA on serialised behaviour and chats.

In the flow "extended_base" the SID rows are frozen and the adapter is plain LoRA, which vLLM serves as it is. In the
flow "adapter" the adapter of continued pretraining learns on, on a base packed as it was then.
"""

from __future__ import annotations

from typing import Any

from llmrec.checkpoint import Checkpoint
from llmrec.errors import InputError
from llmrec.sid_vocab.adapter_rows import patch_trainable_tokens_bias
from llmrec.train.config import Flow, StageConfig
from llmrec.train.cpt import add_adapter


def prepare(start: Checkpoint, config: StageConfig, flow: Flow) -> Any:
    """The PEFT model that learns, on what continued pretraining left in `start`.

    Raises:
        InputError: settings that contradict the flow.
    """
    if config.method != "lora":
        raise InputError("sft.method is not lora.", hint="full fine-tuning belongs to the cpt stage")
    if flow == "adapter":
        patch_trainable_tokens_bias()
        quantize = start.card.base.quantize if start.card.base else None
        model = start.load_peft("float32", trainable=True, quantize=quantize)
        if not config.train_sid_rows:
            for name, parameter in model.named_parameters():
                if "trainable_tokens_delta" in name:
                    parameter.requires_grad_(False)
    else:
        if config.train_sid_rows:
            raise InputError(
                'sft.train_sid_rows is true, but in the flow "extended_base" SID rows belong to the base.',
                hint='set sft.train_sid_rows: false, or flow: "adapter"',
            )
        model = add_adapter(start.load_model("float32"), start.table, config)
    return model.train()
