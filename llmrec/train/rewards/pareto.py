"""A Pareto sweep over reward weights: the mixtures to try, those that nothing beats, and a picture of the front.

Several objectives have no best mixture, only mixtures that cannot be improved in one without loss in another. Train one
run per `weight_grid` entry, evaluate each (held-out metrics, not rewards: a hacked reward would lead the front), and
show `non_dominated` of the rows. Pantheon (arXiv:2505.13894) searches such weights by an iterated Pareto policy, with
weights per user; a grid of whole runs is what can be read and repeated.

    for weights in weight_grid(("hit", "novelty"), steps=4):   # (1, 0), (.75, .25), ..., (0, 1)
        ...
    front = non_dominated(rows, ("NDCG@10", "coverage"))
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from llmrec.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def weight_grid(names: Sequence[str], steps: int) -> list[dict[str, float]]:
    """All mixtures of `names` whose weights are multiples of ``1 / steps`` and add up to 1.

    There are ``C(steps + n - 1, n - 1)`` of them; the first gives everything to the first name.

    Raises:
        InputError: no name, one twice, or no step.
    """
    if not names or len(set(names)) != len(names) or steps < 1:
        raise InputError(f"A grid of weights needs different names and a step; given {list(names)}, steps={steps}.")
    slots = steps + len(names) - 1  # steps and bars between the names: each choice of the bars is a mixture
    grid = []
    for bars in combinations(range(slots), len(names) - 1):
        counts = np.diff([-1, *bars, slots]) - 1
        grid.append({name: int(count) / steps for name, count in zip(names, counts, strict=True)})
    return grid[::-1]


def non_dominated(rows: Sequence[Mapping[str, float]], objectives: Sequence[str]) -> list[int]:
    """Places of the rows that no other row beats, by the first objective, best first.

    A row is beaten by one that is at least as good in every objective and better in one. Equal rows stay together.

    Args:
        rows: a mapping of metrics per run.
        objectives: the metrics that matter; more is better (negate one that should be small).

    Raises:
        InputError: an objective is missing or NaN in a row; all such rows are named.
    """
    wrong = [
        f"row {place}: {name}"
        for place, row in enumerate(rows)
        for name in objectives
        if name not in row or np.isnan(row[name])
    ]
    if wrong or not objectives:
        raise InputError(f"No front can be drawn: missing or NaN are {', '.join(wrong) or 'all objectives'}.")
    values = np.array([[row[name] for name in objectives] for row in rows], dtype=np.float64)
    front = [
        place
        for place, mine in enumerate(values)
        if not ((values >= mine).all(axis=1) & (values > mine).any(axis=1)).any()
    ]
    return sorted(front, key=lambda place: (-values[place][0], place))


def draw_front(
    axes: Axes, rows: Sequence[Mapping[str, float]], x: str, y: str, labels: Sequence[str] | None = None
) -> list[int]:
    """Draw runs over two objectives, the front as a stepped line; returns the places of the front.

    Args:
        axes: of a matplotlib figure.
        rows: as in `non_dominated`.
        x: the objective to the right.
        y: the objective upwards.
        labels: one per row, written beside the runs of the front.
    """
    front = non_dominated(rows, (x, y))
    axes.scatter([row[x] for row in rows], [row[y] for row in rows], color="#9aa5b1", s=22, label="runs", zorder=2)
    corner_x, corner_y = [rows[place][x] for place in front], [rows[place][y] for place in front]
    axes.plot(
        corner_x, corner_y, color="#2563a6", marker="o", markersize=5, drawstyle="steps-post", label="front", zorder=3
    )
    if labels is not None:
        for place in front:
            axes.annotate(
                labels[place], (rows[place][x], rows[place][y]), textcoords="offset points", xytext=(5, 4), fontsize=8
            )
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.legend(frameon=False)
    return front
