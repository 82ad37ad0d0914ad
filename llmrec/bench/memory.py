"""Memory of tensors, counted and not sampled: the same figure on every machine."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any


def peak_bytes(model: Any, work: Callable[[], object]) -> int:
    """The most bytes of tensors alive at a time in `work`, of those it made; the parameters of `model` do not count."""
    from torch import Tensor
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    known = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    alive: dict[int, int] = {}
    peak = 0

    class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal peak
            result = func(*args, **(kwargs or {}))
            for tensor in tree_leaves(result):
                storage = tensor.untyped_storage() if isinstance(tensor, Tensor) else None
                if storage is not None and (place := storage.data_ptr()) not in known and place not in alive:
                    alive[place] = storage.nbytes()
                    weakref.finalize(storage, alive.pop, place, None)
            peak = max(peak, sum(alive.values()))
            return result

    with Watch():  # type: ignore[no-untyped-call]
        work()
    return peak
