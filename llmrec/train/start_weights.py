"""The reference of preference losses and KL divergences: the model as a stage was given it, whatever learns.

What learns (LoRA, SID rows of an adapter, or every weight) is copied once and swapped in for the reference's forward.
With a fresh adapter that equals switching the adapter off; with one that learns on it is the adapter as it was, *and
its SID rows*: TRL's own copy, an adapter named "ref", has LoRA but no trained rows, and the first KL is then not 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


class StartWeights:
    """Keeps a copy of `model`'s trained parameters; make it before a state is resumed from."""

    def __init__(self, model: Any) -> None:
        self._trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._kept = [parameter.detach().clone() for parameter in self._trained]

    @contextmanager
    def active(self) -> Iterator[None]:
        """Within it, the model is the reference. No gradient may be taken there."""
        now = [parameter.data for parameter in self._trained]
        self._put(self._kept)
        try:
            yield
        finally:
            self._put(now)

    def _put(self, tensors: list[torch.Tensor]) -> None:
        for parameter, tensor in zip(self._trained, tensors, strict=True):
            parameter.data = tensor
