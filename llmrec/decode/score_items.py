"""Log-probabilities of given items after each prompt: re-ranking a short list, or scoring the whole catalogue.

All prefixes that the items share are read once: a chunk of items is one subtree.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from llmrec.decode.expander import Expander, Wanted
from llmrec.decode.trie_filter import RowFilter
from llmrec.errors import InputError

_CHUNK = 256
"""Leaves that are scored together, per prompt."""


def score_items(
    expander: Expander, rows: Sequence[np.ndarray], filters: Sequence[RowFilter | None] | None = None
) -> list[np.ndarray]:
    """Score items.

    Args:
        expander: the prompts. Its trie decides what "legal" normalises over.
        rows: per prompt (m,) rows of the table, in any order, repeats allowed.
        filters: per prompt what else may be returned; it matters for "legal" alone.

    Returns:
        Per prompt (m,) float64 log-probabilities in the order of its `rows`. -inf for items that are not living, or
        that a filter leaves out.

    Raises:
        InputError: a row is not in the table.
    """
    trie = expander.trie
    leaves = []
    for row, wanted in enumerate(rows):
        asked = np.asarray(wanted, dtype=np.int64)
        if asked.size and (asked.min() < 0 or asked.max() >= trie.num_items):
            raise InputError(
                f"Prompt {row} asks for rows {asked.min()}..{asked.max()}; the table has 0..{trie.num_items - 1}."
            )
        leaves.append(np.unique(trie.leaf_of[asked]))
    allowed = [None] * len(rows) if filters is None else filters
    scores = [np.zeros(len(distinct)) for distinct in leaves]
    # Ascending leaves are neighbours in the tree: a chunk shares most of its prefixes.
    for start in range(0, max(len(distinct) for distinct in leaves), _CHUNK):
        part = slice(start, start + _CHUNK)
        for row, values in enumerate(_score_leaves(expander, [distinct[part] for distinct in leaves], allowed)):
            scores[row][part] = values
    return [
        scores[row][np.searchsorted(leaves[row], trie.leaf_of[np.asarray(wanted, dtype=np.int64)])]
        for row, wanted in enumerate(rows)
    ]


def _score_leaves(
    expander: Expander, leaves: Sequence[np.ndarray], filters: Sequence[RowFilter | None]
) -> list[np.ndarray]:
    trie = expander.trie
    paths = [_ancestors(expander, each) for each in leaves]  # per prompt and level the node above each leaf
    wanted: list[Wanted] = []
    for path in paths:
        nodes = [np.unique(path[level]) for level in range(trie.num_levels)]
        wanted.append((np.repeat(np.arange(trie.num_levels), [len(part) for part in nodes]), np.concatenate(nodes)))
    result = []
    for (levels, _), path, found in zip(wanted, paths, expander.expand(wanted, filters), strict=True):
        total = np.zeros(len(path[0]))
        for level in range(1, trie.num_levels + 1):
            here = levels[found.owner] == level - 1
            order = np.argsort(found.node[here])
            nodes, gains = found.node[here][order], found.gain[here][order]
            place = np.minimum(np.searchsorted(nodes, path[level]), max(len(nodes) - 1, 0))
            known = nodes[place] == path[level] if len(nodes) else np.zeros(len(path[level]), dtype=bool)
            total += np.where(known, gains[place], -np.inf) if len(nodes) else -np.inf
        result.append(total)
    return result


def _ancestors(expander: Expander, leaves: np.ndarray) -> list[np.ndarray]:
    path = [leaves]
    for level in range(expander.trie.num_levels, 0, -1):
        path.append(expander.trie.parents(level, path[-1]))
    return path[::-1]
