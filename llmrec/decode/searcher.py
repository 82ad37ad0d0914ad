"""`Searcher`: the one object to hold for recommending: back end, trie, token ids and normalisation, with batching.

searcher = Searcher(model, trie, table.token_ids)
results = searcher.beam(prompts, num_beams=20, top_k=10, excluded=[history_rows, None, …])
filtered, unfiltered = searcher.beam_each(prompts, [histories, None], num_beams=20, top_k=20)  # one prefill
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cached_property
from typing import Any, TypeVar

import numpy as np

from llmrec.decode.beam import beam_search
from llmrec.decode.diverse import diverse_beam_search
from llmrec.decode.exact import exact_search
from llmrec.decode.expander import Backend, Expander
from llmrec.decode.item_bonus import ItemBonus
from llmrec.decode.result import NORMALISATIONS, Normalise, SearchResult
from llmrec.decode.sample import SampleResult, sample_items
from llmrec.decode.score_items import score_items
from llmrec.decode.torch_backend import TorchBackend
from llmrec.decode.trie import SIDTrie
from llmrec.decode.trie_filter import RowFilter
from llmrec.errors import InputError

Prompts = Sequence[Sequence[int] | np.ndarray]
Excluded = Sequence[np.ndarray | Sequence[int] | RowFilter | None]
ResultT = TypeVar("ResultT")


class Searcher:
    """Searches a catalogue with a causal LM.

    Args:
        model: a back end, or a Hugging Face causal LM (or PEFT model), which `TorchBackend` then searches. A model is
            put into evaluation mode during a call only.
        trie: the items that exist, and which of them may be returned.
        token_ids: per level (codebook_size,) the token id of each code (`SIDTable.token_ids`).
        normalise: see `llmrec.decode.result.Normalise`.
        batch_size: prompts read together; prompts with a similar number of tokens to read are put together.
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
        if normalise not in NORMALISATIONS:
            raise InputError(f"normalise is {normalise!r}; known are {', '.join(NORMALISATIONS)}.")
        self.backend: Backend
        if hasattr(model, "get_decoder"):
            with evaluating(model):
                self.backend = TorchBackend(model)
        else:
            self.backend = model
        self.trie = trie
        self.token_ids = tuple(np.asarray(ids, dtype=np.int64) for ids in token_ids)
        self.normalise: Normalise = normalise
        self.batch_size = batch_size

    def over(self, trie: SIDTrie, *, normalise: Normalise | None = None, batch_size: int | None = None) -> Searcher:
        """The same back end over other items, by default with the same settings."""
        return Searcher(
            self.backend,
            trie,
            self.token_ids,
            normalise=normalise or self.normalise,
            batch_size=batch_size or self.batch_size,
        )

    def beam(
        self,
        prompts: Prompts,
        *,
        num_beams: int,
        top_k: int,
        excluded: Excluded | None = None,
        bonus: ItemBonus | None = None,
    ) -> list[SearchResult]:
        """Beam search, one result per prompt (see `beam_search`).

        Args:
            prompts: token ids per prompt.
            num_beams: width, at least `top_k`.
            top_k: items per prompt; fewer come back where fewer living items are left.
            excluded: per prompt rows of the table that may not be returned, a filter made from the trie
                (`SIDTrie.exclusion`, `SIDTrie.allowance`), or None; None excludes nothing at all.
            bonus: ranks items by score plus bonus (see `ItemBonus`).
        """
        return self.beam_each(prompts, [excluded], num_beams=num_beams, top_k=top_k, bonus=bonus)[0]

    def beam_each(
        self,
        prompts: Prompts,
        excluded_sets: Sequence[Excluded | None],
        *,
        num_beams: int,
        top_k: int,
        bonus: ItemBonus | None = None,
    ) -> list[list[SearchResult]]:
        """One beam search per entry of `excluded_sets`, all from one prefill; a list of results for each entry."""
        return self.search_each(
            prompts,
            excluded_sets,
            lambda expander, filters, _: beam_search(expander, filters, num_beams=num_beams, top_k=top_k, bonus=bonus),
            reserve=num_beams * len(excluded_sets) * self.trie.num_levels,
        )

    def diverse(
        self, prompts: Prompts, *, num_beams: int, top_k: int, penalty: float, excluded: Excluded | None = None
    ) -> list[SearchResult]:
        """A beam search that spreads over first codes (see `diverse_beam_search`); arguments as for `beam`."""
        return self.search_each(
            prompts,
            [excluded],
            lambda expander, filters, _: diverse_beam_search(
                expander, filters, num_beams=num_beams, top_k=top_k, penalty=penalty
            ),
            reserve=num_beams * self.trie.num_levels,
        )[0]

    def sample(
        self,
        prompts: Prompts,
        *,
        top_k: int,
        seed: int,
        temperature: float = 1.0,
        prompt_ids: Sequence[int] | None = None,
        excluded: Excluded | None = None,
    ) -> list[SampleResult]:
        """`top_k` distinct items per prompt, drawn without replacement (see `sample_items`).

        `prompt_ids` are the places of the prompts by default.
        """
        ids = range(len(prompts)) if prompt_ids is None else prompt_ids
        if len(ids) != len(prompts):
            raise InputError(f"{len(prompts)} prompts, but ids for {len(ids)}.")
        return self.search_each(
            prompts,
            [excluded],
            lambda expander, filters, members: sample_items(
                expander,
                filters,
                top_k=top_k,
                seed=seed,
                prompt_ids=[ids[i] for i in members],
                temperature=temperature,
            ),
            reserve=(top_k + 1) * self.trie.num_levels,
        )[0]

    def exact(
        self, prompts: Prompts, *, top_k: int, excluded: Excluded | None = None, bonus: ItemBonus | None = None
    ) -> list[SearchResult]:
        """The true top-k, one result per prompt (see `exact_search`); arguments as for `beam`."""
        return self.search_each(
            prompts,
            [excluded],
            lambda expander, filters, _: exact_search(expander, filters, top_k=top_k, bonus=bonus),
            reserve=256,
        )[0]

    def score(
        self, prompts: Prompts, rows: Sequence[np.ndarray], *, excluded: Excluded | None = None
    ) -> list[np.ndarray]:
        """Log-probabilities of the given rows after each prompt, in their order (see `score_items`).

        Items that are not living are scored like others, except that "legal" gives them -inf.
        """
        if len(rows) != len(prompts):
            raise InputError(f"{len(prompts)} prompts, but items to score for {len(rows)}.")
        searcher = self if self.normalise == "legal" else self._over_all
        return searcher.search_each(
            prompts,
            [excluded],
            lambda expander, filters, members: score_items(expander, [rows[i] for i in members], filters),
            reserve=256,
        )[0]

    @cached_property
    def _over_all(self) -> Searcher:
        """Over living and other items."""
        return self.over(self.trie.with_alive(np.ones(self.trie.num_items, dtype=bool)))

    def search_each(
        self,
        prompts: Prompts,
        excluded_sets: Sequence[Excluded | None],
        search: Callable[[Expander, list[RowFilter | None], list[int]], Sequence[ResultT]],
        *,
        reserve: int = 64,
    ) -> list[list[ResultT]]:
        """Any search, once per entry of `excluded_sets`, all from one prefill; a list of results for each entry.

        Args:
            prompts: token ids per prompt.
            excluded_sets: as `excluded` of `beam`, several times.
            search: called with an expander over some of the prompts, their filters and their places in `prompts`.
            reserve: see `Backend.open`.
        """
        for excluded in excluded_sets:
            if excluded is not None and len(excluded) != len(prompts):
                raise InputError(f"{len(prompts)} prompts, but exclusions for {len(excluded)}.")
        results: list[dict[int, ResultT]] = [{} for _ in excluded_sets]
        for members, expander in self._expanders(prompts, reserve):
            for result, excluded in zip(results, excluded_sets, strict=True):
                found = search(expander, self._filters(excluded, members), members)
                result.update(zip(members, found, strict=True))
        return [[result[i] for i in range(len(prompts))] for result in results]

    def _filters(self, excluded: Excluded | None, members: Sequence[int]) -> list[RowFilter | None]:
        given = [None if excluded is None else excluded[i] for i in members]
        return [self.trie.exclusion(one) if isinstance(one, (np.ndarray, Sequence)) else one for one in given]

    def _expanders(self, prompts: Prompts, reserve: int) -> Iterator[tuple[list[int], Expander]]:
        """Batches of prompts with a similar number of tokens to read (less padding), with their places in `prompts`."""
        unread = [len(prompt) - self.backend.known_tokens(prompt) for prompt in prompts]
        order = sorted(range(len(prompts)), key=lambda i: (-unread[i], -len(prompts[i])))
        with evaluating(self.backend.model) if isinstance(self.backend, TorchBackend) else nullcontext():
            for start in range(0, len(order), self.batch_size):
                members = order[start : start + self.batch_size]
                chosen = [prompts[i] for i in members]
                yield members, self.backend.open(chosen, self.trie, self.token_ids, self.normalise, reserve=reserve)


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Dropout off while searching, and back to training afterwards: callbacks search in mid-training."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
