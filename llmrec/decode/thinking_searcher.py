"""A searcher that thinks before it searches, so that everything that takes a `Searcher` can judge thinking.

    form = ThoughtForm.of(renderer)
    thinking = ThinkingSearcher(searcher, opening_ids=form.opening_ids, closing_ids=form.closing_ids, stop_ids=special)
    thinking.beam(prompts, num_beams=20, top_k=10)      # prompts are serving prompts

Thoughts are written one prompt at a time (torch). What was thought is kept in `thoughts`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from llmrec.decode.item_bonus import ItemBonus
from llmrec.decode.result import Normalise, SearchResult
from llmrec.decode.searcher import Excluded, Prompts, Searcher
from llmrec.decode.thought import Thought, ThoughtSettings, think_then_recommend
from llmrec.decode.trie import SIDTrie
from llmrec.errors import InputError


class ThinkingSearcher(Searcher):
    """`Searcher` whose beam searches stand behind a thought; its other searches are the plain ones.

    Args:
        searcher: a torch model in evaluation mode.
        opening_ids: written behind a prompt to begin a thought.
        closing_ids: the end of a thought.
        stop_ids: control tokens, which end a thought and are not written.
        settings: of the thoughts; width and number of items are those of each call.
        thoughts: where prompts and their thoughts are appended.
    """

    def __init__(
        self,
        searcher: Searcher,
        *,
        opening_ids: Sequence[int],
        closing_ids: Sequence[int],
        stop_ids: Sequence[int],
        settings: ThoughtSettings | None = None,
        thoughts: list[tuple[np.ndarray, Thought]] | None = None,
    ) -> None:
        super().__init__(
            searcher.backend,
            searcher.trie,
            searcher.token_ids,
            normalise=searcher.normalise,
            batch_size=searcher.batch_size,
        )
        self.opening_ids, self.closing_ids, self.stop_ids = tuple(opening_ids), tuple(closing_ids), tuple(stop_ids)
        self.settings = ThoughtSettings() if settings is None else settings
        self.thoughts: list[tuple[np.ndarray, Thought]] = [] if thoughts is None else thoughts

    def over(
        self, trie: SIDTrie, *, normalise: Normalise | None = None, batch_size: int | None = None
    ) -> ThinkingSearcher:
        """The same over other items; thoughts go to the same list."""
        return ThinkingSearcher(
            super().over(trie, normalise=normalise, batch_size=batch_size),
            opening_ids=self.opening_ids,
            closing_ids=self.closing_ids,
            stop_ids=self.stop_ids,
            settings=self.settings,
            thoughts=self.thoughts,
        )

    def beam_each(
        self,
        prompts: Prompts,
        excluded_sets: Sequence[Excluded | None],
        *,
        num_beams: int,
        top_k: int,
        bonus: ItemBonus | None = None,
    ) -> list[list[SearchResult]]:
        """A thought and a beam search for every prompt and entry of `excluded_sets`. Raises InputError for a bonus."""
        if bonus is not None:
            raise InputError("A search behind a thought takes no bonus.", hint="leave the bonus or the thought out")
        settings = replace(self.settings, num_beams=num_beams, top_k=top_k)
        results = []
        for excluded in excluded_sets:
            filters = self._filters(excluded, range(len(prompts)))
            found = []
            for prompt, allowed in zip(prompts, filters, strict=True):
                thought = think_then_recommend(
                    self,
                    prompt,
                    closing_ids=self.closing_ids,
                    stop_ids=self.stop_ids,
                    settings=settings,
                    allowed=allowed,
                    opening_ids=self.opening_ids,
                )
                self.thoughts.append((np.asarray(prompt, np.int64), thought))
                found.append(thought.result)
            results.append(found)
        return results
