"""Mixed precision for losses that call a model's parts and not the model.

transformers leaves mixed precision to accelerate, which puts it around the model's own ``forward``. Our losses go past
that one (`llmrec.train.wrapped_forward`), and would be computed in float32 on a GPU without a word. So the context that
the Trainer opens around every loss, in training and in evaluation, is accelerate's ``autocast`` here. Without mixed
precision, as on a CPU, that is nothing.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

import torch


class MixedPrecision:
    """To be mixed in before a Trainer."""

    accelerator: Any

    def compute_loss_context_manager(self) -> ExitStack:
        """What the Trainer opens, and ``autocast``."""
        stack: ExitStack = super().compute_loss_context_manager()  # type: ignore[misc]  # of the Trainer
        stack.enter_context(self.accelerator.autocast())
        return stack


def as_a_trainer_computes(model: Any) -> AbstractContextManager[Any]:
    """Bring `model` to where a stage trains it, and return the precision that it trains in."""
    from accelerate import PartialState

    device = PartialState(cpu=not torch.cuda.is_available()).device
    model.to(device)
    return torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else nullcontext()
