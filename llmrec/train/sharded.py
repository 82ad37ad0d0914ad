"""Weights that FSDP2 or DeepSpeed share out: what cannot be trained so, and how a model becomes whole again.

A loss within the wrapper's forward (`llmrec.train.wrapped_forward`) sees whole weights. Nothing outside of it does: not
a search, not a copy of the start's weights, not a hook on a weight that is replaced. Those are refused before training.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from accelerate.utils import DistributedType
from torch import nn
from torch.distributed.tensor import DTensor

from llmrec.errors import InputError

FULL = "method full keeps base rows by a hook on each weight"
"""Why a stage with ``method: full`` needs whole weights."""


def require_whole_weights(name: str, trainer: Any, reasons: Sequence[str]) -> None:
    """Refuse a way of sharding that the stage does not go with.

    Args:
        name: of the stage.
        trainer: of which the accelerator says what is sharded.
        reasons: what of the stage needs whole weights; where there is none, FSDP2 and ZeRO-1 and 2 are fine.

    Raises:
        InputError: it does not.
    """
    accelerator = trainer.accelerator
    if accelerator.distributed_type == DistributedType.FSDP:
        used, told = "FSDP", [] if accelerator.is_fsdp2 else ["version 1 replaces the model's modules"]
    elif accelerator.distributed_type == DistributedType.DEEPSPEED:
        stage = accelerator.state.deepspeed_plugin.zero_stage
        used, told = f"DeepSpeed ZeRO-{stage}", ["its weights are not put together again"] if stage == 3 else []
    else:
        return
    if told := [*told, *reasons]:
        raise InputError(
            f"{name} cannot be trained with {used}: {'; '.join(told)}.",
            hint="plain data-parallel training keeps the model whole: accelerate launch --multi_gpu",
        )


def make_whole(model: nn.Module) -> None:
    """Put sharded weights together, in all processes; the model can be saved and merged then, and not trained on."""
    for module in model.modules():
        for name, weight in module.named_parameters(recurse=False):
            if isinstance(weight, DTensor):
                setattr(module, name, nn.Parameter(weight.full_tensor(), requires_grad=weight.requires_grad))
