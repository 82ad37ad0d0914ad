"""`PrefixSession`: a batch of prompts prefilled once, then extended by many continuations on the sequence axis.

A beam search usually gives every beam its own row of the batch and copies the prompt's keys and values into it. Here
each prompt keeps one row. Every new token of every beam is appended as one more *column*, and a 4D mask lets a column
see the prompt, its own ancestors and itself; its position id is the prompt's length plus its depth (tree attention,
as in SpecInfer, arXiv:2305.09781). The prompt's cache exists once per prompt whatever the number of beams; measured
in docs/decisions/0003-search-on-the-sequence-axis.md.

Three points about Hugging Face models that this file relies on (read in transformers 5.19, held by tests):

- A 4D mask is taken as it is by every model that builds its masks with ``masking_utils``. Models whose layers differ
  (Gemma 2: full and sliding) take a dict of masks by layer type. So one tensor is passed where all layers see the
  same, and a dict only where a sliding window really cuts.
- `BranchCache` keeps all columns in all layers, also those with a sliding window; the window is ours to mask. That is
  what makes `truncate` a change of a counter.
- ``generate`` and its ``generation_config`` (top_k, repetition_penalty of instruct checkpoints) are never involved.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llmrec.decode.kv_cache import BranchCache
from llmrec.decode.prefix_cache import PrefixCache
from llmrec.errors import InputError

_FULL, _SLIDING = "full_attention", "sliding_attention"


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
        self._backbone = model.get_decoder()
        self._attention = _attention(model)
        self.num_forwards = 0
        self._seen: np.ndarray
        self._positions: np.ndarray

        batch, longest = len(prompts), max(len(prompt) for prompt in prompts)
        ids = np.zeros((batch, longest), dtype=np.int64)
        real = np.zeros((batch, longest), dtype=bool)
        for i, prompt in enumerate(prompts):
            ids[i, longest - len(prompt) :] = prompt
            real[i, longest - len(prompt) :] = True
        self._device = self._backbone.get_input_embeddings().weight.device
        self._real = torch.from_numpy(real).to(self._device)
        self._lengths = real.sum(axis=1)
        self._prompt_positions = np.maximum(real.cumsum(axis=1) - 1, 0)
        self._cache = BranchCache(self._attention.num_layers, longest + reserve)
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
    def num_slots(self) -> int:
        """Columns appended since the prefill and not dropped; the next column's slot has this number."""
        return int(self._positions.shape[1])

    def truncate(self, num_slots: int) -> None:
        """Drop the last columns until `num_slots` are left; 0 leaves the prompts, so that another search can start."""
        if num_slots < self.num_slots:
            self._cache.truncate(self._real.shape[1] + num_slots)
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
        self._cache.fill(len(prompts), known, [(row, at, block[..., : known - at, :]) for row, at, block in rows])
        return known

    def _store(self, prompts: Sequence[Sequence[int] | np.ndarray], longest: int, cache: PrefixCache) -> None:
        for row, prompt in enumerate(prompts):
            first = longest - len(prompt)
            for start, key in cache.missing(prompt):
                cache.put(key, self._cache.columns(row, first + start, first + start + cache.block_size))

    def extend(self, parents: np.ndarray, tokens: np.ndarray) -> Tensor:
        """Append M columns to every prompt in one forward.

        Args:
            parents: (batch, M) the slot each column continues, -1 for the prompt itself. A parent may be a column of
                the same call that stands further left, so a whole subtree fits into one forward.
            tokens: (batch, M) token ids. Fill unused places with any token and parent -1 and ignore their states.

        Returns:
            (batch, M, hidden) last hidden states. Their slots are ``num_slots - M … num_slots - 1``.
        """
        batch, width = parents.shape
        first = self.num_slots
        slots = np.broadcast_to(np.arange(first, first + width), (batch, width))
        if ((parents < -1) | (parents >= slots)).any():
            raise InputError("A column's parent must be -1 or the slot of an earlier column.")
        # Who sees whom: a column sees itself and what its parent sees; parents of the same call come first.
        seen = np.zeros((batch, first + width, first + width), dtype=bool)
        seen[:, :first, :first] = self._seen
        slot_positions = np.concatenate([self._positions, np.zeros((batch, width), dtype=np.int64)], axis=1)
        waiting = np.ones((batch, width), dtype=bool)
        while waiting.any():
            own = np.take_along_axis(waiting, np.maximum(parents - first, 0), axis=1) & (parents >= first)
            rows, columns = np.nonzero(waiting & ~own)  # the parent is known, or is the prompt
            above = parents[rows, columns]
            seen[rows, first + columns] = np.where((above >= 0)[:, None], seen[rows, above], False)
            seen[rows, first + columns, first + columns] = True
            before = np.where(above >= 0, slot_positions[rows, above], self._lengths[rows] - 1)
            slot_positions[rows, first + columns] = before + 1
            waiting[rows, columns] = False

        mask = self._ancestor_mask(seen[:, first:], slot_positions[:, first:], slot_positions)
        states = self._forward(tokens, slot_positions[:, first:], mask)
        self.num_forwards += 1
        self._seen, self._positions = seen, slot_positions
        return states

    def _clear(self) -> None:
        self._seen = np.zeros((self.batch_size, 0, 0), dtype=bool)
        self._positions = np.zeros((self.batch_size, 0), dtype=np.int64)

    @torch.no_grad()
    def _forward(self, tokens: np.ndarray, positions: np.ndarray, mask: Tensor | dict[str, Tensor] | None) -> Tensor:
        output = self._backbone(
            input_ids=torch.from_numpy(np.ascontiguousarray(tokens, dtype=np.int64)).to(self._device),
            position_ids=torch.from_numpy(np.ascontiguousarray(positions, dtype=np.int64)).to(self._device),
            attention_mask=mask,
            past_key_values=self._cache,
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
        window, kinds = self._attention.window, self._attention.layer_kinds
        if window is None or positions.max() < window or _SLIDING not in kinds:
            return self._prepared(full)
        keys = np.concatenate([self._prompt_positions, slot_positions], axis=1)
        near = positions[:, :, None] - keys[:, None, :] < window
        sliding = self._prepared(full & torch.from_numpy(near).to(self._device))
        if kinds == {_SLIDING}:
            return sliding
        return {_FULL: self._prepared(full), _SLIDING: sliding}

    def _prepared(self, allowed: Tensor) -> Tensor:
        allowed = allowed[:, None]
        if self._attention.implementation == "sdpa":
            return allowed
        dtype = self._backbone.dtype  # eager attention adds its mask
        return torch.zeros(allowed.shape, dtype=dtype, device=self._device).masked_fill(
            ~allowed, torch.finfo(dtype).min
        )


@dataclass(frozen=True)
class _Attention:
    """What the masks of a model have to know."""

    implementation: str
    layer_kinds: frozenset[str]
    window: int | None
    num_layers: int


def _attention(model: Any) -> _Attention:
    """Read a model's config.

    Raises:
        InputError: recurrent or chunked layers (their state cannot branch into beams), or an attention that takes no
            4D mask.
    """
    config = model.config.get_text_config()
    settings = config.to_dict()
    window = settings.get("sliding_window")
    # Families with one kind of layer (Llama, Mistral) have no `layer_types`; a window then holds for all of them.
    kinds = frozenset(settings.get("layer_types") or [_FULL if window is None else _SLIDING])
    name = settings.get("model_type", type(model).__name__)
    if kinds - {_FULL, _SLIDING}:
        raise InputError(
            f"{name} has layers of the kind {', '.join(sorted(kinds - {_FULL, _SLIDING}))}: their state cannot branch "
            "into beams.",
            hint="use a model with full or sliding-window attention only, or `generate` with SIDLogitsProcessor",
        )
    implementation = str(config._attn_implementation)
    if implementation not in ("sdpa", "eager"):
        raise InputError(
            f"The search needs an attention that takes an ancestor mask; this {name} uses {implementation!r}.",
            hint='load the model with attn_implementation="sdpa"',
        )
    return _Attention(implementation, kinds, window, int(config.num_hidden_layers))
