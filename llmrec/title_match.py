"""Find items by what people type: an id as it is, else the nearest title, and near misses for what is neither."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from llmrec.data.catalog import Catalog
from llmrec.errors import InputError, ProblemsError

MIN_SCORE, MIN_RATIO = 80.0, 40.0
"""A title is accepted from these values (of 100) of rapidfuzz's WRatio and ratio on. WRatio forgives missing words, so
that "star wars" finds "Star Wars (1977)"; alone it would also accept "the", which the plain ratio refuses."""


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
            if near and near[0].score >= MIN_SCORE and _ratio(word, near[0].title) >= MIN_RATIO:
                matches.append(near[0])
            else:
                shown = "; ".join(f"{match.title} ({match.item_id})" for match in near[:3])
                problems.append(f"{word!r}: nearest are {shown}" if near else f"{word!r}: nothing is near")
        if problems:
            count = f"{len(problems)} of {len(words)}" if len(words) > 1 else "1"
            raise ProblemsError(
                f"{count} word{'s are' if len(problems) > 1 else ' is'} neither an item id nor close to a title:",
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

        found = process.extract(word, self._titles, scorer=fuzz.WRatio, processor=utils.default_process, limit=10)
        # Equal WRatios are common ("toy story" in "Toy Story 2"): the title with least besides wins.
        ranked = sorted(found, key=lambda hit: (-hit[1], -_ratio(word, hit[0]), hit[2]))
        return [Match(word, self._item_ids[row], title, round(score, 1), False) for title, score, row in ranked]

    @cached_property
    def _titles(self) -> list[str]:
        return [self.title(item_id) for item_id in self._item_ids]


def _ratio(word: str, title: str) -> float:
    from rapidfuzz import fuzz, utils

    return float(fuzz.ratio(word, title, processor=utils.default_process))
