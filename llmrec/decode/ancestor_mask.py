"""Who sees whom where many continuations of a prompt stand on one sequence axis (tree attention, arXiv:2305.09781).

A column sees the prompt, its own ancestors and itself; its position id is the prompt's length plus its depth. The
search (`llmrec.decode.session`, with a cache) and the training forward (`llmrec.train.tree_forward`, with gradients)
share what is here.

Read in transformers 5.19 and held by the tests of both: a 4D mask is taken as it is by every model that builds its
masks with ``masking_utils``; models whose layers differ (Gemma: full and sliding) take a dict of masks by layer type.
So one tensor is made where all layers see the same, and a dict only where a sliding window really cuts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llmrec.errors import InputError

_FULL, _SLIDING = "full_attention", "sliding_attention"


@dataclass(frozen=True)
class Attention:
    """What the masks of a model have to know."""

    implementation: str
    layer_kinds: frozenset[str]
    window: int | None
    num_layers: int


def read_attention(model: Any) -> Attention:
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
    return Attention(implementation, kinds, window, int(config.num_hidden_layers))


def grow(
    seen: np.ndarray, positions: np.ndarray, parents: np.ndarray, lengths: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Append M columns to S known ones.

    Args:
        seen: (batch, S, S) bool, which known column sees which.
        positions: (batch, S) their position ids.
        parents: (batch, M) the column each new one continues, -1 for the prompt; it may be a new one further left.
        lengths: (batch,) tokens of each prompt.

    Returns:
        (batch, S + M, S + M) and (batch, S + M): the same for all columns.

    Raises:
        InputError: a parent that does not stand further left.
    """
    batch, width = parents.shape
    first = positions.shape[1]
    slots = np.broadcast_to(np.arange(first, first + width), (batch, width))
    if ((parents < -1) | (parents >= slots)).any():
        raise InputError("A column's parent must be -1 or the slot of an earlier column.")
    # Who sees whom: a column sees itself and what its parent sees; parents of the same call come first.
    grown = np.zeros((batch, first + width, first + width), dtype=bool)
    grown[:, :first, :first] = seen
    places = np.concatenate([positions, np.zeros((batch, width), dtype=np.int64)], axis=1)
    waiting = np.ones((batch, width), dtype=bool)
    while waiting.any():
        own = np.take_along_axis(waiting, np.maximum(parents - first, 0), axis=1) & (parents >= first)
        rows, columns = np.nonzero(waiting & ~own)  # the parent is known, or is the prompt
        above = parents[rows, columns]
        grown[rows, first + columns] = np.where((above >= 0)[:, None], grown[rows, above], False)
        grown[rows, first + columns, first + columns] = True
        before = np.where(above >= 0, places[rows, above], lengths[rows] - 1)
        places[rows, first + columns] = before + 1
        waiting[rows, columns] = False
    return grown, places


def layer_masks(
    attention: Attention, visible: Tensor, positions: np.ndarray, key_positions: np.ndarray, dtype: torch.dtype
) -> Tensor | dict[str, Tensor]:
    """The 4D mask (batch, 1, queries, keys), or one by layer type where a window cuts only some layers.

    Args:
        attention: of the model.
        visible: (batch, queries, keys) bool.
        positions: (batch, queries) position ids.
        key_positions: (batch, keys) position ids.
        dtype: of the model.
    """
    window, kinds = attention.window, attention.layer_kinds
    if window is None or positions.max() < window or _SLIDING not in kinds:
        return _prepared(attention, visible, dtype)
    near = positions[:, :, None] - key_positions[:, None, :] < window
    sliding = _prepared(attention, visible & torch.from_numpy(near).to(visible.device), dtype)
    if kinds == {_SLIDING}:
        return sliding
    return {_FULL: _prepared(attention, visible, dtype), _SLIDING: sliding}


def _prepared(attention: Attention, allowed: Tensor, dtype: torch.dtype) -> Tensor:
    allowed = allowed[:, None]
    if attention.implementation == "sdpa":
        return allowed
    # eager attention adds its mask
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill(~allowed, torch.finfo(dtype).min)
