"""Is what a generator lists really there? Checked from the tokens, not from how the search was built."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from llmrec.decode.result import SearchResult
from llmrec.prompts.renderer import Renderer

if TYPE_CHECKING:
    from llmrec.decode.searcher import Searcher


@dataclass
class Counts:
    """What the lists of all users and modes held."""

    checked: int = 0
    invalid: int = 0
    duplicates: int = 0
    excluded: int = 0


class Proof:
    """Which living rows a recommended SID names, read from its tokens' text as a client would.

    Args:
        searcher: its trie and token ids say which tokens the model was given for a row.
        renderer: its codec turns tokens into text, its reader text into items.
        alive: (table rows,) bool.
    """

    def __init__(self, searcher: Searcher, renderer: Renderer, alive: np.ndarray) -> None:
        self._trie, self._token_ids = searcher.trie, searcher.token_ids
        self._renderer, self._alive = renderer, alive
        self._row_of = {item_id: row for row, item_id in enumerate(renderer.table.item_ids)}
        self._named: dict[int, frozenset[int]] = {}  # by leaf: a SID reads the same each time

    def holds(self, row: int) -> bool:
        """Whether the SID that was generated for `row` is one SID, and a living item with that row has it."""
        leaf = int(self._trie.leaf_of[row])
        if leaf not in self._named:
            codes = self._trie.paths(self._trie.num_levels, np.array([leaf]))[0]
            text = self._renderer.codec.decode(int(ids[c]) for ids, c in zip(self._token_ids, codes, strict=True))
            sids = self._renderer.reader.items(text)
            named = [self._row_of[item_id] for item_id in sids[0]] if len(sids) == 1 else []
            self._named[leaf] = frozenset(one for one in named if self._alive[one])
        return row in self._named[leaf]


def checked_buckets(result: SearchResult, proof: Proof, history: np.ndarray | None, counts: Counts) -> list[np.ndarray]:
    """The buckets of a result as rows, with what must not be there counted and taken out."""
    seen: set[int] = set()
    banned = set() if history is None else set(history.tolist())
    kept = []
    for bucket in result.buckets:
        rows = []
        for row in bucket.tolist():
            counts.checked += 1
            if row in seen:
                counts.duplicates += 1
            elif not proof.holds(row):
                counts.invalid += 1
            elif row in banned:
                counts.excluded += 1
            else:
                rows.append(row)
            seen.add(row)
        if rows:
            kept.append(np.array(rows, np.int64))
    return kept
