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
- A `DynamicCache` made without a config keeps all columns in all layers, also those with a sliding window; the window
  is then ours to mask. That is what makes `rewind` a plain crop.
- ``generate`` and its ``generation_config`` (top_k, repetition_penalty of instruct checkpoints) are never involved.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llmrec.errors import InputError

_FULL, _SLIDING = "full_attention", "sliding_attention"


class PrefixSession:
    """One KV cache for a batch of prompts and everything that was appended to them.

    Args:
        model: a Hugging Face causal LM (also a PEFT model) with "sdpa" or "eager" attention.
        prompts: token ids per prompt, none empty; shorter ones are padded on the left.

    Attributes:
        prompt_states: (batch, hidden) last hidden state of each prompt: what the LM head reads for the next token.
        num_forwards: forwards since the prefill.

    Raises:
        InputError: an empty prompt, or a model whose attention cannot take an ancestor mask.
    """

    def __init__(self, model: Any, prompts: Sequence[Sequence[int] | np.ndarray]) -> None:
        from transformers import DynamicCache

        empty = [i for i, prompt in enumerate(prompts) if len(prompt) == 0]
        if empty or not len(prompts):
            given = f"prompt {empty[0]} has no token" if empty else "no prompt was given"
            raise InputError(
                f"A search needs prompts of at least one token; {given}.", hint="put BOS or a header before the history"
            )
        self._backbone = model.get_decoder()
        self._implementation, self._layer_kinds, self._window = _attention(model)
        self._cache = DynamicCache()
        self.num_forwards = 0
        self._parents: np.ndarray
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
        positions = np.maximum(real.cumsum(axis=1) - 1, 0)
        self._prompt_positions = positions
        self._clear()
        states = self._forward(ids, positions, None if real.all() else self._real.long())
        self.prompt_states = states[:, -1]

    @property
    def batch_size(self) -> int:
        """Prompts in this session."""
        return len(self._lengths)

    @property
    def num_slots(self) -> int:
        """Columns appended since the prefill or the last `rewind`; the next column's slot has this number."""
        return int(self._parents.shape[1])

    def rewind(self) -> None:
        """Drop every appended column; the prompts stay, so that another search can start from the same prefill."""
        if self.num_slots:
            self._cache.crop(-self.num_slots)
        self._clear()

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
        all_parents = np.concatenate([self._parents, parents], axis=1)

        # Climb from every new column to its prompt, one generation a pass (at most num_levels passes).
        visible = np.zeros((batch, width, first + width), dtype=bool)
        depth = np.zeros((batch, width), dtype=np.int64)
        current = slots
        while (climbing := current >= 0).any():
            rows, columns = np.nonzero(climbing)
            visible[rows, columns, current[climbing]] = True
            depth += climbing
            above = np.take_along_axis(all_parents, np.maximum(current, 0), axis=1)
            current = np.where(climbing, above, -1)
        positions = self._lengths[:, None] + depth - 1
        all_positions = np.concatenate([self._positions, positions], axis=1)

        mask = self._ancestor_mask(visible, positions, all_positions)
        states = self._forward(tokens, positions, mask)
        self.num_forwards += 1
        self._parents, self._positions = all_parents, all_positions
        return states

    def _clear(self) -> None:
        self._parents = np.zeros((self.batch_size, 0), dtype=np.int64)
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
        if self._window is None or positions.max() < self._window or _SLIDING not in self._layer_kinds:
            return self._prepared(full)
        keys = np.concatenate([self._prompt_positions, slot_positions], axis=1)
        near = positions[:, :, None] - keys[:, None, :] < self._window
        sliding = self._prepared(full & torch.from_numpy(near).to(self._device))
        if self._layer_kinds == {_SLIDING}:
            return sliding
        return {_FULL: self._prepared(full), _SLIDING: sliding}

    def _prepared(self, allowed: Tensor) -> Tensor:
        allowed = allowed[:, None]
        if self._implementation == "sdpa":
            return allowed
        dtype = self._backbone.dtype  # eager attention adds its mask
        return torch.zeros(allowed.shape, dtype=dtype, device=self._device).masked_fill(
            ~allowed, torch.finfo(dtype).min
        )


def _attention(model: Any) -> tuple[str, set[str], int | None]:
    """Attention implementation, the kinds of layers, and the sliding window of a model.

    Raises:
        InputError: recurrent or chunked layers (their state cannot branch into beams), or an attention that takes no
            4D mask.
    """
    config = model.config.get_text_config()
    settings = config.to_dict()
    window = settings.get("sliding_window")
    # Families with one kind of layer (Llama, Mistral) have no `layer_types`; a window then holds for all of them.
    kinds = set(settings.get("layer_types") or [_FULL if window is None else _SLIDING])
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
    return implementation, kinds, window
