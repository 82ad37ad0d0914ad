"""Log-probabilities of given items after each prompt: re-ranking a short list, or scoring the whole catalogue.

All prefixes that the items share are computed once: a chunk of items is one subtree, appended in one forward.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from llmrec.decode.reader import PrefixReader
from llmrec.decode.scores import ChildScorer
from llmrec.decode.session import PrefixSession
from llmrec.errors import InputError


def score_items(
    session: PrefixSession, scorer: ChildScorer, rows: Sequence[np.ndarray], *, max_slots: int = 512
) -> list[np.ndarray]:
    """Score items; the session is rewound first.

    Args:
        session: the prefilled prompts.
        scorer: head, trie and normalisation.
        rows: per prompt (m,) rows of the table, in any order, repeats allowed.
        max_slots: columns per prompt and forward.

    Returns:
        Per prompt (m,) float64 log-probabilities in the order of its `rows`. Items that are not living are scored
        like others, except that "legal" gives them -inf.

    Raises:
        InputError: a row is not in the table.
    """
    trie = scorer.trie
    leaves = []
    for row, wanted in enumerate(rows):
        asked = np.asarray(wanted, dtype=np.int64)
        if asked.size and (asked.min() < 0 or asked.max() >= trie.num_items):
            raise InputError(
                f"Prompt {row} asks for rows {asked.min()}..{asked.max()}; the table has 0..{trie.num_items - 1}."
            )
        leaves.append(np.unique(trie.leaf_of[asked]))
    reader = PrefixReader(session, trie, scorer.token_ids, max_slots)
    # Ascending leaves are neighbours in the tree: a chunk needs at most (levels - 1) columns per leaf.
    chunk = max(1, max_slots // max(1, trie.num_levels - 1))
    scores = [np.zeros(len(distinct)) for distinct in leaves]
    for start in range(0, max(len(distinct) for distinct in leaves), chunk):
        part = slice(start, start + chunk)
        for row, values in enumerate(_score_leaves(reader, scorer, [distinct[part] for distinct in leaves])):
            scores[row][part] = values
    return [
        scores[row][np.searchsorted(leaves[row], trie.leaf_of[np.asarray(wanted, dtype=np.int64)])]
        for row, wanted in enumerate(rows)
    ]


def _score_leaves(reader: PrefixReader, scorer: ChildScorer, leaves: Sequence[np.ndarray]) -> list[np.ndarray]:
    trie = scorer.trie
    path = [leaves]  # per level from the leaves up: the node above each leaf, per prompt
    for level in range(trie.num_levels, 0, -1):
        path.append([trie.parent[level][nodes] for nodes in path[-1]])
    path.reverse()
    prefixes = [[np.unique(nodes) for nodes in path[level]] for level in range(trie.num_levels)]
    wanted = []
    for row in range(len(leaves)):
        nodes = [prefixes[level][row] for level in range(trie.num_levels)]
        levels = np.repeat(np.arange(trie.num_levels), [len(part) for part in nodes])
        wanted.append((levels, np.concatenate(nodes)))
    states = reader.read(wanted)

    scores = [np.zeros(len(distinct)) for distinct in leaves]
    for level in range(trie.num_levels):
        at_level = [states[row][torch.from_numpy(wanted[row][0] == level)] for row in range(len(leaves))]
        tables = np.split(scorer.table(torch.cat(at_level), level), np.cumsum([len(part) for part in at_level])[:-1])
        for row, table in enumerate(tables):
            place = np.searchsorted(prefixes[level][row], path[level][row])
            if scorer.normalise == "legal":
                _, child, gain = scorer.children(table, level, prefixes[level][row], None)
                known = np.full(len(trie.parent[level + 1]), -np.inf)
                known[child] = gain
                scores[row] += known[path[level + 1][row]]
            else:
                scores[row] += table[place, trie.code[level + 1][path[level + 1][row]]]
    return scores
