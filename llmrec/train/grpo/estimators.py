"""From a sample without replacement to a policy gradient: how much each drawn item counts, and its baseline.

An estimate of ``grad E[R]`` is ``sum_i weight_i * (R_i - baseline_i) * grad log p_i`` over the k drawn items, where
``baseline_i = sum_j baseline[i, j] * R_j``. Drawn items are distinct, hence neither equally likely to be in the sample
nor independent, and a plain mean over them would be the gradient of nothing. Two estimators:

* "importance": ``w_i = p_i / q_i`` with q the probability to be drawn given the threshold (Kool, van Hoof, Welling
  2019, arXiv:1903.06059), divided by their sum; the baseline is the weighted mean. It is the gradient of the normalised
  estimate of E[R] with q held fixed. Its bias falls with k; its error is a third of the unbiased weights' (decision
  0009).
* "unordered_set": ``weight_i = p_i R(S, i)`` with the leave-one-out ratio R and the built-in baseline of Kool, van
  Hoof, Welling, "Estimating Gradients for Discrete Random Variables by Sampling without Replacement" (ICLR 2020,
  arXiv:2002.06043). Unbiased, at the price of k^2 one-dimensional integrals a prompt, which are taken numerically.

Both weights sum to 1 (the ratios up to the integration's error). With a group's standard deviation as the scale, as in
GRPO (Shao et al. 2024, arXiv:2402.03300), the gradient is one of the scaled reward.

    group = ESTIMATORS["importance"](sample)
    advantages = group.advantages(rewards, scale=True)  # for a loss that takes the mean over the k rows
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from llmrec.decode.sample import SampleResult

EstimatorName = Literal["importance", "unordered_set"]

NO_VARIANCE = 1e-8
"""Rewards of a group that lie this close together teach nothing."""

_GRID = np.linspace(-45.0, 4.5, 1500)
"""log y of the integrals over y in (0, inf): below it the integrand's mass is under 1e-19, above it under 1e-39."""


@dataclass(frozen=True)
class GroupWeights:
    """How the items of a group count.

    Attributes:
        weights: (m,) summing to 1.
        baseline: (m, m): row i is what the rewards are averaged by for item i's baseline; rows sum to 1.
    """

    weights: np.ndarray
    baseline: np.ndarray

    @classmethod
    def equal(cls, count: int) -> GroupWeights:
        """Every item counts the same: GRPO's group mean. Right for independent samples; for beams a convention."""
        return cls(np.full(count, 1 / max(count, 1)), np.full((count, count), 1 / max(count, 1)))

    def coefficients(self, rewards: np.ndarray) -> np.ndarray:
        """(m,) factors of ``grad log p_i``."""
        coefficients: np.ndarray = self.weights * (rewards - self.baseline @ rewards)
        return coefficients

    def advantages(self, rewards: np.ndarray, *, scale: bool) -> np.ndarray:
        """(m,) advantages for a loss that averages over the m rows.

        Args:
            rewards: (m,).
            scale: divide by the weighted standard deviation of the group (plus 1e-4, as TRL does).
        """
        advantages = len(rewards) * self.coefficients(rewards)
        if scale:
            advantages = advantages / (self.deviation(rewards) + 1e-4)
        return advantages

    def deviation(self, rewards: np.ndarray) -> float:
        """The weighted standard deviation."""
        mean = self.weights @ rewards
        return float(np.sqrt(np.maximum(self.weights @ (rewards - mean) ** 2, 0.0)))


def has_variance(rewards: np.ndarray) -> bool:
    """Whether a group's rewards differ."""
    return bool(rewards.size > 1 and np.ptp(rewards) > NO_VARIANCE)


def importance(sample: SampleResult) -> GroupWeights:
    """Normalised importance weights; see the module's docstring."""
    weights = sample.weights
    weights = weights / weights.sum()
    return GroupWeights(weights, np.tile(weights, (len(weights), 1)))


def unordered_set(sample: SampleResult) -> GroupWeights:
    """Leave-one-out ratios with their built-in baseline; see the module's docstring.

    The probability of drawing the set S from D without C is the integral over y > 0 of ``prod_{s in S} (1 - exp(-y p_s
    / rest)) exp(-y)`` with `rest` the mass of ``D - S - C``: the Gumbels of S lie above the largest of the rest's.
    """
    log_p = sample.log_probabilities
    count = len(log_p)
    if count < 2:
        return GroupWeights.equal(count)
    rest = max(-np.expm1(min(0.0, _log_sum(log_p))), 1e-12)
    # 1. log(1 - exp(-y p / rest)) on the grid, and the log of e^-y dy with y = e^t.
    above = np.exp(_GRID[None, :] + log_p[:, None] - np.log(rest))
    factors = np.log(-np.expm1(-np.clip(above, 1e-300, 700.0)))
    measure = _GRID - np.exp(_GRID)
    whole = measure + factors.sum(axis=0)
    # 2. Probabilities of S, of S without one item and of S without two, up to one common factor.
    log_set = _log_sum(whole)
    log_without = np.array([_log_sum(whole - factor) for factor in factors])
    weights = np.exp(log_p + log_without - log_set)
    baseline = np.empty((count, count))
    for place, factor in enumerate(factors):
        pairs = np.array([_log_sum(whole - factor - other) for other in factors])
        baseline[place] = np.exp(log_p + pairs - log_without[place])
        baseline[place, place] = np.exp(log_p[place])
    return GroupWeights(weights, baseline)


ESTIMATORS: dict[EstimatorName, Callable[[SampleResult], GroupWeights]] = {
    "importance": importance,
    "unordered_set": unordered_set,
}


def _log_sum(values: np.ndarray) -> float:
    peak = float(values.max())
    return peak + float(np.log(np.exp(values - peak).sum()))
