"""Find items by what people type: an id as it is, else the nearest title, and near misses for what is neither."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from llmrec.data.catalog import Catalog
from llmrec.errors import InputError, ProblemsError

MIN_SCORE = 72.0
"""The similarity (of 100) from which on a title is accepted: the mean of rapidfuzz's token_set_ratio, which forgives
words left out ("seven" finds "Seven (Se7en) (1995)"), and token_sort_ratio, which does not and so refuses "the"."""


@dataclass(frozen=True)
class Match:
    """A word and the item it was taken for."""

    word: str
    item_id: str
    title: str
    score: float
    """100 for an id or the very title, else the similarity."""
    is_id: bool


class TitleMatcher:
    """Finds items of `catalog`, restricted to `item_ids`."""

    def __init__(self, catalog: Catalog, item_ids: Sequence[str]) -> None:
        self._catalog = catalog
        self._item_ids = tuple(item_ids)
        self._known = frozenset(item_ids)

    def title(self, item_id: str) -> str:
        """The catalogue's title; the id where the catalogue lacks the item."""
        return self._catalog.title(item_id) if item_id in self._catalog else item_id

    def resolve(self, words: Sequence[str]) -> list[Match]:
        """One item per word.

        Raises:
            InputError: words that are no id and near to no title; all of them, each with the three nearest titles.
        """
        matches, problems = [], []
        for word in words:
            if word in self._known:
                matches.append(Match(word, word, self.title(word), 100.0, True))
                continue
            near = self._nearest(word)
            if near and near[0].score >= MIN_SCORE:
                matches.append(near[0])
            else:
                shown = "; ".join(f"{match.title} ({match.item_id})" for match in near)
                problems.append(f"{word!r}: nearest are {shown}" if near else f"{word!r}: nothing is near")
        if problems:
            verb = "are" if len(problems) > 1 else "is"
            raise ProblemsError(
                f"{len(problems)} of the {len(words)} given {verb} neither an item id nor close to a title:",
                problems,
                hint="give the id in brackets, or more of the title",
            )
        return matches

    def near_misses(self, item_id: str) -> str:
        """A hint for an unknown id: close ids, or else how ids look."""
        from rapidfuzz import fuzz, process

        near = process.extract(item_id, self._item_ids, scorer=fuzz.ratio, limit=3, score_cutoff=50)
        if near:
            return "close ids: " + ", ".join(f"{found} ({self.title(found)})" for found, _, _ in near)
        return f"ids look like {', '.join(self._item_ids[:3])}"

    def require_known(self, item_ids: Sequence[str]) -> None:
        """Raise InputError with near misses unless every id has a SID."""
        unknown = [item_id for item_id in item_ids if item_id not in self._known]
        if unknown:
            raise InputError(
                f"{len(unknown)} of {len(item_ids)} items have no SID here: {', '.join(map(repr, unknown[:5]))}"
                + (" …" if len(unknown) > 5 else ""),
                hint=self.near_misses(unknown[0]),
            )

    def _nearest(self, word: str) -> list[Match]:
        from rapidfuzz import fuzz, process, utils

        asked = [utils.default_process(word)]
        forgiving = process.cdist(asked, self._spellings, scorer=fuzz.token_set_ratio)[0]
        strict = process.cdist(asked, self._spellings, scorer=fuzz.token_sort_ratio)[0]
        scores = (forgiving + strict) / 2
        best = np.argsort(-scores, kind="stable")[:3]
        return [
            Match(word, self._item_ids[row], self.title(self._item_ids[row]), round(float(scores[row]), 1), False)
            for row in best.tolist()
            if scores[row]
        ]

    @cached_property
    def _spellings(self) -> list[str]:
        from rapidfuzz import utils

        return [utils.default_process(self.title(item_id)) for item_id in self._item_ids]
