"""TRL's losses over pairs, on log-probabilities that our forward made.

``DPOTrainer`` keeps its losses inside of ``_compute_loss``, behind a forward of its own that repeats the prompt for
every completion, and its data path tokenises strings. `PairLosses` calls that method with a stand-in for the model,
which answers with log-probabilities that are already there, and a stand-in for the trainer, which holds the settings
that the losses read. So the losses are TRL's own lines, and a release that changes one changes it here too.

This is the only file of the package that touches a private member of TRL; ``tests/train/test_preference_seam.py``
compares every loss with a real ``DPOTrainer`` on the same batch and names the versions it was read against.

TRL returns a mean over pairs, so pairs of equal weight go together: one call for each weight, over log-probabilities
only. Losses of the whole batch (`UNWEIGHTED`) take equal weights alone. TRL has a place for weights (WPO), which is of
no use here: in 1.16 it multiplies in place what ``hinge`` and ``sft`` need for their gradient.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from trl import DPOConfig, DPOTrainer

from llmrec.errors import InputError
from llmrec.train.preference.stage_config import UNWEIGHTED, PreferenceConfig


@dataclass(frozen=True)
class PairBatch:
    """Pairs as TRL lays them out: all chosen completions, then all rejected ones.

    Attributes:
        tokens: (2 * pairs, longest) log-probability of each token, 0 where there is none.
        mask: (2 * pairs, longest) bool.
        reference: (2 * pairs,) log-probability of each completion by the reference.
        weight: (pairs,) positive.
    """

    tokens: Tensor
    mask: Tensor
    reference: Tensor
    weight: Tensor

    def of(self, pairs: Tensor) -> PairBatch:
        """Some of the pairs, by their places."""
        both = torch.cat([pairs, pairs + len(self.weight)])
        return PairBatch(self.tokens[both], self.mask[both], self.reference[both], self.weight[pairs])


class _Alone:
    """Accelerate's gathering, for metrics of TRL's that nobody reads here."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def gather(self, tensor: Tensor) -> Tensor:
        return tensor

    gather_for_metrics = gather


class PairLosses:
    """The sum of some of TRL's losses.

    Args:
        config: beta, label smoothing and divergence.
        losses: by TRL's name, how much each counts.
    """

    def __init__(self, config: PreferenceConfig, losses: Mapping[Any, float]) -> None:
        self._settings = {
            "beta": config.beta,
            "label_smoothing": config.label_smoothing,
            "f_divergence_type": config.f_divergence,
            "f_alpha_divergence_coef": DPOConfig.f_alpha_divergence_coef,
            "ld_alpha": None,
            "args": SimpleNamespace(discopop_tau=DPOConfig.discopop_tau),
            "model": SimpleNamespace(training=True),
            "precompute_ref_logps": True,
            "aux_loss_enabled": False,
            "_total_train_tokens": 0,
            "_tp_size": 1,
        }
        self._whole = {name: weight for name, weight in losses.items() if name in UNWEIGHTED}
        self._plain = {name: weight for name, weight in losses.items() if name not in UNWEIGHTED}

    def __call__(self, batch: PairBatch) -> Tensor:
        """The sum over all pairs of weight times loss.

        Raises:
            InputError: a loss of the whole batch, and pairs of unequal weight.
        """
        total = batch.tokens.new_zeros(())
        if self._whole:
            if float(batch.weight.max() - batch.weight.min()) > 1e-6:
                raise InputError(
                    f"The loss {', '.join(self._whole)} is one of a whole batch and cannot weigh pairs, but these "
                    "differ in weight, or their rows in the number of rejected items.",
                    hint="use the loss sigmoid or s_dpo, or preference data without weights and of equal rows",
                )
            total = total + batch.weight.sum() * self._mean(self._whole, batch)
        for weight in torch.unique(batch.weight) if self._plain else ():
            same = batch.of((batch.weight == weight).nonzero()[:, 0])
            total = total + same.weight.sum() * self._mean(self._plain, same)
        return total

    def _mean(self, losses: Mapping[Any, float], batch: PairBatch) -> Tensor:
        pairs = len(batch.weight)
        device = batch.tokens.device
        trainer = SimpleNamespace(
            **self._settings,
            loss_types=list(losses),
            loss_weights=list(losses.values()),
            use_weighting=False,
            accelerator=_Alone(device),
            _metrics={"train": defaultdict(list)},
        )
        nothing = torch.zeros_like(batch.tokens)
        answer = SimpleNamespace(
            log_probs=batch.tokens,
            entropy=nothing,
            mean_logits=nothing,
            is_top1=nothing.bool(),
        )
        mask = torch.cat([batch.mask.new_zeros((2 * pairs, 1)), batch.mask], dim=1).long()  # as behind a prompt
        inputs = {
            "input_ids": torch.zeros_like(mask),
            "attention_mask": torch.ones_like(mask),
            "completion_mask": mask,
            "ref_chosen_logps": batch.reference[:pairs],
            "ref_rejected_logps": batch.reference[pairs:],
        }
        loss: Any = DPOTrainer._compute_loss(trainer, lambda **_: answer, inputs, return_outputs=False)
        result: Tensor = loss
        return result
