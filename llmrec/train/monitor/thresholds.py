"""The limits of the alarms, stated once and before any study; a run cannot set its own.

"First" is the mean of the first `window` steps, "now" the mean of the last `window`; comparisons begin when the two do
not overlap. Whatever has a noise of its own (the held-out metric) is compared by its paired standard error besides.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Thresholds:
    """Limits of `llmrec.train.monitor.alarms`."""

    window: int = 8
    """Steps of "first" and "now"."""
    zero_variance: float = 0.9
    """Share of groups that teach nothing, above which most of the compute is lost."""
    effective_items: float = 0.5
    """Part of the first effective number of items over all prompts, below which everybody gets the same."""
    legal_rate: float = 0.99
    """Share of completions that name a living item."""
    legal_mass: float = 0.5
    """Part of the first probability of legal items, below which the policy learns codes that no item has."""
    entropy: float = 0.3
    """Part of the first entropy, below which the policy explores no more."""
    kl: float = 1.0
    """Nats a token from the reference."""
    clip_share: float = 0.3
    """Share of tokens whose ratio to the rollout's policy leaves the clipping range."""
    popularity: float = 0.15
    """Rise of the mean popularity percentile (0..1) of what is drawn."""
    held_out_drop: float = 0.1
    """Part of the start's held-out metric, and..."""
    held_out_errors: float = 2.5
    """...standard errors of the paired difference, by both of which it must lie lower to count as a fall."""
    reward_errors: float = 2.0
    """Standard errors by which the reward must have risen to count as a rise."""
    stop_kl: float = 5.0
    """Nats a token from the reference at which the run has diverged."""
    stop_held_out: float = 0.5
    """Part of the start's held-out metric below which, beyond noise, the run has collapsed."""


THRESHOLDS = Thresholds()
"""Those of every run."""
