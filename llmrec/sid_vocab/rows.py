"""First values of the SID tokens' rows, made from what the codes mean.

``title_mean``: a code's row is the mean over the items that carry it of the mean of the base model's rows of their
title tokens, with its deviation from what all items share brought to half the typical norm of a base row. That
was measured on SmolLM2-135M (tied, hidden size 576) with ml-100k titles and 3 x 64 codes. Loss is the next-token
cross-entropy of eight held-out histories over the whole vocabulary, before and after 20 Adam steps (2e-3) on the new
rows alone; SID mass is what a plain English text loses to the new tokens before training:

=============================================  ====  ==================  ==============  ========
rows                                           norm  cosine among codes  loss            SID mass
=============================================  ====  ==================  ==============  ========
mean of all base rows + 1 % noise (``mean``)   2.2   1.00                15.7 -> 6.14    0.000003
normal noise of typical norm (``random``)      3.2   0.00                24.4 -> 8.27    0.32
mean of title rows, as it is                   2.0   0.47                10.4 -> 7.26    0.0001
the same, each row scaled to the typical norm  3.2   0.47                20.4 -> 7.74    0.55
shared part + deviations of norm 0.8           1.4   0.67                9.5 -> 4.92     0.00009
shared part + deviations of norm 1.2           1.7   0.51                9.0 -> 4.10     0.0003
shared part + deviations of norm 1.6 (ours)    2.0   0.41                8.4 -> 4.37     0.0014
shared part + deviations of norm 2.2           2.6   0.31                7.6 -> 4.21     0.027
shared part + deviations of norm 3.0           3.4   0.25                8.0 -> 4.39     0.18
=============================================  ====  ==================  ==============  ========

Base rows have a norm of 3.15 (median); a mean of many is short and mostly what all titles share. Scaling the whole row
blows up the shared part, which says "a title" and not which one. Deviations of one length do the work (as they come,
rare codes deviate much more than frequent ones); which length matters little for learning between 1.2 and 3, and half
the typical norm leaves text nearly alone.

``centroid`` asks the codebooks instead. A linear map takes the space of the codebooks to that of the mean title rows:
least squares over all items, each represented by the sum of its codes' centroids. A code's row is its centroid under
that map, with the shared part and the length of deviation of ``title_mean``. What a code means is then told by where it
lies among all codes, also where few items or none carry it. The squares are damped (ridge), as there may be more
directions than items; by how much, generalised cross-validation decides (Golub, Heath and Wahba 1979). A level without
a codebook, which is a suffix, starts as with ``title_mean``. ``llmrec sid init-report`` compares them on a recipe.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

if TYPE_CHECKING:
    import torch

    from llmrec.sid_vocab.table import SIDTable

Init = Literal["title_mean", "centroid", "mean", "random"]
INITS: tuple[Init, ...] = get_args(Init)

DEVIATION = 0.5
"""Norm of a code's deviation from the shared part, in typical norms of a base row; see the table above."""
TIE_BREAK = 0.01
"""Norm of the noise that tells rows of equal codes apart, in typical norms; far below the distance of two codes."""
_RIDGES = tuple(10.0**power for power in range(-6, 4))  # in mean variances of the items' vectors
_ITEMS_AT_ONCE = 8192  # bounds the gathered title rows: 8192 titles of 10 tokens in 4096 dimensions are 1.3 GB


@dataclass(frozen=True)
class InitialRows:
    """Rows for the SID tokens of one matrix (input embeddings or output head)."""

    rows: torch.Tensor
    """(table.num_tokens, hidden size) float32 on the CPU, level after level."""
    mean_row: torch.Tensor
    """(hidden size,) mean of the base rows: what padding rows are filled with."""
    typical_norm: float
    """Median norm of the base rows."""


def initial_rows(
    base: torch.Tensor, table: SIDTable, title_ids: Sequence[Sequence[int]], *, init: Init, seed: int
) -> InitialRows:
    """Rows for all SID tokens of `table`, from one matrix of the base model.

    Args:
        base: (number of base tokens, hidden size) rows of tokens that exist; spare rows left out.
        table: the SIDs; ``centroid`` reads its codebooks, of which it must have some.
        title_ids: per row of the table the token ids of its text, empty for none. ``title_mean`` and ``centroid`` read
            them, and at least one must have some.
        init: ``title_mean``, ``centroid``, ``mean`` (Hewitt 2021: all rows at the mean of the base rows) or ``random``
            (normal, with the typical norm of a base row).
        seed: of the noise.
    """
    import torch

    base = base.detach()
    typical_norm = float(base.float().norm(dim=1).median())
    mean_row = base.float().mean(dim=0).cpu()
    noise = torch.randn((table.num_tokens, base.shape[1]), generator=torch.Generator().manual_seed(seed))
    noise *= typical_norm / base.shape[1] ** 0.5
    if init == "random":
        rows = noise
    elif init == "mean":
        rows = mean_row + TIE_BREAK * noise
    else:
        means, shared = code_means(base, table, title_ids)
        deviations = means - shared
        if init == "centroid":
            projected = centroid_deviations(base, table, title_ids)
            deviations[: len(projected)] = projected
        rows = shared + _of_one_length(deviations, typical_norm) + TIE_BREAK * noise
    return InitialRows(rows=rows, mean_row=mean_row, typical_norm=typical_norm)


