"""Alarms: what was measured, the likely cause, and the knob to turn. Pure functions of a run's rows.

A row is what a step wrote into the log (`llmrec.train.monitor.record`); a field that a step did not measure is missing.
Held-out metrics are compared on the same users, so a fall is told from noise by its paired standard error.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmrec.train.monitor.thresholds import THRESHOLDS, Thresholds

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Alarm:
    """Something a run should not do.

    Attributes:
        name: of the rule.
        step: at which it was seen first.
        measured: the figures.
        cause: the likely one.
        knob: what to change.
        stops: whether the run ends here.
    """

    name: str
    step: int
    measured: str
    cause: str
    knob: str
    stops: bool

    def __str__(self) -> str:
        """One line for people."""
        return f"{self.name.replace('_', ' ')} at step {self.step}: {self.measured}; {self.cause}; {self.knob}"


@dataclass(frozen=True)
class Rule:
    """When an alarm is raised: `check` returns the figures, or None where all is well."""

    check: Callable[[Run], str | None]
    cause: str
    knob: str
    stops: bool = False


@dataclass(frozen=True)
class Run:
    """A run so far, as the rules see it."""

    rows: Sequence[Row]
    limits: Thresholds

    def series(self, field: str) -> list[float]:
        """The measured values of a field, by step."""
        return [float(row[field]) for row in self.rows if row.get(field) is not None]

    def now(self, field: str) -> float | None:
        """Mean of the last `window` values, once there are that many."""
        values = self.series(field)
        return float(np.mean(values[-self.limits.window :])) if len(values) >= self.limits.window else None

    def first_and_now(self, field: str) -> tuple[float, float] | None:
        """Means of the first and the last `window` values, once these do not overlap."""
        values, size = self.series(field), self.limits.window
        return (float(np.mean(values[:size])), float(np.mean(values[-size:]))) if len(values) >= 2 * size else None

    def held_out(self) -> HeldOutChange | None:
        """The latest held-out evaluation against the first, once there are two."""
        rows = [row for row in self.rows if row.get("held_out") is not None]
        if len(rows) < 2:
            return None
        last = rows[-1]
        return HeldOutChange(
            float(rows[0]["held_out"]), float(last["held_out"]), float(last["held_out_change_se"]), int(last["step"])
        )


@dataclass(frozen=True)
class HeldOutChange:
    """The held-out metric now and at the start, and the standard error of the users' paired differences."""

    start: float
    now: float
    error: float
    step: int

    def fell(self, part: float, errors: float) -> bool:
        """Whether it lies lower by this part of the start, and by this many standard errors."""
        drop = self.start - self.now
        return drop > 0 and drop >= part * self.start and drop >= errors * self.error

    def __str__(self) -> str:
        """The figures."""
        return f"the held-out metric went from {self.start:.4f} to {self.now:.4f} (paired error {self.error:.4f})"


def check_rules(rows: Sequence[Row], limits: Thresholds = THRESHOLDS) -> list[Alarm]:
    """All alarms that hold after the last of `rows`, in the order of `RULES`."""
    if not rows:
        return []
    run = Run(rows, limits)
    found = [(name, rule, rule.check(run)) for name, rule in RULES.items()]
    step = int(rows[-1]["step"])
    return [
        Alarm(name, step, measured, rule.cause, rule.knob, rule.stops)
        for name, rule, measured in found
        if measured is not None
    ]


def _zero_variance(run: Run) -> str | None:
    share = run.now("zero_variance")
    return f"{share:.0%} of the groups have one reward for all" if (share or 0) > run.limits.zero_variance else None


def _same_items(run: Run) -> str | None:
    part = run.limits.effective_items
    return _below(run, "effective_items", part, "effective items over all prompts fell from {} to {}")


def _illegal(run: Run) -> str | None:
    rate = run.now("legal_rate")
    if rate is not None and rate < run.limits.legal_rate:
        return f"{rate:.1%} of the completions name a living item"
    return _below(run, "legal_mass", run.limits.legal_mass, "the probability of legal items fell from {} to {}")


def _entropy(run: Run) -> str | None:
    return _below(run, "entropy", run.limits.entropy, "the entropy fell from {} to {} nats a token")


