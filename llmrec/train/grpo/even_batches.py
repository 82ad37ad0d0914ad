"""Batches of several processes made equal in shape, since TRL gathers a number per row from all of them.

Groups without variance are left out, so one process has more rows than another, or none. Rows of zeros that no mask
covers fill them up: they change no sum and no gradient, and TRL's means leave them out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from llmrec import processes
from llmrec.train.grpo.batch import Batch


def evened(batches: Sequence[Batch]) -> list[Batch]:
    """`batches` with `advantages`, `weight` and `mask` as large as the largest of all processes at the same place."""
    everywhere = processes.gathered([tuple(batch.mask.shape) for batch in batches])
    if len(everywhere) == 1:
        return list(batches)
    shapes = [torch.tensor(of_place).amax(dim=0).tolist() for of_place in zip(*everywhere, strict=True)]
    return [
        replace(
            batch,
            advantages=filled_up(batch.advantages, (rows,)),
            weight=filled_up(batch.weight, (rows,)),
            mask=filled_up(batch.mask, (rows, width)),
        )
        for batch, (rows, width) in zip(batches, shapes, strict=True)
    ]


def filled_up(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    """`tensor` cut to `shape`, or filled up with zeros; gradients flow."""
    cut = tensor[tuple(slice(size) for size in shape)]
    if cut.shape == shape:
        return cut
    whole = tensor.new_zeros(shape)
    whole[tuple(slice(size) for size in cut.shape)] = cut
    return whole
