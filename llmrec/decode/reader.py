"""`PrefixReader`: hidden states of SID prefixes after each prompt of a session, computed once and kept while they fit.

The searches ask for trie nodes; the reader finds out which columns are missing, appends them with their ancestors in
one forward, and remembers slot and state. When the columns would exceed `max_slots` it rewinds the session and starts
again with what is asked for: dropped ancestors are recomputed inside the same forward (a chain of known tokens is as
good as one token), so memory is bounded and nothing needs compaction.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from llmrec.decode.session import PrefixSession
from llmrec.decode.trie import SIDTrie


class PrefixReader:
    """Reads prefixes of one session; makes the session its own (it starts with a rewind).

    Args:
        session: the prefilled prompts.
        trie: numbers the prefixes.
        token_ids: per level the token id of each code.
        max_slots: columns to keep per prompt; a single request that needs more is served all the same.
    """

    def __init__(self, session: PrefixSession, trie: SIDTrie, token_ids: Sequence[np.ndarray], max_slots: int) -> None:
        self._session, self._trie, self._max_slots = session, trie, max_slots
        # The token that leads to each node, by level; the root has none.
        self._tokens = [np.zeros(1, dtype=np.int64), *(ids[trie.code[i + 1]] for i, ids in enumerate(token_ids))]
        self._start = session.num_forwards
        self._forget()

    @property
    def num_forwards(self) -> int:
        """Forwards this reader has caused."""
        return self._session.num_forwards - self._start

    def read(self, wanted: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[Tensor]:
        """Hidden states of prefixes.

        Args:
            wanted: per prompt of the session ``(levels, nodes)``, two (m,) arrays; level 0 is the prompt itself.

        Returns:
            Per prompt an (m, hidden) tensor.
        """
        keys = [list(zip(levels.tolist(), nodes.tolist(), strict=True)) for levels, nodes in wanted]
        missing = [self._missing(row, prompt_keys) for row, prompt_keys in enumerate(keys)]
        width = max(len(columns) for columns in missing)
        if self._session.num_slots and self._session.num_slots + width > self._max_slots:
            self._forget()
            missing = [self._missing(row, prompt_keys) for row, prompt_keys in enumerate(keys)]
            width = max(len(columns) for columns in missing)
        if width:
            self._append(missing, width)
        result = []
        for row, prompt_keys in enumerate(keys):
            places = torch.tensor([self._slots[row][key] + 1 for key in prompt_keys], dtype=torch.int64)
            result.append(self._states[row, places.to(self._states.device)])
        return result

    def _forget(self) -> None:
        self._session.rewind()
        self._states = self._session.prompt_states[:, None]  # place 0 is the prompt, place s + 1 is slot s
        self._slots: list[dict[tuple[int, int], int]] = [{(0, 0): -1} for _ in range(self._session.batch_size)]

    def _missing(self, row: int, keys: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """Prefixes to append for `keys`, each after its parent."""
        known = self._slots[row]
        missing: dict[tuple[int, int], None] = {}
        for key in keys:
            chain = []
            while key not in known and key not in missing:
                chain.append(key)
                key = (key[0] - 1, int(self._trie.parent[key[0]][key[1]]))
            missing.update(dict.fromkeys(reversed(chain)))
        return list(missing)

    def _append(self, missing: Sequence[Sequence[tuple[int, int]]], width: int) -> None:
        first = self._session.num_slots
        parents = np.full((len(missing), width), -1, dtype=np.int64)
        tokens = np.zeros((len(missing), width), dtype=np.int64)
        for row, columns in enumerate(missing):
            slots = self._slots[row]
            for place, (level, node) in enumerate(columns):
                parents[row, place] = slots[level - 1, int(self._trie.parent[level][node])]
                tokens[row, place] = self._tokens[level][node]
                slots[level, node] = first + place
        self._states = torch.cat([self._states, self._session.extend(parents, tokens)], dim=1)
