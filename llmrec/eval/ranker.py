"""`Ranker`: anything that can be judged. It gets the judged users and says where each target stands, per mode."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from llmrec.data.dataset import Dataset
from llmrec.eval.config import EvalConfig, Mode
from llmrec.eval.judged import Judged
from llmrec.metrics import Placement

Progress = Callable[[str, int, int], None]
"""Called with what is going on, how many users (or epochs) are done, and how many there are."""


def quiet(what: str, done: int, total: int) -> None:
    """A `Progress` that says nothing."""


@dataclass(frozen=True, eq=False)
class Ranking:
    """One model's answer in one mode.

    Attributes:
        placement: where each judged user's target stands.
        lists: per judged user the recommended items, best first, as indices into ``split.items``; at most ``top_k``.
    """

    placement: Placement
    lists: tuple[np.ndarray, ...]


@dataclass(frozen=True, eq=False)
class RankedUsers:
    """What a ranker gives back. The counts cover all modes.

    Attributes:
        rankings: one per mode asked for.
        checked: recommended items that were held against the catalogue.
        invalid: of them, those that are no living item of the catalogue.
        duplicates: items that came twice in one list (the first place counted).
        excluded: items of the history in filtered lists.
        details: further findings for ``eval.json``, plain JSON values.
    """

    rankings: dict[Mode, Ranking]
    checked: int = 0
    invalid: int = 0
    duplicates: int = 0
    excluded: int = 0
    details: dict[str, Any] = field(default_factory=dict)


class Ranker(Protocol):
    """Something to judge."""

    def rank(self, dataset: Dataset, judged: Judged, config: EvalConfig, progress: Progress) -> RankedUsers:
        """Rank for every judged user in every mode of `config`; nothing may be learned from targets."""
        ...
