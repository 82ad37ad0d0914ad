"""Computes a loss within the forward of the wrapper that data-parallel training puts around a model.

Our losses read hidden states and never call the model itself: full logits would be made for nothing. But wrappers do
their work around *their* forward: DistributedDataParallel arms the averaging of gradients there, FSDP2 gathers the
weights. Past it, each process would learn from its own batches alone, without a word. So the model's forward is
replaced for one call by the computation (as in Lightning's ``_ForwardRedirection`` and TRL's copy of it).
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn


def within_forward(wrapper: nn.Module, model: nn.Module, compute: Callable[[], Tensor]) -> Tensor:
    """``compute()``, called where the forward of `model` would be.

    Args:
        wrapper: of `model`, or `model` itself.
        compute: returns the loss alone, since wrappers look at what comes out for the graph that leads to it. It may
            call the model.
    """
    if isinstance(wrapper, nn.DataParallel):  # several GPUs in one process: a batch is not ours to cut
        wrapper = model
    own = model.__dict__.get("forward")  # mixed precision leaves one on the instance

    def restore() -> None:
        if own is None:
            model.__dict__.pop("forward", None)
        else:
            model.forward = own

    def once() -> Tensor:
        restore()
        return compute()

    model.forward = once
    try:
        loss: Tensor = wrapper()
        return loss
    finally:
        restore()
