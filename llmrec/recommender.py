"""`Recommender`: a checkpoint put to use: recommend, score, explain.

    recommender = Recommender.load("runs/quickstart/sft")
    for item in recommender.recommend(["50", "181"], k=5):
        print(item.title, item.score)

Prompts come from `Renderer.sequence` alone, with the window that the card names: the ids that training and evaluation
used. Items are ordered by the model's log-probability and by nothing else; the search cannot name an item that does not
exist, is retired or is excluded.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from llmrec.checkpoint import Checkpoint
from llmrec.data.catalog import Catalog
from llmrec.decode.expander import Backend
from llmrec.decode.item_bonus import ItemBonus
from llmrec.decode.result import NORMALISATIONS, Generated, Normalise, SearchResult
from llmrec.decode.trie import SIDTrie
from llmrec.decode.trie_filter import RowFilter
from llmrec.engines import as_backend, in_torch, in_vllm
from llmrec.errors import InputError
from llmrec.explanation import MAX_NEW_TOKENS, Explanation, explanation_prompt, read_explanation, write_explanation
from llmrec.hub import checkpoint_folder
from llmrec.models import DTypeName
from llmrec.prompts.grounding import Facts
from llmrec.prompts.segments import Rendered
from llmrec.recommendation import EngineName, ItemFilter, Recommendations, Search, ThoughtOptions, notes, recommended
from llmrec.sid_vocab.table import ACTIVE, SIDTable
from llmrec.thinking import ThinkingList, ThinkingRequest, open_thought, read_thought
from llmrec.title_match import TitleMatcher

if TYPE_CHECKING:
    from llmrec.decode.searcher import Searcher
    from llmrec.decode.thought import Thought


class Recommender:
    """Recommends with a checkpoint and its model.

    Args:
        checkpoint: verified by `Checkpoint.load`.
        model: the full (merged) model, or a back end that holds it; by default the model is loaded with torch.
        batch_size: histories searched together.
        prefix_cache_mb: memory for what was read of earlier prompts; 0 keeps nothing. It pays where users come back
            (see `ServingCard.window_step`).
    """

    def __init__(
        self, checkpoint: Checkpoint, model: Any = None, *, batch_size: int = 16, prefix_cache_mb: int = 0
    ) -> None:
        self.checkpoint = checkpoint
        self.batch_size = batch_size
        self.backend: Backend = as_backend(checkpoint.load_model() if model is None else model, prefix_cache_mb)
        self.renderer = checkpoint.renderer
        table = checkpoint.table
        self._active: np.ndarray = table.status == ACTIVE
        self._trie = SIDTrie.build(table.codes, table.codebook_sizes, self._active)
        self._searchers: dict[Normalise, Searcher] = {}

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        engine: EngineName = "torch",
        dtype: DTypeName = "auto",
        table: SIDTable | None = None,
        catalog: Catalog | None = None,
        batch_size: int = 16,
        prefix_cache_mb: int = 0,
    ) -> Recommender:
        """Load a checkpoint folder, onto a GPU where there is one.

        Args:
            folder: what training wrote, or ``hub:OWNER/NAME[@REVISION]``, see `llmrec.hub.pull`.
            engine: what runs the model; ``vllm`` keeps prefixes by itself.
            dtype: see `llmrec.models.DTypeName`.
            table: a descendant of the checkpoint's SID table, with items added or retired since.
            catalog: the catalogue with the titles of added items.
            batch_size: histories searched together.
            prefix_cache_mb: see the class; for ``torch``.

        Raises:
            LLMRecError: as `Checkpoint.load` and `Checkpoint.load_model` raise; for ``vllm`` also where it is not
                installed, or cannot serve the checkpoint's adapter.
        """
        checkpoint = Checkpoint.load(checkpoint_folder(folder), table=table, catalog=catalog)
        if engine not in get_args(EngineName):
            raise InputError(f"engine={engine!r} is unknown.", hint=f"one of {', '.join(get_args(EngineName))}")
        model = in_vllm(checkpoint, dtype) if engine == "vllm" else in_torch(checkpoint, dtype)
        return cls(checkpoint, model, batch_size=batch_size, prefix_cache_mb=prefix_cache_mb)

    def over(self, checkpoint: Checkpoint) -> Recommender:
        """The same model over another version of the catalogue: `checkpoint` is this one with a descendant table."""
        return Recommender(checkpoint, self.backend, batch_size=self.batch_size)

    @property
    def model(self) -> Any:
        """The transformers model. Raises InputError where another engine has it."""
        from llmrec.decode.torch_backend import TorchBackend

        if not isinstance(self.backend, TorchBackend):
            raise InputError("This recommender's model is not in torch.", hint='load it with engine="torch"')
        return self.backend.model

    @property
    def engine(self) -> str:
        """What runs the model, with its dtype where that is known: ``torch float32``."""
        from llmrec.decode.torch_backend import TorchBackend

        if isinstance(self.backend, TorchBackend):
            return f"torch {str(self.backend.model.dtype).removeprefix('torch.')}"
        return type(self.backend).__name__

    # -- recommending --------------------------------------------------------------------------------------------

    def recommend(
        self,
        history: Sequence[str],
        k: int = 10,
        *,
        exclude: Collection[str] = (),
        allow: Collection[str] | None = None,
        exclude_history: bool = True,
        num_beams: int | None = None,
        search: Search = "beam",
        normalise: Normalise | None = None,
        diversity: float = 0.0,
        bonus: ItemBonus | None = None,
        think: bool | ThoughtOptions = False,
    ) -> Recommendations:
        """The k most probable next items.

        Args:
            history: item ids, oldest first. Items without a SID are skipped and counted. An empty history is allowed:
                the answer is then what the model expects of anybody, much like popularity.
            k: items wanted; where fewer are left, all of them come back and a note says so.
            exclude: further item ids that may not be returned; unknown ones are harmless.
            allow: the only item ids that may be returned; None allows all.
            exclude_history: whether items of the history (all of it, not only the window) may not be returned.
            num_beams: beam width, by default the card's and at least k.
            search: see `Search`.
            normalise: by default the card's.
            diversity: nats that a prefix pays per better one of the same first code (`diverse_beam_search`); 0 is a
                plain search.
            bonus: ranks by log-probability plus a bonus per item; from `item_bonus`.
            think: whether, and how, to think first (see `thinking`); ``thought`` of the answer then tells of it.

        Raises:
            InputError: k < 1, num_beams < k, a history of unknown items only (with near misses), a diverse search that
                is exact or has a bonus, a thought before anything but a plain beam, or as `thinking` raises.
        """
        if think:
            if search != "beam" or diversity or bonus is not None:
                raise InputError("Behind a thought stands a plain beam search.", hint="leave one of them out")
            options, only = ThoughtOptions() if think is True else think, ItemFilter(exclude, allow)
            asked = ThinkingRequest(history, k, options, only, exclude_history, num_beams, normalise)
            return self.thinking(asked).run()
        return self.recommend_many(
            [history],
            k,
            filters=[ItemFilter(exclude, allow)],
            exclude_history=exclude_history,
            num_beams=num_beams,
            search=search,
            normalise=normalise,
            diversity=diversity,
            bonus=bonus,
        )[0]

    def recommend_many(
        self,
        histories: Sequence[Sequence[str]],
        k: int | Sequence[int] = 10,
        *,
        filters: Sequence[ItemFilter] | None = None,
        exclude: Collection[str] = (),
        exclude_history: bool = True,
        num_beams: int | None = None,
        search: Search = "beam",
        normalise: Normalise | None = None,
        diversity: float = 0.0,
        bonus: ItemBonus | None = None,
    ) -> list[Recommendations]:
        """`recommend` for many histories, batched; `exclude` applies to each of them, `filters` has one for each.

        `k` may be one number for all or one for each; the beam is then wide enough for the largest of them.
        """
        counts = [k] * len(histories) if isinstance(k, int) else list(k)
        if len(counts) != len(histories):
            raise InputError(f"{len(histories)} histories, but k for {len(counts)}.")
        least, most = (k, k) if isinstance(k, int) else (min(counts, default=1), max(counts, default=1))
        if least < 1:
            raise InputError(f"k={least} asks for no item.", hint="ask for at least 1")
        if diversity and (search == "exact" or bonus is not None):
            raise InputError("A diverse list comes from a beam search without a bonus.", hint="leave one of them out")
        each = [ItemFilter()] * len(histories) if filters is None else filters
        if len(each) != len(histories):
            raise InputError(f"{len(histories)} histories, but filters for {len(each)}.")
        prompts = [self.prompt(history) for history in histories]
        living = int(self._active.sum())
        top_k = min(most, living)
        beams = max(self.checkpoint.card.serving.num_beams, top_k) if num_beams is None else num_beams
        normalise = normalise or self.checkpoint.card.serving.normalise
        results: Sequence[SearchResult]
        if not histories or not living:
            results = [_nothing(normalise)] * len(histories)
        else:
            everywhere = self._rows(exclude)
            allowed = [
                self._filter(one, [everywhere, self._rows(history)] if exclude_history else [everywhere])
                for history, one in zip(histories, each, strict=True)
            ]
            ids = [prompt.input_ids for prompt in prompts]
            searcher, width = self.searcher(normalise), min(beams, living)
            if search == "exact":
                results = searcher.exact(ids, top_k=top_k, excluded=allowed, bonus=bonus)
            elif diversity:
                results = searcher.diverse(ids, num_beams=width, top_k=top_k, penalty=diversity, excluded=allowed)
            else:
                results = searcher.beam(ids, num_beams=width, top_k=top_k, excluded=allowed, bonus=bonus)
        width = 0 if search == "exact" else beams
        return [
            self._answer(history, prompt, result, wanted, search, width)
            for history, prompt, result, wanted in zip(histories, prompts, results, counts, strict=True)
        ]

    def thinking(self, asked: ThinkingRequest) -> ThinkingList:
        """`recommend` behind a thought, in steps, for who has other things to do between them.

        Raises:
            InputError: a history of unknown items only, or as `open_thought` raises.
        """
        serving, living = self.checkpoint.card.serving, int(self._active.sum())
        beams = max(serving.num_beams, min(asked.k, living)) if asked.num_beams is None else asked.num_beams
        prompt = self.prompt(asked.history)
        stream = open_thought(
            self.checkpoint,
            self.searcher(asked.normalise or serving.normalise),
            prompt.input_ids,
            asked.options,
            num_beams=max(1, min(beams, living)),
            allowed=self._filter(asked.filter, [self._rows(asked.history if asked.exclude_history else ())]),
        )

        def read(thought: Thought) -> Recommendations:
            found = self._answer(asked.history, prompt, thought.result, asked.k, "beam", beams)
            return replace(found, thought=read_thought(thought, self.renderer, asked.history, self.facts))

        return ThinkingList(stream, read)

    def item_bonus(self, values: Mapping[str, float]) -> ItemBonus:
        """A bonus in nats by item id, 0 for all others, for `recommend`; make it once and use it often.

        Raises:
            InputError: an item has no SID (with near misses), or a value is not finite.
        """
        self.titles.require_known(list(values))
        own = np.zeros(self.checkpoint.table.num_items)
        own[self._rows(list(values))] = list(values.values())
        return ItemBonus.build(self._trie, own)

    def score(
        self, history: Sequence[str], item_ids: Sequence[str], *, normalise: Normalise | None = None
    ) -> np.ndarray:
        """Log-probabilities of given items after a history, for re-ranking: (len(item_ids),) float64 in their order.

        Raises:
            InputError: an item has no SID (with near misses), or a history of unknown items only.
        """
        self.titles.require_known(item_ids)
        if not len(item_ids):
            return np.zeros(0)
        searcher = self.searcher(normalise or self.checkpoint.card.serving.normalise)
        return searcher.score([self.prompt(history).input_ids], [self._rows(item_ids)])[0]

    def explain(self, history: Sequence[str], item_id: str, *, max_new_tokens: int = MAX_NEW_TOKENS) -> Explanation:
        """Why `item_id` fits `history`, in the model's words, checked against the catalogue (see `Explanation`).

        Written by the torch engine, a SID is an item of the history or `item_id` itself; vLLM writes unconstrained.

        Raises:
            InputError: the item has no SID, or a history that is empty or of unknown items only.
        """
        self.titles.require_known([item_id])
        unknown = self._unknown(history)
        if len(unknown) == len(history):
            self._require_some_known(history)
            raise InputError("There is no history to explain from.", hint="give at least one item")
        prompt = explanation_prompt(self.renderer, history, item_id)
        tokenizer = self.checkpoint.tokenizer
        stop_ids = [tokenizer.eos_token_id, *(i for i in tokenizer.all_special_ids if i != tokenizer.eos_token_id)]
        answer = self._written(prompt.input_ids, stop_ids, max_new_tokens, [*history, item_id])
        titles = {known: self.titles.title(known) for known in self.checkpoint.table.item_ids}
        parts = self.renderer.reader.parts(answer.token_ids.tolist())
        finished, catalog = answer.finish_reason == "stop", self.checkpoint.catalog
        explanation = read_explanation(parts, item_id, history, titles, finished=finished, catalog=catalog)
        return replace(explanation, unknown_items=unknown)

    # -- parts ---------------------------------------------------------------------------------------------------

    def prompt(self, history: Sequence[str]) -> Rendered:
        """The serving prompt of a history. Raises InputError for a history of unknown items only."""
        self._require_some_known(history)
        serving = self.checkpoint.card.serving
        return self.renderer.sequence(
            history, window=serving.window, window_step=serving.window_step, max_length=serving.max_length
        )

    def searcher(self, normalise: Normalise) -> Searcher:
        """The search over this checkpoint's living items, made once per normalisation."""
        from llmrec.decode.searcher import Searcher

        if normalise not in NORMALISATIONS:
            raise InputError(f"normalise={normalise!r} is unknown.", hint=f"one of {', '.join(NORMALISATIONS)}")
        if normalise not in self._searchers:
            # Copies: torch warns about arrays that cannot be written, which those of a table are.
            token_ids = [ids.copy() for ids in self.checkpoint.table.token_ids or ()]
            self._searchers[normalise] = Searcher(
                self.backend, self._trie, token_ids, normalise=normalise, batch_size=self.batch_size
            )
        return self._searchers[normalise]

    def knows_any(self, history: Sequence[str]) -> bool:
        """Whether a history is empty or has an item with a SID: what `recommend` needs."""
        return not history or len(self._unknown(history)) < len(history)

    @cached_property
    def titles(self) -> TitleMatcher:
        """Titles by id, and ids by what people type."""
        return TitleMatcher(self.checkpoint.catalog, self.checkpoint.table.item_ids)

    @cached_property
    def facts(self) -> Facts:
        """What thoughts are held against."""
        return Facts(self.checkpoint.catalog, self.checkpoint.table)

    @cached_property
    def _known(self) -> frozenset[str]:
        return frozenset(self.checkpoint.table.item_ids)

    def _unknown(self, history: Sequence[str]) -> tuple[str, ...]:
        return tuple(item_id for item_id in history if item_id not in self._known)

    def _require_some_known(self, history: Sequence[str]) -> None:
        if not self.knows_any(history):
            shown = ", ".join(map(repr, history[:5])) + (" …" if len(history) > 5 else "")
            raise InputError(
                f"None of the {len(history)} history items has a SID in this checkpoint: {shown}.",
                hint=self.titles.near_misses(history[-1]),
            )

    def _written(
        self, prompt: np.ndarray, stop_ids: Sequence[int], max_new_tokens: int, nameable: Sequence[str]
    ) -> Generated:
        searcher = self.searcher(self.checkpoint.card.serving.normalise)
        allowed = self._trie.allowance(self._rows(nameable))
        return write_explanation(searcher, prompt, stop_ids, max_new_tokens, allowed)

    def _filter(self, one: ItemFilter, excluded: Sequence[np.ndarray]) -> RowFilter:
        rows = np.concatenate([*excluded, self._rows(one.exclude)])
        within = None if one.allow is None else self._trie.allowance(self._rows(one.allow))
        return self._trie.exclusion(rows, within=within)

    def _rows(self, item_ids: Collection[str]) -> np.ndarray:
        rows = [self.checkpoint.table.row(item_id) for item_id in item_ids if item_id in self._known]
        return np.array(rows, dtype=np.int64)

    def _answer(
        self, history: Sequence[str], prompt: Rendered, result: SearchResult, k: int, search: Search, num_beams: int
    ) -> Recommendations:
        unknown, count = self._unknown(history), self.checkpoint.table.num_items
        items = recommended(result, k, self.checkpoint.table, self.titles.title)
        return Recommendations(
            items=items,
            search=search,
            normalise=result.normalise,
            num_beams=num_beams,
            unknown_items=unknown,
            truncated_items=prompt.truncated_items,
            notes=notes(unknown, len(history), len(items), k, count),
        )


def _nothing(normalise: Normalise) -> SearchResult:
    none = np.zeros(0, np.int64)
    return SearchResult(none, np.zeros(0), none, (), normalise, 0)
