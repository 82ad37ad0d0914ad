"""What LETTER and PLUM add to the loss of an RQ-VAE (`rq_vae.py` says what they are for and what we chose)."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch.nn import functional

from llmrec.sid_vocab.capacity import settle
from llmrec.sid_vocab.rq_kmeans import kmeans, nearest

_CLUSTER_ITERATIONS = 10  # as LETTER's code


def contrast(
    anchors: torch.Tensor, others: torch.Tensor, temperature: float, ignored: torch.Tensor | None = None
) -> torch.Tensor:
    """InfoNCE over cosines: row i of (n, dim) `anchors` belongs to row i of `others`, all other rows are negatives.

    Args:
        anchors: what is drawn.
        others: where to.
        temperature: of the cosines.
        ignored: (n, n) bool, pairs that are no negatives; its diagonal is False.
    """
    logits = functional.normalize(anchors, dim=1) @ functional.normalize(others, dim=1).T / temperature
    if ignored is not None:
        logits = logits.masked_fill(ignored, -torch.inf)
    return functional.cross_entropy(logits, torch.arange(len(anchors)))


def diversity(book: torch.Tensor, codes: torch.Tensor, clusters: torch.Tensor) -> torch.Tensor:
    """Draws the code of each item to a random other one of its cluster, away from the codes of other clusters.

    Args:
        book: (codebook_size, dim).
        codes: (n,) of the items; those alone in their cluster do not count.
        clusters: (codebook_size,) of `cluster_codes`.
    """
    neighbours = clusters[codes][:, None] == clusters
    neighbours.scatter_(1, codes[:, None], False)
    paired = neighbours.any(dim=1)
    if not bool(paired.any()):
        return book.new_zeros(())
    codes, neighbours = codes[paired], neighbours[paired]
    logits = (book[codes] @ book.T).scatter(1, codes[:, None], -torch.inf)
    return functional.cross_entropy(logits, torch.multinomial(neighbours.float(), 1)[:, 0])


def cluster_codes(book: np.ndarray, clusters: int, seed: int) -> np.ndarray:
    """(codebook_size,) cluster of each row of `book`: k-means with a cap, at least two codes a cluster on average."""
    count = min(clusters, len(book) // 2)
    if count < 2:
        return np.zeros(len(book), np.int64)
    rows = book.astype(np.float64)
    centroids = kmeans(rows, count, _CLUSTER_ITERATIONS, seed)
    return settle(rows, centroids, nearest(rows, centroids), math.ceil(len(book) / count))


class Partners:
    """Items that stand next to an item in train, to draw one from: a frequent neighbour comes often.

    Args:
        pairs: (m, 2) rows of items, in both directions alike.
        num_items: how many there are.
    """

    def __init__(self, pairs: np.ndarray, num_items: int) -> None:
        both = np.concatenate([pairs, pairs[:, ::-1]])
        order = np.argsort(both[:, 0], kind="stable")
        self._neighbours = torch.from_numpy(np.ascontiguousarray(both[order, 1]))
        counts = np.bincount(both[:, 0], minlength=num_items)
        self._counts = torch.from_numpy(counts)
        self._starts = torch.from_numpy(np.cumsum(counts) - counts)

    def draw(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Of (n,) `rows`, the places of those that have neighbours, and one neighbour for each of them."""
        places = torch.nonzero(self._counts[rows] > 0)[:, 0]
        counts = self._counts[rows[places]]
        drawn = (torch.rand(len(places), dtype=torch.float64) * counts).long()
        return places, self._neighbours[self._starts[rows[places]] + drawn]
