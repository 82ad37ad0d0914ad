"""Judge a baseline: fitted on train alone, its scores ranked over the whole evaluation catalogue."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from llmrec.baselines import Validation, make_baseline
from llmrec.data.dataset import Dataset
from llmrec.eval.config import EvalConfig, Mode
from llmrec.eval.judged import Judged
from llmrec.eval.ranker import Progress, RankedUsers, Ranking
from llmrec.metrics import Placement, rank_of_target

_USERS_AT_ONCE = 256  # 256 users x 12,000 items x 8 bytes: 25 MB of scores


class BaselineRanker:
    """A `Ranker` that fits and scores a baseline of `llmrec.baselines.BASELINES`.

    Args:
        name: its name there.
        settings: what differs from its defaults.
    """

    def __init__(self, name: str, settings: Mapping[str, Any] | None = None) -> None:
        self.name = name
        self.baseline = make_baseline(name, settings)
        self.settings = self.baseline.config_class.model_validate(settings or {}).model_dump(mode="json")

    def rank(self, dataset: Dataset, judged: Judged, config: EvalConfig, progress: Progress) -> RankedUsers:
        """Fit on ``split.train()``; where training chooses an epoch, it does so by valid NDCG@10 of all users."""
        split = dataset.split
        validation = Validation(
            [split.history(row, "valid") for row in range(len(split.users))],
            split.targets("valid"),
            filtered=config.main_mode == "filtered",
        )
        model = self.baseline.fit(
            split.train(),
            len(split.items),
            validation=validation,
            progress=lambda epoch, epochs, _: progress(f"{self.name}: fit", epoch, epochs),
        )
        first: dict[Mode, list[np.ndarray]] = {mode: [] for mode in config.modes}
        lists: dict[Mode, list[np.ndarray]] = {mode: [] for mode in config.modes}
        for start in range(0, len(judged), _USERS_AT_ONCE):
            histories = judged.histories[start : start + _USERS_AT_ONCE]
            targets = judged.targets[start : start + _USERS_AT_ONCE]
            scores = model.scores(histories)
            for mode in config.modes:
                excluded = histories if mode == "filtered" else None
                first[mode].append(rank_of_target(scores, targets, excluded).first)
                for place, row in enumerate(scores):
                    lists[mode].append(best_items(row, config.top_k, None if excluded is None else excluded[place]))
            progress(f"{self.name}: rank", min(start + _USERS_AT_ONCE, len(judged)), len(judged))
        rankings = {
            mode: Ranking(Placement.of_ranks(np.concatenate(first[mode])), tuple(lists[mode])) for mode in config.modes
        }
        return RankedUsers(rankings, details={"kind": "baseline", "settings": self.settings})


def best_items(scores: np.ndarray, top_k: int, excluded: np.ndarray | None = None) -> np.ndarray:
    """Indices of the `top_k` best of `scores` (num_items,), equal scores by the lower index, `excluded` left out."""
    order = np.argsort(-scores, kind="stable")
    if excluded is None:
        return order[:top_k]
    # At most len(excluded) of the first places can fall away.
    order = order[: top_k + len(excluded)]
    return order[~np.isin(order, excluded)][:top_k]
