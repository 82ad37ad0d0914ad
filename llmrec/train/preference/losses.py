"""Losses over preferences: softmax-DPO over all rejected items of a row, an SFT anchor, and TRL's losses over pairs.

Softmax-DPO (S-DPO; Chen et al., "On Softmax Direct Preference Optimization for Recommendation", NeurIPS 2024,
arXiv:2406.09215) asks for the chosen item before *all* rejected ones at once:

    loss = -log sigmoid(-log sum_d exp(r_d - r_c)),   r = beta * (log p(item) - log p_reference(item))

With one rejected item that is DPO's loss (Rafailov et al., 2023); at the start, where model and reference agree, it is
log(1 + number of rejected items). Everything else over pairs is TRL's (`llmrec.train.preference.trl_losses`).

A row counts as much as every other, however many items it rejects. Weights of pairs, such as OneSug's levels of
feedback (arXiv:2506.06913), multiply what a pair adds; S-DPO has one term a row, which the mean of the row's weights
multiplies.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from llmrec.train.preference.stage_config import S_DPO, PreferenceConfig
from llmrec.train.preference.trl_losses import PairBatch, PairLosses


@dataclass(frozen=True)
class ScoredRows:
    """Log-probabilities of the completions of some rows; a row's chosen completion stands before its rejected ones.

    Attributes:
        tokens: (completions, longest) log-probability of each token by the model, 0 where there is none.
        mask: (completions, longest) bool, where there is a token.
        reference: (completions,) log-probability of each completion by the reference.
        row: (completions,) the row of each completion, ascending from 0.
        weight: (completions,) how much the pair of a rejected completion counts; 1 at the chosen ones.
    """

    tokens: Tensor
    mask: Tensor
    reference: Tensor
    row: Tensor
    weight: Tensor

    @property
    def policy(self) -> Tensor:
        """(completions,) log-probability of each completion by the model."""
        return self.tokens.sum(dim=1)

    @property
    def chosen(self) -> Tensor:
        """(rows,) place of each row's chosen completion."""
        return self._first.nonzero()[:, 0]

    @property
    def rejected(self) -> Tensor:
        """(pairs,) places of the rejected completions."""
        return (~self._first).nonzero()[:, 0]

    @property
    def _first(self) -> Tensor:
        return torch.cat([torch.ones_like(self.row[:1], dtype=torch.bool), self.row[1:] != self.row[:-1]])

    def rewards(self, beta: float) -> Tensor:
        """(completions,) implicit rewards of DPO."""
        return beta * (self.policy - self.reference)


@dataclass(frozen=True)
class PreferenceLoss:
    """What a batch adds, summed over its rows; a step divides by its rows.

    Attributes:
        total: what is minimised.
        preference: of that, all but the anchor; no gradient.
        anchor: mean negative log-likelihood a token of the chosen items, before its weight; no gradient.
        margin: reward of the chosen item less the mean reward of the rejected ones; no gradient.
        ahead: pairs whose chosen item has the higher reward, as a share of the row's pairs.
        rows: how many.
    """

    total: Tensor
    preference: Tensor
    anchor: Tensor
    margin: Tensor
    ahead: Tensor
    rows: int


class PreferenceObjective:
    """The loss that `config` asks for."""

    def __init__(self, config: PreferenceConfig) -> None:
        self._config = config
        pairs = {name: weight for name, weight in config.losses.items() if name != S_DPO}
        self._pairs = PairLosses(config, pairs) if pairs else None

    def __call__(self, scored: ScoredRows) -> PreferenceLoss:
        """The loss of one batch."""
        config = self._config
        chosen, rejected = scored.chosen, scored.rejected
        rows = len(chosen)
        owner = scored.row[rejected]
        counts = torch.bincount(owner, minlength=rows)
        weights = scored.weight[rejected] / counts[owner]  # those of a row sum to the mean of its weights
        preference = scored.tokens.new_zeros(())
        if S_DPO in config.losses:
            row_weights = torch.zeros(rows, device=weights.device).index_add(0, owner, weights)
            preference = config.losses[S_DPO] * (row_weights * softmax_dpo(scored, config.beta)).sum()
        if self._pairs is not None:
            both = torch.cat([chosen[owner], rejected])
            batch = PairBatch(scored.tokens[both], scored.mask[both], scored.reference[both], weights)
            preference = preference + self._pairs(batch)
        mask = scored.mask[chosen]
        anchor = -(scored.tokens[chosen].sum(dim=1) / mask.sum(dim=1)).sum()
        with torch.no_grad():
            rewards = scored.rewards(config.beta)
            margins = rewards[chosen[owner]] - rewards[rejected]
            share = 1.0 / counts[owner]
        return PreferenceLoss(
            total=preference + config.sft_weight * anchor,
            preference=preference.detach(),
            anchor=anchor.detach(),
            margin=(margins * share).sum(),
            ahead=((margins > 0) * share).sum(),
            rows=rows,
        )


def softmax_dpo(scored: ScoredRows, beta: float) -> Tensor:
    """(rows,) S-DPO's loss of each row."""
    chosen, rejected = scored.chosen, scored.rejected
    rewards = scored.rewards(beta)
    owner = scored.row[rejected]
    behind = rewards[rejected] - rewards[chosen[owner]]
    place = rejected - chosen[owner] - 1  # a row's rejected completions follow its chosen one
    grid = behind.new_full((len(chosen), int(place.max()) + 1), -torch.inf)
    grid = grid.index_put((owner, place), behind)
    return functional.softplus(torch.logsumexp(grid, dim=1))