def _kl(run: Run) -> str | None:
    kl = run.now("kl")
    return f"{kl:.2f} nats a token from the reference" if (kl or 0) > run.limits.kl else None


def _clipping(run: Run) -> str | None:
    share = run.now("clip_share")
    return f"{share:.0%} of the tokens leave the clipping range" if (share or 0) > run.limits.clip_share else None


def _popularity(run: Run) -> str | None:
    pair = run.first_and_now("popularity")
    if pair is None or pair[1] - pair[0] <= run.limits.popularity:
        return None
    return f"the mean popularity percentile of what is drawn rose from {pair[0]:.2f} to {pair[1]:.2f}"


def _hacking(run: Run) -> str | None:
    change, values, size = run.held_out(), run.series("reward"), run.limits.window
    if change is None or len(values) < 2 * size:
        return None
    first, now = np.array(values[:size]), np.array(values[-size:])
    error = math.sqrt((first.var(ddof=1) + now.var(ddof=1)) / size)
    rose = now.mean() - first.mean() > max(run.limits.reward_errors * error, 1e-9)
    if not rose or not change.fell(run.limits.held_out_drop, run.limits.held_out_errors):
        return None
    return f"the reward rose from {first.mean():.3f} to {now.mean():.3f} while {change}"


def _not_finite(run: Run) -> str | None:
    row = run.rows[-1]
    wrong = [name for name in ("loss", "grad_norm") if row.get(name) is not None and not math.isfinite(row[name])]
    return f"{' and '.join(wrong)} not finite" if wrong else None


def _diverged(run: Run) -> str | None:
    kl = run.series("kl")
    return f"{kl[-1]:.1f} nats a token from the reference" if kl and kl[-1] > run.limits.stop_kl else None


def _collapsed(run: Run) -> str | None:
    change = run.held_out()
    fell = change is not None and change.fell(1 - run.limits.stop_held_out, run.limits.held_out_errors)
    return str(change) if fell else None


def _below(run: Run, field: str, part: float, text: str) -> str | None:
    pair = run.first_and_now(field)
    return text.format(*(f"{value:.3g}" for value in pair)) if pair and pair[1] < part * pair[0] else None


RULES: dict[str, Rule] = {
    "zero_variance": Rule(
        _zero_variance,
        "the reward is too sparse for what the policy draws, or the policy is sure",
        "a graded reward (prefix depth), a larger group, a higher temperature, or beams with the target added",
    ),
    "same_items": Rule(
        _same_items,
        "the policy gives everybody the same items",
        "a reward that depends on the user, a larger beta or anchor, a lower learning rate",
    ),
    "illegal": Rule(
        _illegal,
        "bad items push their probability onto codes that no item has",
        'the anchor, a larger beta, normalise "legal", or a legal reward',
    ),
    "entropy": Rule(
        _entropy,
        "the policy has become sure and explores no more",
        "a lower learning rate, a larger beta, a higher temperature, fewer steps",
    ),
    "kl": Rule(
        _kl,
        "the policy has left the model it started from",
        "a larger beta, a lower learning rate, fewer num_iterations",
    ),
    "clipping": Rule(
        _clipping,
        "one rollout is used for updates that are too large",
        "a lower learning rate, fewer num_iterations",
    ),
    "popularity": Rule(
        _popularity,
        "the reward pays for popular items",
        "a popularity penalty among the rewards, or a smaller weight of what favours popular items",
    ),
    "reward_hacking": Rule(
        _hacking,
        "the policy found what the reward pays for, and users do not want it",
        "another reward or other weights, a larger beta or anchor, fewer steps",
    ),
    "not_finite": Rule(
        _not_finite, "the weights are broken", "a lower learning rate, scale_rewards, a reward in 0..1", stops=True
    ),
    "diverged": Rule(
        _diverged, "the policy has nothing in common with its reference", "a lower learning rate, a larger beta",
        stops=True,
    ),
    "collapsed": Rule(
        _collapsed, "what the model knew is lost", "a lower learning rate, a larger beta or anchor, another reward",
        stops=True,
    ),
}  # fmt: skip
"""Every rule, in the order in which alarms are told."""
