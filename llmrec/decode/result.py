"""What a search returns, and how complete leaves become items."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from llmrec.decode.trie import SIDTrie
from llmrec.decode.trie_filter import RowFilter

Normalise = Literal["vocab", "level", "legal"]
"""Over what a child's probability is normalised: the whole vocabulary (equals HF), all codes of the level (equals
training with the SID head), or the living children (favours sparse subtrees)."""

NORMALISATIONS: tuple[Normalise, ...] = get_args(Normalise)


@dataclass(frozen=True)
class SearchResult:
    """The best items of one prompt.

    Attributes:
        items: (m,) rows of the table, best first; items of a bucket in row order. m is `top_k`, or fewer where
            fewer living items are left.
        scores: (m,) log-probability of each item's SID, float64.
        bucket_of: (m,) index into `buckets` of each item.
        buckets: living, not excluded rows of every bucket that `items` touches, complete even where `top_k` cuts the
            last one: an evaluation averages over the places of a bucket.
        normalise: what the scores are normalised over.
        num_forwards: forwards of the batch this prompt was searched in, the shared prefill not counted.
    """

    items: np.ndarray
    scores: np.ndarray
    bucket_of: np.ndarray
    buckets: tuple[np.ndarray, ...]
    normalise: Normalise
    num_forwards: int


@dataclass(frozen=True)
class Generated:
    """Text that was written after one prompt.

    Attributes:
        token_ids: (m,) int64, the stop token included where one ended it.
        finish_reason: "stop" at a stop token, "length" when the budget was spent.
    """

    token_ids: np.ndarray
    finish_reason: Literal["stop", "length"]


def best_first(scores: np.ndarray, nodes: np.ndarray, count: int) -> np.ndarray:
    """Places of the `count` best scores, best first; equal scores by the lower node, that is the lower code path."""
    places = np.arange(len(scores))
    if len(scores) > count:
        threshold = np.partition(scores, len(scores) - count)[len(scores) - count]
        places = np.flatnonzero(scores >= threshold)
    best: np.ndarray = places[np.lexsort((nodes[places], -scores[places]))][:count]
    return best


def collect(
    trie: SIDTrie,
    allowed: RowFilter | None,
    leaves: np.ndarray,
    scores: np.ndarray,
    *,
    top_k: int,
    normalise: Normalise,
    num_forwards: int,
) -> SearchResult:
    """Turn leaves (best first, each with a living item) and their scores into the first `top_k` items."""
    buckets: list[np.ndarray] = []
    found = 0
    for leaf in leaves:
        if found >= top_k:
            break
        buckets.append(trie.members(int(leaf), allowed))
        found += len(buckets[-1])
    bucket_of = np.repeat(np.arange(len(buckets)), [len(bucket) for bucket in buckets])[:top_k]
    items = np.concatenate(buckets)[:top_k] if buckets else np.zeros(0, dtype=np.int64)
    return SearchResult(
        items=items,
        scores=np.asarray(scores, dtype=np.float64)[bucket_of],
        bucket_of=bucket_of,
        buckets=tuple(buckets),
        normalise=normalise,
        num_forwards=num_forwards,
    )
