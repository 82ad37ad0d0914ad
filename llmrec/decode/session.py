"""`PrefixSession`: a batch of prompts prefilled once, then extended by many continuations on the sequence axis.

A beam search usually gives every beam its own row of the batch and copies the prompt's keys and values into it. Here
each prompt keeps one row. Every new token of every beam is appended as one more *column*, and a 4D mask lets a column
see the prompt, its own ancestors and itself; its position id is the prompt's length plus its depth (tree attention,
as in SpecInfer, arXiv:2305.09781). The prompt's cache exists once per prompt whatever the number of beams; measured
in docs/decisions/0003-search-on-the-sequence-axis.md.

Two points about Hugging Face models that this file relies on (read in transformers 5.19, held by tests):

- `BranchCache` keeps all columns in all layers, also those with a sliding window; the window is ours to mask
  (`llmrec.decode.ancestor_mask`). That is what makes `truncate` a change of a counter.
- ``generate`` and its ``generation_config`` (top_k, repetition_penalty of instruct checkpoints) are never involved.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llmrec.decode.ancestor_mask import grow, layer_masks, read_attention
from llmrec.decode.kv_cache import BranchCache
from llmrec.decode.prefix_cache import PrefixCache
from llmrec.errors import InputError


class PrefixSession:
    """One KV cache for a batch of prompts and everything that was appended to them.

    Args:
        model: a Hugging Face causal LM (also a PEFT model) with "sdpa" or "eager" attention.
        prompts: token ids per prompt, none empty; shorter ones are padded on the left.
        reserve: columns per prompt to allocate for `extend`; more are possible, at the cost of a copy.
        prefix_cache: keys and values of earlier prompts of this very model.

    Attributes:
        prompt_states: (batch, hidden) last hidden state of each prompt: what the LM head reads for the next token.
        num_forwards: forwards since the prefill.
        backbone, attention, cache: the decoder, what its masks must know, and the keys and values, for a forward that
            several sessions share (`llmrec.decode.joint_read`).

    Raises:
        InputError: an empty prompt, or a model whose attention cannot take an ancestor mask.
    """

    def __init__(
        self,
        model: Any,
        prompts: Sequence[Sequence[int] | np.ndarray],
        *,
        reserve: int = 64,
        prefix_cache: PrefixCache | None = None,
    ) -> None:
        empty = [i for i, prompt in enumerate(prompts) if len(prompt) == 0]
        if empty or not len(prompts):
            given = f"prompt {empty[0]} has no token" if empty else "no prompt was given"
            raise InputError(
                f"A search needs prompts of at least one token; {given}.", hint="put BOS or a header before the history"
            )
        self.backbone = model.get_decoder()
        self.attention = read_attention(model)
        self.num_forwards = 0
        self._seen: np.ndarray
        self._positions: np.ndarray

        batch, longest = len(prompts), max(len(prompt) for prompt in prompts)
        ids = np.zeros((batch, longest), dtype=np.int64)
        real = np.zeros((batch, longest), dtype=bool)
        for i, prompt in enumerate(prompts):
            ids[i, longest - len(prompt) :] = prompt
            real[i, longest - len(prompt) :] = True
        self._device = self.backbone.get_input_embeddings().weight.device
        self._real = torch.from_numpy(real).to(self._device)
        self._lengths = real.sum(axis=1)
        self._prompt_positions = np.maximum(real.cumsum(axis=1) - 1, 0)
        self.cache = BranchCache(self.attention.num_layers, longest + reserve)
        self._clear()
        known = self._load(prompts, longest, prefix_cache)
        unpadded = bool(real.all()) and known == 0
        self.prompt_states = self._forward(
            ids[:, known:], self._prompt_positions[:, known:], None if unpadded else self._real.long()
        )[:, -1]
        if prefix_cache is not None:
            self._store(prompts, longest, prefix_cache)

    @property
    def batch_size(self) -> int:
        """Prompts in this session."""
        return len(self._lengths)

    @property
    def num_prompt_columns(self) -> int:
        """Columns of the prompts, those that pad the shorter ones included."""
        return int(self._real.shape[1])

    @property
    def num_slots(self) -> int:
        """Columns appended since the prefill and not dropped; the next column's slot has this number."""
        return int(self._positions.shape[1])

    def truncate(self, num_slots: int) -> None:
        """Drop the last columns until `num_slots` are left; 0 leaves the prompts, so that another search can start."""
        if num_slots < self.num_slots:
            self.cache.truncate(self.num_prompt_columns + num_slots)
            self._seen = self._seen[:, :num_slots, :num_slots]
            self._positions = self._positions[:, :num_slots]

    def _load(self, prompts: Sequence[Sequence[int] | np.ndarray], longest: int, cache: PrefixCache | None) -> int:
        """Fill in what the cache knows; returns the columns that need no forward, the same number for all rows.

        Rows end in the same column. Where one row knows more than another, a few known tokens are read again.
        """
        if cache is None:
            return 0
        found = [cache.find(prompt) for prompt in prompts]
        starts = [longest - len(prompt) for prompt in prompts]
        known = min(start + len(blocks) * cache.block_size for start, blocks in zip(starts, found, strict=True))
        rows = [
            (row, start + place * cache.block_size, block)
            for row, (start, blocks) in enumerate(zip(starts, found, strict=True))
            for place, block in enumerate(blocks)
            if start + place * cache.block_size < known
        ]
        if not rows:
            return 0
        self.cache.fill(len(prompts), known, [(row, at, block[..., : known - at, :]) for row, at, block in rows])
        return known

    def _store(self, prompts: Sequence[Sequence[int] | np.ndarray], longest: int, cache: PrefixCache) -> None:
        for row, prompt in enumerate(prompts):
            first = longest - len(prompt)
            for start, key in cache.missing(prompt):
                cache.put(key, self.cache.columns(row, first + start, first + start + cache.block_size))

    def extend(self, parents: np.ndarray, tokens: np.ndarray) -> Tensor:
        """Append M columns to every prompt in one forward.

        Args:
            parents: (batch, M) the slot each column continues, -1 for the prompt itself. A parent may be a column of
                the same call that stands further left, so a whole subtree fits into one forward.
            tokens: (batch, M) token ids. Fill unused places with any token and parent -1 and ignore their states.

        Returns:
            (batch, M, hidden) last hidden states. Their slots are ``num_slots - M … num_slots - 1``.
        """
        first = self.num_slots
        seen, positions = self.grown(parents)
        mask = self._ancestor_mask(seen[:, first:], positions[:, first:], positions)
        states = self._forward(tokens, positions[:, first:], mask)
        self.adopt(seen, positions)
        return states

    def grown(self, parents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Who sees whom, and at which position, once columns with these parents are appended (see `grow`)."""
        return grow(self._seen, self._positions, parents, self._lengths)

    def adopt(self, seen: np.ndarray, positions: np.ndarray) -> None:
        """Take what `grown` returned: keys and values of the new columns are in the cache."""
        self._seen, self._positions = seen, positions
        self.num_forwards += 1

    def _clear(self) -> None:
        self._seen = np.zeros((self.batch_size, 0, 0), dtype=bool)
        self._positions = np.zeros((self.batch_size, 0), dtype=np.int64)

    @torch.no_grad()
    def _forward(self, tokens: np.ndarray, positions: np.ndarray, mask: Tensor | dict[str, Tensor] | None) -> Tensor:
        output = self.backbone(
            input_ids=torch.from_numpy(np.ascontiguousarray(tokens, dtype=np.int64)).to(self._device),
            position_ids=torch.from_numpy(np.ascontiguousarray(positions, dtype=np.int64)).to(self._device),
            attention_mask=mask,
            past_key_values=self.cache,
            use_cache=True,
        )
        states: Tensor = output.last_hidden_state
        return states

    def _ancestor_mask(
        self, visible: np.ndarray, positions: np.ndarray, slot_positions: np.ndarray
    ) -> Tensor | dict[str, Tensor]:
        """The 4D mask (batch, 1, M, prompt + slots), or one by layer type where a window cuts only some layers."""
        batch, width, _ = visible.shape
        prompt = self._real[:, None].expand(batch, width, -1)
        full = torch.cat([prompt, torch.from_numpy(visible).to(self._device)], dim=-1)
        keys = np.concatenate([self._prompt_positions, slot_positions], axis=1)
        return layer_masks(self.attention, full, positions, keys, self.backbone.dtype)
