"""`PrefixCache`: keys and values of prompts seen before, in blocks, so that a growing history is not read again.

A block holds the keys and values of `block_size` tokens and is found by all tokens up to its end, so a block is only
used after the very prefix it was computed for. The least recently used blocks go first. A window that slides by one
item changes every token of the prefix; let it start at multiples of some items instead (`ServingCard.window_step`), and
users keep theirs for that many events.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from llmrec.errors import InputError


@dataclass
class PrefixStats:
    """What a cache has done so far, in tokens."""

    hits: int = 0
    misses: int = 0


class PrefixCache:
    """Blocks of keys and values by the prefix they end.

    Args:
        max_bytes: memory for keys and values.
        block_size: tokens of a block.

    Raises:
        InputError: a size below 1.
    """

    def __init__(self, max_bytes: int = 512 << 20, block_size: int = 16) -> None:
        if max_bytes < 1 or block_size < 1:
            raise InputError(f"max_bytes and block_size must be at least 1; given {max_bytes} and {block_size}.")
        self.block_size = block_size
        self.stats = PrefixStats()
        self._max_bytes, self._bytes = max_bytes, 0
        self._blocks: OrderedDict[bytes, Tensor] = OrderedDict()

    @property
    def num_bytes(self) -> int:
        """Memory in use."""
        return self._bytes

    def __len__(self) -> int:
        return len(self._blocks)

    def find(self, prompt: Sequence[int] | np.ndarray) -> list[Tensor]:
        """Blocks of the longest known prefix of `prompt`, in order; its last token is never part of them.

        The last token has to be read in any case: what follows it is predicted from its hidden state.
        """
        found = []
        for key in self._keys(prompt[:-1]):
            block = self._blocks.get(key)
            if block is None:
                break
            self._blocks.move_to_end(key)
            found.append(block)
        known = len(found) * self.block_size
        self.stats.hits += known
        self.stats.misses += len(prompt) - known
        return found

    def known_tokens(self, prompt: Sequence[int] | np.ndarray) -> int:
        """Tokens that `find` would return, without counting as a use."""
        known = 0
        for key in self._keys(prompt[:-1]):
            if key not in self._blocks:
                break
            known += self.block_size
        return known

    def missing(self, prompt: Sequence[int] | np.ndarray) -> list[tuple[int, bytes]]:
        """Blocks of `prompt` that are not there: where they start, and their keys for `put`."""
        keys = self._keys(prompt)
        return [(place * self.block_size, key) for place, key in enumerate(keys) if key not in self._blocks]

    def put(self, key: bytes, block: Tensor) -> None:
        """Keep a block, (layers, 2, heads, block_size, head_size); the oldest ones give way."""
        size = block.numel() * block.element_size()
        if key in self._blocks or size > self._max_bytes:
            return
        self._blocks[key] = block
        self._bytes += size
        while self._bytes > self._max_bytes:
            _, old = self._blocks.popitem(last=False)
            self._bytes -= old.numel() * old.element_size()

    def clear(self) -> None:
        """Forget everything: for a model whose weights have changed."""
        self._blocks.clear()
        self._bytes = 0

    def _keys(self, tokens: Sequence[int] | np.ndarray) -> list[bytes]:
        """A key per full block: a hash over all tokens up to its end (SHA-256: prompts are what strangers send)."""
        ids = np.asarray(tokens, dtype=np.int64)
        running, keys = hashlib.sha256(), []
        for end in range(self.block_size, len(ids) + 1, self.block_size):
            running.update(ids[end - self.block_size : end].tobytes())
            keys.append(running.digest())
        return keys
