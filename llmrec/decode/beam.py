"""Beam search over the trie: level by level, the best `num_beams` living prefixes survive.

It equals a plain beam search of the same width (`reference.Oracle.beam`): a prefix of a true top-k item may be pruned,
which `exact` does not do. Because only nodes with a living, allowed item are walked, ``num_beams`` beams always end in
``num_beams`` living leaves where there are that many (each surviving prefix has at least one leaf, and prefixes of one
level share none): with ``num_beams >= top_k`` a beam cannot starve, and k items come back wherever k exist. No forward
follows the last level; a SID of L levels costs L - 1 forwards after the prefill.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from llmrec.decode.expander import Expander
from llmrec.decode.item_bonus import BonusExpander, ItemBonus, collect_with_bonus
from llmrec.decode.result import SearchResult, best_first, collect
from llmrec.decode.trie_filter import RowFilter
from llmrec.errors import InputError


def beam_search(
    expander: Expander,
    filters: Sequence[RowFilter | None],
    *,
    num_beams: int,
    top_k: int,
    bonus: ItemBonus | None = None,
) -> list[SearchResult]:
    """Search every prompt of an expander.

    Args:
        expander: the prompts.
        filters: one per prompt, None where every living item may be returned.
        num_beams: prefixes that survive a level.
        top_k: items to return per prompt.
        bonus: ranks items by score plus bonus; the results are then `BonusResult`.

    Raises:
        InputError: ``top_k < 1`` or ``num_beams < top_k``.
    """
    if not 1 <= top_k <= num_beams:
        raise InputError(
            f"num_beams must be at least top_k, and top_k at least 1; given num_beams={num_beams}, top_k={top_k}.",
            hint="a narrower beam could not promise top_k items",
        )
    expander = expander if bonus is None else BonusExpander(expander, bonus)
    before, trie = expander.num_forwards, expander.trie
    nodes = [np.zeros(1, dtype=np.int64) for _ in filters]
    scores = [np.zeros(1) for _ in filters]
    for level in range(trie.num_levels):
        wanted = [(np.full(len(beam), level), beam) for beam in nodes]
        for row, found in enumerate(expander.expand(wanted, filters, top=num_beams)):
            total = scores[row][found.owner] + found.gain
            keep = best_first(total, found.node, num_beams)
            nodes[row], scores[row] = found.node[keep], total[keep]
    finish = partial(collect, trie) if bonus is None else partial(collect_with_bonus, bonus)
    num_forwards = expander.num_forwards - before
    return [
        finish(allowed, *found, top_k=top_k, normalise=expander.normalise, num_forwards=num_forwards)
        for allowed, *found in zip(filters, nodes, scores, strict=True)
    ]
