"""What a user would pick instead of a language model; also the source of behaviour embeddings.

    model = make_baseline("itemknn", {"shrink": 20}).fit(split.train(), len(split.items))
    placement = rank_of_target(model.scores(histories), split.targets("test"), excluded=histories)

Importing this package imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmrec.baselines.base import Baseline, Progress, Scorer, Validation
from llmrec.baselines.cooccurrence import cooccurrence_embeddings
from llmrec.baselines.ease import EASE, EASEConfig
from llmrec.baselines.itemknn import ItemKNN, ItemKNNConfig
from llmrec.baselines.popularity import Popularity, PopularityConfig
from llmrec.baselines.sasrec import SASRec, SASRecConfig
from llmrec.config import build_config
from llmrec.errors import InputError

BASELINES: dict[str, type[Baseline]] = {
    "popularity": Popularity,
    "itemknn": ItemKNN,
    "ease": EASE,
    "sasrec": SASRec,
}
"""Every baseline by the name that recipes use, cheapest first."""


def make_baseline(name: str, settings: Mapping[str, Any] | None = None) -> Baseline:
    """Make a baseline from its name and its settings; what is not set keeps its default.

    Raises:
        InputError: no baseline has that name.
        ConfigError: a setting is unknown or wrong.
    """
    if name not in BASELINES:
        raise InputError(f"there is no baseline {name!r}", hint=f"choose from {', '.join(BASELINES)}")
    baseline = BASELINES[name]
    return baseline(build_config(baseline.config_class, settings or {}, source=f"baseline {name}"))


__all__ = [
    "BASELINES",
    "EASE",
    "Baseline",
    "EASEConfig",
    "ItemKNN",
    "ItemKNNConfig",
    "Popularity",
    "PopularityConfig",
    "Progress",
    "SASRec",
    "SASRecConfig",
    "Scorer",
    "Validation",
    "cooccurrence_embeddings",
    "make_baseline",
]
