"""One forward for the next tokens of several texts (continuous batching, in the sense of Orca, OSDI 2022).

Each text keeps a cache of its own, so it may begin, end and branch off into the search for an item whenever it likes.
Only the matrix products are shared: for one forward the caches are laid side by side, padded on the right, and every
row's new keys and values go into the text's own cache. That copies the caches once per layer, which is cheap beside
reading the weights once for each text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

from llmrec.decode.ancestor_mask import layer_masks
from llmrec.decode.kv_cache import BranchLayer
from llmrec.decode.session import PrefixSession
from llmrec.decode.text_chain import TextChain


class Reads(Protocol):
    """What writes along a chain: a text, a thought."""

    def reading(self) -> TextChain | None:
        """The chain whose unread words the next step reads first; None where it reads none."""


def read_together(streams: Sequence[Reads]) -> None:
    """Read what the next steps of `streams` need, where more than one of them waits for words to be read.

    The streams must be of one model. Without this call each step does its own forward; the text is the same but for
    the order of sums.
    """
    chains = [chain for stream in streams if (chain := stream.reading()) is not None]
    if len(chains) < 2:
        return
    for chain, states in zip(chains, extend_chains(chains), strict=True):
        chain.accept(states)


@torch.no_grad()
def extend_chains(chains: Sequence[TextChain]) -> list[Tensor]:
    """Append each chain's unread tokens to its session; per chain (1, hidden), the state of its last token."""
    sessions = [chain.session for chain in chains]
    unread = [chain.unread for chain in chains]
    grown = [_grown(session, len(ids)) for session, ids in zip(sessions, unread, strict=True)]
    queries = max(map(len, unread))
    ends = [session.num_prompt_columns + places.shape[1] for session, (_, places) in zip(sessions, grown, strict=True)]
    keys = max(ends)
    tokens = np.zeros((len(chains), queries), np.int64)
    positions = np.zeros((len(chains), queries), np.int64)
    key_positions = np.zeros((len(chains), keys), np.int64)
    visible = np.zeros((len(chains), queries, keys), bool)
    visible[:, :, 0] = True  # a padded query has to see something
    for row, (session, ids, (seen, places)) in enumerate(zip(sessions, unread, grown, strict=True)):
        prompt, width, end = session.num_prompt_columns, len(ids), ends[row]
        tokens[row, :width] = ids
        positions[row, :width] = places[0, -width:]
        key_positions[row, :prompt] = np.arange(prompt)
        key_positions[row, prompt:end] = places[0]
        visible[row, :width, :prompt] = True
        visible[row, :width, prompt:end] = seen[0, -width:]

    first = sessions[0]
    device = first.backbone.get_input_embeddings().weight.device
    mask = layer_masks(
        first.attention, torch.from_numpy(visible).to(device), positions, key_positions, first.backbone.dtype
    )
    cache = _SideBySide([session.cache.layers for session in sessions], list(map(len, unread)))
    try:
        output = first.backbone(
            input_ids=torch.from_numpy(tokens).to(device),
            position_ids=torch.from_numpy(positions).to(device),
            attention_mask=mask,
            past_key_values=cache,
            use_cache=True,
        )
    except BaseException:
        for session in sessions:  # some layers may have grown
            session.cache.truncate(session.num_prompt_columns + session.num_slots)
        raise
    for session, (seen, places) in zip(sessions, grown, strict=True):
        session.adopt(seen, places)
    states: Tensor = output.last_hidden_state
    return [states[row, len(ids) - 1][None] for row, ids in enumerate(unread)]


def _grown(session: PrefixSession, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Ancestors and positions of a session's columns with `width` further ones in a chain behind the last."""
    first = session.num_slots
    return session.grown(np.arange(first - 1, first - 1 + width)[None])


class _SideBySide(Cache):  # type: ignore[misc]  # transformers is untyped
    """Caches of one row each as the rows of one batch."""

    def __init__(self, caches: Sequence[Sequence[BranchLayer]], widths: Sequence[int]) -> None:
        super().__init__(layers=[_Layer(rows, widths) for rows in zip(*caches, strict=True)])


class _Layer(CacheLayerMixin):  # type: ignore[misc]
    """One layer of all rows; row `i` takes the first ``widths[i]`` of the new columns."""

    is_sliding = False

    def __init__(self, rows: Sequence[BranchLayer], widths: Sequence[int]) -> None:
        super().__init__()
        self._rows, self._widths = rows, widths

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing: the rows are there."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append to each row's own layer, and return copies of all of them, padded on the right."""
        known = [
            layer.update(key_states[row : row + 1, :, :width], value_states[row : row + 1, :, :width])
            for row, (layer, width) in enumerate(zip(self._rows, self._widths, strict=True))
        ]
        keys, values = zip(*known, strict=True)
        return _padded(keys), _padded(values)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Columns that `query_length` further ones will see, and where they start."""
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self) -> int:
        """Columns of the longest row."""
        return max(layer.length for layer in self._rows)

    def get_max_length(self) -> int:
        """No maximum."""
        return -1


def _padded(rows: Sequence[Tensor]) -> Tensor:
    """(1, heads, columns, size) each to (rows, heads, most columns, size), zero behind the ends."""
    _, heads, _, size = rows[0].shape
    out = rows[0].new_zeros((len(rows), heads, max(row.shape[2] for row in rows), size))
    for place, row in enumerate(rows):
        out[place, :, : row.shape[2]] = row[0]
    return out
