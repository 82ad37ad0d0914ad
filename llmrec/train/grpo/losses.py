"""Losses by name: TRL's own, and OneRec's two, which differ from GRPO in the probability that divides the policy's.

All of them are ``-ratio * advantage`` with ``ratio = p / p_old``. ECPO and GBPO replace p_old by a p' that depends on
the policy itself (no gradient flows through p'), so that a negative advantage cannot make the gradient explode:

* ECPO, early-clipped GRPO (OneRec technical report, arXiv:2506.13695): ``p' = max(sg(p) / (1 + epsilon + delta),
  p_old)`` in the clipped objective of GRPO, ``min(p / p' A, clip(p / p', 1 - epsilon, 1 + epsilon) A)``; delta is 0.1
  there. A bad item's ratio ends at ``1 + epsilon + delta`` and keeps its gradient, where GRPO's grows without bound.
  With one update per rollout the ratio is 1, and ECPO *is* GRPO.
* GBPO, gradient-bounded (OneRec-V2, arXiv:2508.20900, section 3.1.2): no clipping, and ``p' = max(p_old, sg(p))`` for
  ``A >= 0``, ``max(p_old, 1 - sg(p))`` for ``A < 0``. The gradient of a bad item is at most the one of binary
  cross-entropy, ``A / (1 - p) grad p``: the less likely it already is, the less it is pushed.

Both are applied per token, as the second paper's analysis of gradients does; the papers write probabilities of items.
OneRec drops the KL term because SFT runs at the same time: here that is ``anchor``, and ``beta: 0`` in the recipe.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

LossName = Literal["grpo", "bnpo", "dr_grpo", "dapo", "luspo", "cispo", "sapo", "vespo", "ecpo", "gbpo"]


@dataclass(frozen=True)
class LossForm:
    """How a loss is asked of TRL.

    Attributes:
        trl: TRL's ``loss_type``.
        clipped: whether TRL's clipping of the ratio stays.
        batch_mean: whether TRL divides by the rows of the batch; the others divide by the tokens of all batches of the
            step.
    """

    trl: str
    clipped: bool = True
    batch_mean: bool = True


LOSSES: dict[LossName, LossForm] = {
    "grpo": LossForm("grpo"),
    "bnpo": LossForm("bnpo"),
    "dr_grpo": LossForm("dr_grpo"),
    "dapo": LossForm("dapo", batch_mean=False),
    "luspo": LossForm("luspo"),
    "cispo": LossForm("cispo", batch_mean=False),
    "sapo": LossForm("sapo"),
    "vespo": LossForm("vespo", batch_mean=False),
    "ecpo": LossForm("grpo"),
    "gbpo": LossForm("grpo", clipped=False),
}
"""The losses of a GRPO stage."""


def denominator(
    loss: LossName, log_p: Tensor, old_log_p: Tensor, advantages: Tensor, *, epsilon: float, delta: float
) -> Tensor:
    """The log-probability that divides the policy's; it carries no gradient.

    Args:
        loss: every loss but "ecpo" and "gbpo" takes `old_log_p` as it is.
        log_p: (rows, tokens) of the policy.
        old_log_p: (rows, tokens) when the rollout was drawn.
        advantages: (rows,).
        epsilon: clipping range.
        delta: what ECPO allows beyond it.
    """
    now, old = log_p.detach(), old_log_p.detach()
    if loss == "ecpo":
        return (now - math.log(1 + epsilon + delta)).maximum(old)
    if loss == "gbpo":
        complement = (-now.expm1()).clamp(min=0).log()  # log(1 - p); -inf where p is 1, and `old` is larger
        return now.where(advantages[:, None] >= 0, complement).maximum(old)
    return old
