"""Diverse beam search: the beam is filled group by group, and a prefix pays for company under its first code.

After Vijayakumar et al., "Diverse Beam Search" (AAAI 2018, arXiv:1610.02424), whose groups are searched one after the
other with a penalty on tokens that earlier groups chose (Hamming diversity). Two departures:

- The penalty counts earlier groups' prefixes that share the **first SID code**, the coarse kind of an item. A deeper
  code means something else below every prefix, so that sharing one says nothing about two items.
- All groups choose from the children of all groups, and each prefix is taken once. So nothing is found twice, k items
  come back wherever k exist (as in a plain beam), and one forward a level serves all groups. Without a penalty, or
  with one group, the result is that of the plain beam.

The penalty counts in the choice only: `scores` stay the model's log-probabilities, and the list is ordered by them. Of
a plain and a diverse choice from the same candidates the diverse one holds every first code that the plain one holds
(a code that no group has yet pays nothing); over several levels the candidates differ, and this becomes a tendency.
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


def diverse_beam_search(
    expander: Expander,
    filters: Sequence[RowFilter | None],
    *,
    num_beams: int,
    top_k: int,
    penalty: float,
    num_groups: int | None = None,
    bonus: ItemBonus | None = None,
) -> list[SearchResult]:
    """Search every prompt of an expander.

    Args:
        expander: the prompts.
        filters: one per prompt, None where every living item may be returned.
        num_beams: prefixes that survive a level, over all groups.
        top_k: items to return per prompt.
        penalty: nats that a prefix loses per prefix of an earlier group with the same first code.
        num_groups: rounds in which the beam, and in the end the list, is filled; None makes every place its own
            group, the most diverse choice.
        bonus: what to add to the items' scores in every choice; results are then `BonusResult`.

    Raises:
        InputError: ``top_k < 1``, ``num_beams < top_k``, a negative penalty, or groups that are not in 1..num_beams.
    """
    if not 1 <= top_k <= num_beams:
        raise InputError(
            f"num_beams must be at least top_k, and top_k at least 1; given num_beams={num_beams}, top_k={top_k}.",
            hint="a narrower beam could not promise top_k items",
        )
    groups = num_beams if num_groups is None else num_groups
    if not (1 <= groups <= num_beams and 0 <= penalty < np.inf):
        raise InputError(
            f"A diverse search needs 1 to num_beams={num_beams} groups and a penalty of at least 0; given "
            f"num_groups={num_groups}, penalty={penalty}."
        )
    if bonus is not None:
        expander = BonusExpander(expander, bonus)
    before, trie = expander.num_forwards, expander.trie
    nodes = [np.zeros(1, dtype=np.int64) for _ in filters]
    scores = [np.zeros(1) for _ in filters]
    for level in range(trie.num_levels):
        wanted = [(np.full(len(beam), level), beam) for beam in nodes]
        # Under one first code the choice goes by score alone, so the best num_beams children of a parent suffice.
        for row, found in enumerate(expander.expand(wanted, filters, top=num_beams)):
            total = scores[row][found.owner] + found.gain
            first = _first_codes(trie, level + 1, found.node)
            keep = _choose(total, found.node, first, count=num_beams, num_groups=groups, penalty=penalty)
            nodes[row], scores[row] = found.node[keep], total[keep]
    finish = partial(collect, trie) if bonus is None else partial(collect_with_bonus, bonus)
    num_forwards = expander.num_forwards - before
    results = []
    for allowed, leaves, leaf_scores in zip(filters, nodes, scores, strict=True):
        first = _first_codes(trie, trie.num_levels, leaves)
        chosen = _choose(leaf_scores, leaves, first, count=top_k, num_groups=min(groups, top_k), penalty=penalty)
        # In the order of choice, as many leaves as hold top_k items.
        held = np.cumsum(trie.num_living(trie.num_levels, leaves[chosen], allowed))
        chosen = chosen[: np.searchsorted(held, top_k) + 1]
        chosen = chosen[best_first(leaf_scores[chosen], leaves[chosen], top_k)]
        results.append(
            finish(
                allowed,
                leaves[chosen],
                leaf_scores[chosen],
                top_k=top_k,
                normalise=expander.normalise,
                num_forwards=num_forwards,
            )
        )
    return results


def _first_codes(trie: SIDTrie, level: int, nodes: np.ndarray) -> np.ndarray:
    """The node of level 1 above each of `nodes`."""
    while level > 1:
        nodes = trie.parents(level, nodes)
        level -= 1
    return nodes


def _choose(
    scores: np.ndarray, nodes: np.ndarray, first: np.ndarray, *, count: int, num_groups: int, penalty: float
) -> np.ndarray:
    """Places of `count` candidates in the order in which the groups take them; groups differ in size by one at most."""
    if num_groups == 1 or penalty == 0:
        return best_first(scores, nodes, count)
    codes, of = np.unique(first, return_inverse=True)
    taken = np.zeros(len(codes), dtype=np.int64)
    left = np.arange(len(scores))
    chosen = [np.zeros(0, dtype=np.int64)]
    for group in range(num_groups):
        size = (group + 1) * count // num_groups - group * count // num_groups
        places = best_first(scores[left] - penalty * taken[of[left]], nodes[left], size)
        chosen.append(left[places])
        np.add.at(taken, of[left[places]], 1)
        left = np.delete(left, places)
    return np.concatenate(chosen)
