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
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    import torch

    from llmrec.sid_vocab.table import SIDTable

Init = Literal["title_mean", "mean", "random"]

DEVIATION = 0.5
"""Norm of a code's deviation from the shared part, in typical norms of a base row; see the table above."""
TIE_BREAK = 0.01
"""Norm of the noise that tells rows of equal codes apart, in typical norms; far below the distance of two codes."""
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
        table: the SIDs.
        title_ids: per row of the table the token ids of its text, empty for none. Only ``title_mean`` reads them, and
            at least one must have some.
        init: ``title_mean``, ``mean`` (Hewitt 2021: all rows at the mean of the base rows) or ``random`` (normal, with
            the typical norm of a base row).
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
        rows = _title_rows(base, table, title_ids, typical_norm) + TIE_BREAK * noise
    return InitialRows(rows=rows, mean_row=mean_row, typical_norm=typical_norm)


def _title_rows(
    base: torch.Tensor, table: SIDTable, title_ids: Sequence[Sequence[int]], typical_norm: float
) -> torch.Tensor:
    import torch

    means, shared = code_means(base, table, title_ids)
    deviations = means - shared
    norms = deviations.norm(dim=1, keepdim=True)
    # Codes without items, or with all items, have no direction of their own and stay at the shared part.
    scaled = deviations * (DEVIATION * typical_norm / norms.clamp(min=1e-12))
    return shared + torch.where(norms > 1e-6 * typical_norm, scaled, 0.0)


def code_means(
    base: torch.Tensor, table: SIDTable, title_ids: Sequence[Sequence[int]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean over the items of each code of the mean of `base` rows of their title tokens, and the mean over all items.

    Returns:
        (table.num_tokens, hidden size) and (hidden size,), float32 on the CPU. A code without an item that has text
        gets the mean over all items. Items count once each, retired ones too: their titles say what a code means.
    """
    import torch

    lengths = np.array([len(ids) for ids in title_ids])
    with_text = np.flatnonzero(lengths)
    hidden = base.shape[1]
    offsets = np.concatenate([[0], np.cumsum(table.codebook_sizes)[:-1]])
    sums = torch.zeros(table.num_tokens, hidden, dtype=torch.float64)
    total = torch.zeros(hidden, dtype=torch.float64)
    counts = torch.zeros(table.num_tokens, dtype=torch.float64)
    for start in range(0, len(with_text), _ITEMS_AT_ONCE):
        chunk = with_text[start : start + _ITEMS_AT_ONCE]
        tokens = torch.tensor([token_id for row in chunk for token_id in title_ids[row]])
        owner = torch.from_numpy(np.repeat(np.arange(len(chunk)), lengths[chunk]))
        # Sums on the CPU: index_add on a GPU adds in an arbitrary order and would not be reproducible.
        gathered = base[tokens.to(base.device)].to("cpu", torch.float64)
        items = torch.zeros(len(chunk), hidden, dtype=torch.float64).index_add_(0, owner, gathered)
        items /= torch.from_numpy(lengths[chunk])[:, None]
        total += items.sum(dim=0)
        for level, offset in enumerate(offsets):
            code_rows = torch.from_numpy(table.codes[chunk, level].astype(np.int64) + int(offset))
            sums.index_add_(0, code_rows, items)
            counts.index_add_(0, code_rows, torch.ones(len(chunk), dtype=torch.float64))
    shared = total / len(with_text)
    means = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], shared)
    return means.float(), shared.float()
