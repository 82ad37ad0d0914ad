"""Behaviour embeddings without training: a truncated SVD of the user-item train matrix, scaled by its degrees.

Items that the same users have come out close together (the latent semantic analysis of logs). Entries are
``1 / sqrt(events of the user * events of the item)``, the normalised adjacency of the bipartite graph: without it the
first directions are little but popularity.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from llmrec.baselines.base import train_matrix


def cooccurrence_embeddings(
    train: Sequence[np.ndarray], num_items: int, embedding_size: int, seed: int = 0
) -> np.ndarray:
    """Embed items by who has them.

    With ``X = U S V'`` (X scaled, see the module) of rank `embedding_size`, the vectors are the rows of ``V S``, scaled
    to length 1. Where the matrix has a smaller rank than `embedding_size`, the further columns are zero.

    Args:
        train: per user, item indices (``Split.train()``).
        num_items: size of the evaluation catalogue.
        embedding_size: columns of the result.
        seed: start vector of the iterative SVD; signs are fixed, so runs agree.

    Returns:
        (num_items, embedding_size) float32; items without train events are zero vectors.
    """
    from scipy.sparse.linalg import svds

    events = train_matrix(train, num_items)
    users, items = (1 / np.sqrt(np.asarray(events.sum(axis=axis)).ravel().clip(min=1)) for axis in (1, 0))
    matrix = events.multiply(users[:, None]).multiply(items[None, :]).tocsr()
    if embedding_size < min(matrix.shape):
        start = np.random.default_rng(seed).standard_normal(min(matrix.shape))
        _, singular, components = svds(matrix, k=embedding_size, v0=start)
        singular, components = singular[::-1], components[::-1]
    else:  # the iterative solver finds fewer vectors than the smaller side; such a matrix is small enough to be dense
        _, singular, components = np.linalg.svd(matrix.toarray(), full_matrices=False)

    largest = np.abs(components).argmax(axis=1)
    signs = np.sign(components[np.arange(len(components)), largest])
    vectors = np.zeros((num_items, embedding_size))
    vectors[:, : len(singular)] = (components * (signs * singular)[:, None]).T
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    seen = np.asarray(events.sum(axis=0)).ravel() > 0
    return np.where(seen[:, None], vectors / lengths.clip(min=1e-12), 0.0).astype(np.float32)
