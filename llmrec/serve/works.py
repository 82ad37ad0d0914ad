"""The engine's works: lists and scores of one catalogue version, batched by equal settings."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import numpy as np

from llmrec.decode.result import Normalise
from llmrec.recommendation import ItemFilter, Recommendations, Search
from llmrec.serve.catalog import CatalogVersion
from llmrec.serve.engine import Work


@dataclass(frozen=True)
class ListSettings:
    """What lists of one batch have in common; see `Recommender.recommend`."""

    num_beams: int
    search: Search
    normalise: Normalise | None
    exclude_history: bool
    diversity: float = 0.0


@dataclass(frozen=True, eq=False)
class ListWork(Work[Recommendations]):
    """One list of recommendations."""

    version: CatalogVersion
    settings: ListSettings
    k: int
    history: tuple[str, ...]
    filter: ItemFilter = field(default_factory=ItemFilter)

    @property
    def key(self) -> Hashable:
        """Version and settings; each list has its own history, filter and, of a plain beam, length."""
        plain = self.settings.search == "beam" and not self.settings.diversity
        return (id(self.version), self.settings, None if plain else self.k)

    def run(self, together: Sequence[ListWork]) -> list[Recommendations]:
        """Search all histories in one batch."""
        settings = self.settings
        return self.version.recommender.recommend_many(
            [work.history for work in together],
            [work.k for work in together],
            filters=[work.filter for work in together],
            exclude_history=settings.exclude_history,
            num_beams=settings.num_beams,
            search=settings.search,
            normalise=settings.normalise,
            diversity=settings.diversity,
        )


@dataclass(frozen=True, eq=False)
class ScoreWork(Work[np.ndarray]):
    """Log-probabilities of given items after one history."""

    version: CatalogVersion
    normalise: Normalise
    history: tuple[str, ...]
    item_ids: tuple[str, ...]

    @property
    def key(self) -> Hashable:
        """Version and normalisation."""
        return (id(self.version), self.normalise)

    def run(self, together: Sequence[ScoreWork]) -> list[np.ndarray]:
        """Score all of them over one prefill."""
        recommender = self.version.recommender
        table = recommender.checkpoint.table
        prompts = [recommender.prompt(work.history).input_ids for work in together]
        rows = [np.array([table.row(item_id) for item_id in work.item_ids], np.int64) for work in together]
        return recommender.searcher(self.normalise).score(prompts, rows)
