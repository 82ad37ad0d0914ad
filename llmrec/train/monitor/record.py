"""The record of a run: a row a step, the alarms so far, and how it ended; a resumed run rebuilds it from its log.

| field of a row | holds |
|---|---|
| ``loss``, ``grad_norm``, ``learning_rate`` | of the step |
| ``reward``, ``reward/NAME`` | mean of the weighted sum and of each part, over all completions |
| ``zero_variance``, ``groups``, ``dropped`` | share of groups with one reward for all, groups, and groups left out |
| ``distinct_items`` | distinct items of a group, the mean |
| ``effective_items`` | exp of the entropy of what all prompts of the step draw, by their weights |
| ``popularity`` | mean percentile of the drawn items' train counts, by their weights |
| ``legal_rate``, ``legal_mass`` | completions that name a living item; probability the policy leaves to legal items |
| ``entropy``, ``kl`` | nats a token, of the groups that were trained on |
| ``clip_share`` | tokens whose ratio to the rollout's policy leaves the clipping range |
| ``anchor`` | negative log-likelihood of the target, nats a token |
| ``thought_tokens``, ``thoughts_closed`` | drawn tokens of a thought; share of thoughts that the policy ended itself |
| ``held_out``, ``held_out_se``, ``held_out_change_se`` | the metric on valid users, every N steps |
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from llmrec.train.monitor.alarms import Alarm, Row, check_rules
from llmrec.train.monitor.thresholds import THRESHOLDS, Thresholds


@dataclass
class Monitor:
    """Rows of a run in order, and what they raised.

    Attributes:
        limits: `THRESHOLDS` in every run.
        rows: so far.
        alarms: each rule once, at the step where it was seen first.
    """

    limits: Thresholds = THRESHOLDS
    rows: list[Row] = field(default_factory=list)
    alarms: list[Alarm] = field(default_factory=list)

    def see(self, row: Row) -> list[Alarm]:
        """Take a row in; returns the alarms that are new."""
        self.rows.append(row)
        known = {alarm.name for alarm in self.alarms}
        new = [alarm for alarm in check_rules(self.rows, self.limits) if alarm.name not in known]
        self.alarms += new
        return new

    @property
    def stopped_by(self) -> Alarm | None:
        """What ended the run."""
        return next((alarm for alarm in self.alarms if alarm.stops), None)

    @classmethod
    def replay(cls, rows: Sequence[Row]) -> Monitor:
        """The monitor after `rows`, as a log holds them."""
        monitor = cls()
        for row in rows:
            monitor.see(row)
        return monitor


def held_out_fields(values: np.ndarray, start: np.ndarray, metric: str) -> dict[str, Any]:
    """The fields of one held-out evaluation.

    Args:
        values: (users,) the metric of every user.
        start: (users,) the same before the first step.
        metric: its name.
    """

    def error(of: np.ndarray) -> float:
        return float(of.std(ddof=1) / np.sqrt(len(of))) if len(of) > 1 else 0.0

    return {
        "held_out": float(values.mean()),
        "held_out_se": error(values),
        "held_out_change_se": error(values - start),
        "held_out_metric": metric,
    }


def drawn_items(
    items: Sequence[np.ndarray], weights: Sequence[np.ndarray], percentile: np.ndarray
) -> Mapping[str, float]:
    """What the groups of a step drew: ``distinct_items``, ``effective_items``, ``popularity``.

    Args:
        items: per group (m,) table rows.
        weights: per group (m,) summing to 1.
        percentile: (n_items,) popularity of every row, 0..1.
    """
    there = [(rows, w) for rows, w in zip(items, weights, strict=True) if len(rows)]
    if not there:
        return {"distinct_items": 0.0, "effective_items": 0.0}
    mass = np.zeros(len(percentile))
    for rows, each in there:
        np.add.at(mass, rows, each / len(there))
    drawn = mass[mass > 0] / mass.sum()
    return {
        "distinct_items": float(np.mean([len(np.unique(rows)) for rows in items])),
        "effective_items": float(np.exp(-(drawn * np.log(drawn)).sum())),
        "popularity": float(mass @ percentile / mass.sum()),
    }


def popularity_percentile(counts: np.ndarray) -> np.ndarray:
    """(n_items,) share of items with fewer train events, ties at their middle."""
    ordered = np.sort(counts)
    below, upto = np.searchsorted(ordered, counts, "left"), np.searchsorted(ordered, counts, "right")
    percentile: np.ndarray = (below + upto) / 2 / max(len(counts), 1)
    return percentile