def _of_one_length(deviations: torch.Tensor, typical_norm: float) -> torch.Tensor:
    import torch

    norms = deviations.norm(dim=1, keepdim=True)
    # Codes without items, or with all items, have no direction of their own and stay at the shared part.
    scaled = deviations * (DEVIATION * typical_norm / norms.clamp(min=1e-12))
    return torch.where(norms > 1e-6 * typical_norm, scaled, 0.0)


def code_means(
    base: torch.Tensor, table: SIDTable, title_ids: Sequence[Sequence[int]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean over the items of each code of the mean of `base` rows of their title tokens, and the mean over all items.

    Returns:
        (table.num_tokens, hidden size) and (hidden size,), float32 on the CPU. A code without an item that has text
        gets the mean over all items. Items count once each, retired ones too: their titles say what a code means.
    """
    import torch

    hidden = base.shape[1]
    offsets = np.concatenate([[0], np.cumsum(table.codebook_sizes)[:-1]])
    sums = torch.zeros(table.num_tokens, hidden, dtype=torch.float64)
    total = torch.zeros(hidden, dtype=torch.float64)
    counts = torch.zeros(table.num_tokens, dtype=torch.float64)
    num_items = 0
    for chunk, items in _item_means(base, title_ids):
        num_items += len(chunk)
        total += items.sum(dim=0)
        for level, offset in enumerate(offsets):
            code_rows = torch.from_numpy(table.codes[chunk, level].astype(np.int64) + int(offset))
            sums.index_add_(0, code_rows, items)
            counts.index_add_(0, code_rows, torch.ones(len(chunk), dtype=torch.float64))
    shared = total / num_items
    means = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], shared)
    return means.float(), shared.float()


def centroid_deviations(base: torch.Tensor, table: SIDTable, title_ids: Sequence[Sequence[int]]) -> torch.Tensor:
    """The codes' centroids, less what the items' ones have in common, mapped into the space of `base`.

    Returns:
        (codes of all levels with a codebook, hidden size) float32 on the CPU, level after level.
    """
    import torch

    books = [torch.from_numpy(np.array(book, np.float64)) for book in table.codebooks]
    dim, hidden = books[0].shape[1], base.shape[1]
    with_text = np.flatnonzero([len(ids) for ids in title_ids])
    # Centred level by level, so that the sum over an item's levels is centred too.
    for level, book in enumerate(books):
        used = np.bincount(table.codes[with_text, level], minlength=len(book)) / len(with_text)
        book -= torch.from_numpy(used) @ book
    squares = torch.zeros(dim, dim, dtype=torch.float64)
    products = torch.zeros(dim, hidden, dtype=torch.float64)
    total, energy = torch.zeros(hidden, dtype=torch.float64), 0.0
    for chunk, items in _item_means(base, title_ids):
        vectors = sum(
            (book[torch.from_numpy(table.codes[chunk, level].astype(np.int64))] for level, book in enumerate(books)),
            start=torch.zeros(len(chunk), dim, dtype=torch.float64),
        )
        squares += vectors.T @ vectors
        products += vectors.T @ items  # of centred vectors: the mean of the items takes no part
        total += items.sum(dim=0)
        energy += float(items.square().sum())
    energy -= float(total.square().sum()) / len(with_text)
    return (torch.cat(books) @ _ridge(squares, products, energy, len(with_text))).float()


def _ridge(squares: torch.Tensor, products: torch.Tensor, energy: float, count: int) -> torch.Tensor:
    """(dim, hidden) map of least squares, damped as generalised cross-validation finds best.

    Args:
        squares: (dim, dim) of the centred inputs.
        products: (dim, hidden) of inputs and outputs.
        energy: sum of the centred outputs' squares.
        count: items.
    """
    import torch

    values, axes = torch.linalg.eigh(squares)
    values = values.clamp(min=0)
    turned = axes.T @ products
    of_axis = turned.square().sum(dim=1)

    def score(ridge: float) -> float:
        residual = energy - float((of_axis * (values + 2 * ridge) / (values + ridge) ** 2).sum())
        free = 1 - (1 + float((values / (values + ridge)).sum())) / count  # the mean is fitted too
        return residual / free**2 if free > 1e-6 else math.inf

    best = min((max(power * float(values.mean()), 1e-12) for power in _RIDGES), key=score)
    fitted: torch.Tensor = axes @ (turned / (values + best)[:, None])
    return fitted


def _item_means(base: torch.Tensor, title_ids: Sequence[Sequence[int]]) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
    """Rows of the table that have text, some at a time, and the (n, hidden) float64 means of their tokens' `base`."""
    import torch

    lengths = np.array([len(ids) for ids in title_ids])
    with_text = np.flatnonzero(lengths)
    for start in range(0, len(with_text), _ITEMS_AT_ONCE):
        chunk = with_text[start : start + _ITEMS_AT_ONCE]
        tokens = torch.tensor([token_id for row in chunk for token_id in title_ids[row]])
        owner = torch.from_numpy(np.repeat(np.arange(len(chunk)), lengths[chunk]))
        # Sums on the CPU: index_add on a GPU adds in an arbitrary order and would not be reproducible.
        gathered = base[tokens.to(base.device)].to("cpu", torch.float64)
        items = torch.zeros(len(chunk), base.shape[1], dtype=torch.float64).index_add_(0, owner, gathered)
        yield chunk, items / torch.from_numpy(lengths[chunk])[:, None]
