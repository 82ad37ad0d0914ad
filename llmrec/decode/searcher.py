"""`Searcher`: the one object to hold for recommending: model, trie, token ids and normalisation, with batching.

searcher = Searcher(model, trie, table.token_ids)
results = searcher.beam(prompts, num_beams=20, top_k=10, excluded=[history_rows, None, …])
filtered, unfiltered = searcher.beam_each(prompts, [histories, None], num_beams=20, top_k=20)  # one prefill
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np

from llmrec.decode.beam import beam_search
from llmrec.decode.exact import exact_search
from llmrec.decode.result import Normalise, SearchResult
from llmrec.decode.score_items import score_items
from llmrec.decode.scores import ChildScorer, LMHead
from llmrec.decode.session import PrefixSession
from llmrec.decode.trie import SIDTrie
from llmrec.decode.trie_filter import Exclusion
from llmrec.errors import InputError

Prompts = Sequence[Sequence[int] | np.ndarray]
Excluded = Sequence[np.ndarray | Sequence[int] | None]
ResultT = TypeVar("ResultT")


class Searcher:
    """Searches a catalogue with a causal LM.

    Args:
        model: a Hugging Face causal LM (or PEFT model). It is put into evaluation mode during a call only.
        trie: the items that exist, and which of them may be returned.
        token_ids: per level (codebook_size,) the token id of each code (`SIDTable.token_ids`).
        normalise: see `llmrec.decode.result.Normalise`.
        batch_size: prompts prefilled together; prompts of similar length are put together.
    """

    def __init__(
        self,
        model: Any,
        trie: SIDTrie,
        token_ids: Sequence[np.ndarray],
        *,
        normalise: Normalise = "vocab",
        batch_size: int = 16,
    ) -> None:
        self.model = model
        self.trie = trie
        self.batch_size = batch_size
        with _evaluating(model):
            self.scorer = ChildScorer(LMHead(model), trie, token_ids, normalise)

    def beam(
        self, prompts: Prompts, *, num_beams: int, top_k: int, excluded: Excluded | None = None
    ) -> list[SearchResult]:
        """Beam search, one result per prompt (see `beam_search`).

        Args:
            prompts: token ids per prompt.
            num_beams: width, at least `top_k`.
            top_k: items per prompt; fewer come back where fewer living items are left.
            excluded: per prompt rows of the table that may not be returned, or None; None excludes nothing at all.
        """
        return self.beam_each(prompts, [excluded], num_beams=num_beams, top_k=top_k)[0]

    def beam_each(
        self, prompts: Prompts, excluded_sets: Sequence[Excluded | None], *, num_beams: int, top_k: int
    ) -> list[list[SearchResult]]:
        """One beam search per entry of `excluded_sets`, all from one prefill; a list of results for each entry."""
        return self._each(
            prompts,
            excluded_sets,
            lambda session, exclusions: beam_search(session, self.scorer, exclusions, num_beams=num_beams, top_k=top_k),
        )

    def exact(self, prompts: Prompts, *, top_k: int, excluded: Excluded | None = None) -> list[SearchResult]:
        """The true top-k, one result per prompt (see `exact_search`); arguments as for `beam`."""
        return self._each(
            prompts,
            [excluded],
            lambda session, exclusions: exact_search(session, self.scorer, exclusions, top_k=top_k),
        )[0]

    def score(self, prompts: Prompts, rows: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Log-probabilities of the given rows after each prompt, in their order (see `score_items`)."""
        if len(rows) != len(prompts):
            raise InputError(f"{len(prompts)} prompts, but items to score for {len(rows)}.")
        scores: dict[int, np.ndarray] = {}
        for members, session in self._sessions(prompts):
            found = score_items(session, self.scorer, [rows[i] for i in members])
            scores.update(zip(members, found, strict=True))
        return [scores[i] for i in range(len(prompts))]

    def _each(
        self,
        prompts: Prompts,
        excluded_sets: Sequence[Excluded | None],
        search: Callable[[PrefixSession, list[Exclusion | None]], list[SearchResult]],
    ) -> list[list[SearchResult]]:
        for excluded in excluded_sets:
            if excluded is not None and len(excluded) != len(prompts):
                raise InputError(f"{len(prompts)} prompts, but exclusions for {len(excluded)}.")
        results: list[dict[int, SearchResult]] = [{} for _ in excluded_sets]
        for members, session in self._sessions(prompts):
            for result, excluded in zip(results, excluded_sets, strict=True):
                result.update(zip(members, search(session, self._exclusions(excluded, members)), strict=True))
        return [[result[i] for i in range(len(prompts))] for result in results]

    def _exclusions(self, excluded: Excluded | None, members: Sequence[int]) -> list[Exclusion | None]:
        rows = [None if excluded is None else excluded[i] for i in members]
        return [None if one is None else self.trie.exclusion(one) for one in rows]

    def _sessions(self, prompts: Prompts) -> Iterator[tuple[list[int], PrefixSession]]:
        """Prompts in batches of similar length (less padding), each prefilled; with their places in `prompts`."""
        order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
        with _evaluating(self.model):
            for start in range(0, len(order), self.batch_size):
                members = order[start : start + self.batch_size]
                yield members, PrefixSession(self.model, [prompts[i] for i in members])


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """Dropout off while searching, and back to training afterwards: callbacks search in mid-training."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
