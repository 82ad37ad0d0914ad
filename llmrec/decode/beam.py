"""Beam search over the trie: level by level, the best `num_beams` living prefixes survive.

It equals a plain beam search of the same width (`reference.reference_beam`): a prefix of a true top-k item may be
pruned, which `exact` does not do. Because only nodes with a living, not excluded item are walked, ``num_beams`` beams
always end in ``num_beams`` living leaves where there are that many (each surviving prefix has at least one leaf, and
prefixes of one level share none): with ``num_beams >= top_k`` a beam cannot starve, and k items come back wherever k
exist. No forward follows the last level; a SID of L levels costs L - 1 forwards after the prefill.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from llmrec.decode.reader import PrefixReader
from llmrec.decode.result import SearchResult, best_first, collect
from llmrec.decode.scores import ChildScorer
from llmrec.decode.session import PrefixSession
from llmrec.decode.trie_filter import Exclusion
from llmrec.errors import InputError


def beam_search(
    session: PrefixSession,
    scorer: ChildScorer,
    exclusions: Sequence[Exclusion | None],
    *,
    num_beams: int,
    top_k: int,
) -> list[SearchResult]:
    """Search every prompt of a session; the session is rewound first, so one prefill serves several searches.

    Args:
        session: the prefilled prompts.
        scorer: head, trie and normalisation.
        exclusions: one per prompt, None where nothing is excluded.
        num_beams: prefixes that survive a level.
        top_k: items to return per prompt.

    Raises:
        InputError: ``top_k < 1`` or ``num_beams < top_k``.
    """
    if not 1 <= top_k <= num_beams:
        raise InputError(
            f"num_beams must be at least top_k, and top_k at least 1; given num_beams={num_beams}, top_k={top_k}.",
            hint="a narrower beam could not promise top_k items",
        )
    trie = scorer.trie
    reader = PrefixReader(session, trie, scorer.token_ids, max_slots=num_beams * trie.num_levels)
    nodes = [np.zeros(1, dtype=np.int64) for _ in exclusions]
    scores = [np.zeros(1) for _ in exclusions]
    for level in range(trie.num_levels):
        states = reader.read([(np.full(len(beam), level), beam) for beam in nodes])
        tables = np.split(scorer.table(torch.cat(states), level), np.cumsum([len(beam) for beam in nodes])[:-1])
        for row, table in enumerate(tables):
            owner, child, gain = scorer.children(table, level, nodes[row], exclusions[row])
            total = scores[row][owner] + gain
            keep = best_first(total, child, num_beams)
            nodes[row], scores[row] = child[keep], total[keep]
    return [
        collect(
            trie,
            exclusion,
            leaves,
            leaf_scores,
            top_k=top_k,
            normalise=scorer.normalise,
            num_forwards=reader.num_forwards,
        )
        for exclusion, leaves, leaf_scores in zip(exclusions, nodes, scores, strict=True)
    ]
