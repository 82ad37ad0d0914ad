"""The processes of one training: which of them this is, and how they agree.

``accelerate launch`` (and torchrun, which it calls) starts the same command several times and tells each its place in
``RANK`` and ``WORLD_SIZE``. All of them read the same recipe and train; the main one alone prints, decides what is on
the disk, writes, and evaluates, while the others wait. Processes share one file system. With one process all of this
is nothing, and torch is not imported.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

T = TypeVar("T")
_PATIENCE = timedelta(days=1)
"""How long a process waits for another: the evaluation of a large data set, which the main one does alone, takes hours.
A process that fails ends the others at once: the launcher sees to that."""


def count() -> int:
    """How many processes work together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def index() -> int:
    """Which one this is, from 0."""
    return int(os.environ.get("RANK", "0"))


def is_main() -> bool:
    """Whether this is the one that prints and writes."""
    return index() == 0


def from_main(make: Callable[[], T]) -> T:
    """What `make` returns in the main process, in all of them; the others do not call it, and wait."""
    if count() == 1:
        return make()
    told: list[Any] = [make() if is_main() else None]
    _group().broadcast_object_list(told, src=0)
    value: T = told[0]
    return value


def gathered(value: T) -> list[T]:
    """The `value` of every process, in their order."""
    if count() == 1:
        return [value]
    found: list[Any] = [None] * count()
    _group().all_gather_object(found, value)
    return found


def wait() -> None:
    """Go on when all have come here."""
    gathered(None)


def _group() -> Any:
    """torch's collectives, over the group that the trainer uses; opened before it where that is needed."""
    import torch

    if not torch.distributed.is_initialized():
        from accelerate import PartialState

        PartialState(cpu=not torch.cuda.is_available(), timeout=_PATIENCE)
    return torch.distributed
