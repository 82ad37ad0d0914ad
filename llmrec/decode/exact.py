"""Exact search: the true top-k of the whole catalogue without scoring all of it.

Best-first search. Every step adds a log-probability, which is at most 0, so the score of a prefix bounds the scores
of all items below it. The best open prefixes are expanded together in one forward, and the search of a prompt ends
when its k-th best complete item beats every open prefix. The result equals scoring every item (`score_items`), ties
by the lower code path included. How many forwards that takes depends on how sure the model is: few after training,
up to all prefixes for a model that knows nothing. `TorchExpander` bounds the cache by recomputation.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from llmrec.decode.expander import Expander
from llmrec.decode.item_bonus import BonusExpander, ItemBonus, collect_with_bonus
from llmrec.decode.result import SearchResult, best_first, collect
from llmrec.decode.trie import SIDTrie
from llmrec.decode.trie_filter import RowFilter
from llmrec.errors import InputError


def exact_search(
    expander: Expander,
    filters: Sequence[RowFilter | None],
    *,
    top_k: int,
    bonus: ItemBonus | None = None,
    num_expanded: int = 32,
) -> list[SearchResult]:
    """Search every prompt of an expander.

    Args:
        expander: the prompts.
        filters: one per prompt, None where every living item may be returned.
        top_k: items to return per prompt.
        bonus: ranks items by score plus bonus; the results are then `BonusResult`.
        num_expanded: open prefixes per prompt and forward; more means fewer forwards and some wasted columns.

    Raises:
        InputError: ``top_k < 1`` or ``num_expanded < 1``.
    """
    if top_k < 1 or num_expanded < 1:
        raise InputError(f"top_k and num_expanded must be at least 1; given {top_k} and {num_expanded}.")
    expander = expander if bonus is None else BonusExpander(expander, bonus)
    before = expander.num_forwards
    searches = [_Frontier(expander.trie, allowed, top_k, count_items=bonus is None) for allowed in filters]
    while any(search.is_open for search in searches):
        chosen = [search.pop(num_expanded) for search in searches]
        found = expander.expand([(levels, nodes) for levels, nodes, _ in chosen], filters)
        for search, (levels, _, scores), part in zip(searches, chosen, found, strict=True):
            below = levels[part.owner] + 1
            for level in np.unique(below):
                here = below == level
                search.push(int(level), part.node[here], scores[part.owner[here]] + part.gain[here])
    finish = partial(collect, expander.trie) if bonus is None else partial(collect_with_bonus, bonus)
    num_forwards = expander.num_forwards - before
    return [
        finish(
            search.allowed,
            search.leaves,
            search.leaf_scores,
            top_k=top_k,
            normalise=expander.normalise,
            num_forwards=num_forwards,
        )
        for search in searches
    ]


class _Frontier:
    """Open prefixes and complete leaves of one prompt."""

    def __init__(self, trie: SIDTrie, allowed: RowFilter | None, top_k: int, *, count_items: bool) -> None:
        self.allowed, self._trie, self._top_k = allowed, trie, top_k
        self._count_items = count_items
        self._levels = np.zeros(1, dtype=np.int64)
        self._nodes = np.zeros(1, dtype=np.int64)
        self._scores = np.zeros(1)
        self.leaves = np.zeros(0, dtype=np.int64)
        self.leaf_scores = np.zeros(0)
        self._bar = -np.inf  # score of the k-th best complete item
        if trie.num_living(0, self._nodes, allowed)[0] == 0:
            self._keep(np.zeros(1, dtype=bool))

    @property
    def is_open(self) -> bool:
        """Whether an open prefix may still hold one of the best items."""
        return bool(self._nodes.size)

    def pop(self, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Take out the best open prefixes: levels, nodes, scores."""
        # Among equal scores the order is free: whatever it is, all prefixes at or above the bar get expanded.
        best = best_first(self._scores, self._levels, count)
        taken = self._levels[best], self._nodes[best], self._scores[best]
        rest = np.ones(len(self._scores), dtype=bool)
        rest[best] = False
        self._keep(rest)
        return taken

    def push(self, level: int, nodes: np.ndarray, scores: np.ndarray) -> None:
        """Add children; leaves raise the bar, and what can no longer reach it is dropped."""
        if level < self._trie.num_levels:
            self._levels = np.concatenate([self._levels, np.full(len(nodes), level)])
            self._nodes = np.concatenate([self._nodes, nodes])
            self._scores = np.concatenate([self._scores, scores])
        else:
            leaves = np.concatenate([self.leaves, nodes])
            leaf_scores = np.concatenate([self.leaf_scores, scores])
            best = best_first(leaf_scores, leaves, self._top_k)  # every leaf holds at least one item
            self.leaves, self.leaf_scores = leaves[best], leaf_scores[best]
            # With a bonus a leaf's score is that of its best item alone: the others may lie below the bar.
            held = self._trie.num_living(level, self.leaves, self.allowed)
            items = np.cumsum(held if self._count_items else np.ones_like(held))
            if items[-1] >= self._top_k:
                self._bar = self.leaf_scores[np.searchsorted(items, self._top_k)]
        # An open prefix at the bar itself stays: it may hold an equal item with a lower code path.
        self._keep(self._scores >= self._bar)

    def _keep(self, keep: np.ndarray) -> None:
        self._levels, self._nodes, self._scores = self._levels[keep], self._nodes[keep], self._scores[keep]
