"""Keys and values of a search in buffers that are allocated once: appending writes in place, dropping moves a counter.

`DynamicCache` of transformers concatenates, that is, copies the whole cache at every step of every layer; a search
knows beforehand how many columns it will add. All layers keep all columns, those with a sliding window too: the window
is masked by `PrefixSession`, and dropping branches stays a matter of counting.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin


class BranchLayer(CacheLayerMixin):  # type: ignore[misc]  # transformers is untyped
    """One layer: (batch, heads, capacity, head_size) buffers of which the first `length` columns are in use.

    Args:
        capacity: columns to allocate; more are allocated when they are needed, at the cost of a copy.
    """

    is_sliding = False

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.length = 0
        self._capacity = capacity

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate for states of this shape and dtype."""
        self.keys = self._buffer(key_states)
        self.values = self._buffer(value_states)
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append columns and return all columns in use, as views."""
        end = self.length + key_states.shape[-2]
        self.reserve(key_states, value_states, end)
        self.keys[..., self.length : end, :] = key_states
        self.values[..., self.length : end, :] = value_states
        self.length = end
        return self.keys[..., :end, :], self.values[..., :end, :]

    def reserve(self, key_states: Tensor, value_states: Tensor, columns: int) -> None:
        """Make room for `columns` columns of states like these."""
        if self.is_initialized and columns <= self._capacity:
            return
        self._capacity = max(self._capacity, columns if not self.is_initialized else 2 * columns)
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            return
        keys, values = self.keys, self.values
        self.lazy_initialization(key_states, value_states)
        self.keys[..., : self.length, :] = keys[..., : self.length, :]
        self.values[..., : self.length, :] = values[..., : self.length, :]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Columns that `query_length` further ones will see, and where they start."""
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        """Columns in use."""
        return self.length

    def get_max_length(self) -> int:
        """No maximum."""
        return -1

    def _buffer(self, states: Tensor) -> Tensor:
        batch, heads, _, size = states.shape
        # Zeros and not empty memory: a masked column's value is multiplied by 0, and 0 times NaN is NaN.
        return torch.zeros((batch, heads, self._capacity, size), dtype=states.dtype, device=states.device)


class BranchCache(Cache):  # type: ignore[misc]
    """The layers of a model; `truncate` drops the last columns of all of them.

    Args:
        num_layers: layers of the model.
        capacity: columns to allocate per prompt.
    """

    layers: list[BranchLayer]

    def __init__(self, num_layers: int, capacity: int) -> None:
        super().__init__(layers=[BranchLayer(capacity) for _ in range(num_layers)])

    def truncate(self, length: int) -> None:
        """Keep the first `length` columns; nothing is copied."""
        for layer in self.layers:
            layer.length = min(layer.length, length)

    def columns(self, row: int, start: int, end: int) -> Tensor:
        """A copy of one row's columns: (layers, 2, heads, end - start, head_size), keys and values."""
        parts = [torch.stack([layer.keys[row, :, start:end], layer.values[row, :, start:end]]) for layer in self.layers]
        return torch.stack(parts)

    def fill(self, batch: int, length: int, rows: list[tuple[int, int, Tensor]]) -> None:
        """Start with `length` columns in use, some of them known.

        Args:
            batch: rows.
            length: columns in use afterwards; those that nobody fills are zero.
            rows: row, first column, and what `columns` returned.
        """
        block = rows[0][2]
        for index, layer in enumerate(self.layers):
            like = block[index, 0][None].expand(batch, -1, -1, -1)
            layer.reserve(like, like, length)
            for row, start, columns in rows:
                end = start + columns.shape[-2]
                layer.keys[row, :, start:end] = columns[index, 0]
                layer.values[row, :, start:end] = columns[index, 1]
            layer.length = length
