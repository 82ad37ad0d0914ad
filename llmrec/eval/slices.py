"""Where a model is good and where not: the metrics by popularity of the target, length of the history, cold or warm."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from llmrec.eval.judged import Judged
from llmrec.metrics import PerUser, summarise

SLICE_METRICS = ("NDCG@10", "Recall@10")


def slice_masks(judged: Judged) -> dict[str, dict[str, np.ndarray]]:
    """Groupings of the judged users: title to name to (num_users,) bool. Every grouping covers everybody once.

    Head, mid and tail items each hold about a third of the train events; cold items have none.
    """
    counts = judged.split.train_counts()
    group = popularity_groups(counts)[judged.targets]
    sides = [counts[popularity_groups(counts) == side] for side in range(3)]
    names = [
        f"{name} ({_range(side)} train events)" if side.size else name
        for name, side in zip(("head", "mid", "tail"), sides, strict=True)
    ]
    popularity = {name: group == side for side, name in enumerate(names)} | {"cold (never in train)": group == 3}

    lengths = np.array([len(history) for history in judged.histories])
    edges = np.unique(np.quantile(lengths, [1 / 3, 2 / 3], method="lower"))
    third = np.searchsorted(edges, lengths, side="left")
    history = {f"{_range(lengths[third == one])} events": third == one for one in np.unique(third)}
    return {
        "popularity of the target": popularity,
        "length of the history": history,
        "cold and warm targets": {"warm": group < 3, "cold": group == 3},
    }


def popularity_groups(counts: np.ndarray) -> np.ndarray:
    """(num_items,) 0 head, 1 mid, 2 tail, 3 cold: most popular first, each third of the events is a group.

    Items with equal counts are in one group.
    """
    levels, level_of, num_items = np.unique(counts, return_inverse=True, return_counts=True)
    events = levels * num_items
    more_popular = events.sum() - np.cumsum(events)  # events of the items with a higher count
    group = np.minimum(3 * more_popular // max(1, int(events.sum())), 2)
    return np.where(counts == 0, 3, group[level_of])


def sliced(judged: Judged, models: Mapping[str, PerUser]) -> dict[str, list[dict[str, Any]]]:
    """Means and standard errors per slice: title to rows of ``{name, users, models: {model: {metric: …}}}``."""
    return {
        title: [
            {
                "name": name,
                "users": int(mask.sum()),
                "models": {
                    model: summarise({metric: values[metric][mask] for metric in SLICE_METRICS}) if mask.any() else None
                    for model, values in models.items()
                },
            }
            for name, mask in masks.items()
        ]
        for title, masks in slice_masks(judged).items()
    }


def _range(values: np.ndarray) -> str:
    low, high = int(values.min()), int(values.max())
    return f"{low:,}" if low == high else f"{low:,}–{high:,}"
