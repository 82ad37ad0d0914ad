"""Judge a language model: rank by constrained search, place each target in the list, and check what came out.

Every user's prompt is the serving prompt (`Renderer.sequence`). Items that are retired or outside the evaluation
catalogue are masked in the trie, in filtered mode the history as well, so that `top_k` candidates are left in either
mode; with beam search both modes come from one prefill. Items that share a SID share its places.

What a list holds is not taken on trust: the token ids of every recommended SID are decoded to text, the text is parsed
against the SID table, and the item must be among the living items that it names (`llmrec.eval.checks`).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from llmrec.data.dataset import Dataset
from llmrec.data.split import Split
from llmrec.decode.result import SearchResult
from llmrec.errors import InputError
from llmrec.eval.checks import Counts, Proof, checked_buckets
from llmrec.eval.config import EvalConfig, Mode
from llmrec.eval.judged import Judged, by_hash
from llmrec.eval.ranker import Progress, RankedUsers, Ranking
from llmrec.metrics import ranks_from_lists
from llmrec.prompts.renderer import Renderer
from llmrec.recommender import Recommender
from llmrec.sid_vocab.table import ACTIVE, LEVEL_LETTERS, SIDTable

if TYPE_CHECKING:
    from llmrec.checkpoint import Checkpoint
    from llmrec.decode.searcher import Searcher

SID_CUTOFFS = (1, 5, 10, 20)


class Generator:
    """A `Ranker` for a causal LM with the tokens of a SID table.

    Args:
        searcher: model and trie over all rows of the renderer's table; its normalisation is the default.
        renderer: renders the serving prompt.
        window: most recent history items in the prompt, unless the evaluation sets its own.
        window_step: a full window starts at a multiple of this many items.
        max_length: tokens the prompt may have; the oldest items give way.
        label: what progress calls it.
    """

    def __init__(
        self,
        searcher: Searcher,
        renderer: Renderer,
        *,
        window: int | None = 50,
        window_step: int = 1,
        max_length: int | None = None,
        label: str = "model",
    ) -> None:
        self.searcher = searcher
        self.renderer = renderer
        self.window = window
        self.window_step = window_step
        self.max_length = max_length
        self.label = label

    @classmethod
    def of_checkpoint(cls, checkpoint: Checkpoint, *, label: str = "model") -> Generator:
        """With the checkpoint's weights, table, templates and serving settings."""
        return cls.of_recommender(Recommender(checkpoint), label=label)

    @classmethod
    def of_recommender(cls, recommender: Recommender, *, label: str = "model") -> Generator:
        """As the recommender serves, with its engine."""
        checkpoint = recommender.checkpoint
        serving = checkpoint.card.serving
        searcher = recommender.searcher(serving.normalise)
        return cls(
            searcher,
            checkpoint.renderer,
            window=serving.window,
            window_step=serving.window_step,
            max_length=serving.max_length,
            label=label,
        )

    def rank(self, dataset: Dataset, judged: Judged, config: EvalConfig, progress: Progress) -> RankedUsers:
        """See `rank_with_model`."""
        window = config.window if config.window is not None else self.window
        return rank_with_model(
            self.searcher,
            self.renderer,
            judged,
            config,
            progress,
            window=window,
            window_step=self.window_step if config.window is None else 1,
            max_length=self.max_length,
            label=self.label,
        )


def rank_with_model(
    searcher: Searcher,
    renderer: Renderer,
    judged: Judged,
    config: EvalConfig,
    progress: Progress,
    *,
    window: int | None,
    window_step: int = 1,
    max_length: int | None = None,
    label: str = "model",
) -> RankedUsers:
    """Rank for every judged user; see `Generator` for the arguments and the module for what is done.

    Raises:
        InputError: trie and table differ in their rows, or no item of the evaluation catalogue has a living SID.
    """
    table = renderer.table
    rows = _Rows.of(table, judged.split)
    searcher = _evaluation_searcher(searcher, rows.alive, config)
    prompts = [
        renderer.sequence(
            [judged.split.items[i] for i in history], window=window, window_step=window_step, max_length=max_length
        )
        for history in judged.histories
    ]
    excluded = [rows.of_item[history][rows.of_item[history] >= 0] for history in judged.histories]

    # 1. Search, long prompts first: batches hold prompts of similar length, and the ETA errs on the safe side.
    wall, cpu = time.perf_counter(), time.process_time()
    order = np.argsort([-len(prompt) for prompt in prompts], kind="stable")
    found: dict[Mode, dict[int, SearchResult]] = {mode: {} for mode in config.modes}
    for start in range(0, len(order), config.batch_size):
        members = order[start : start + config.batch_size]
        ids = [prompts[user].input_ids for user in members]
        masks = [[excluded[user] for user in members] if mode == "filtered" else None for mode in config.modes]
        if config.search == "beam":
            results = searcher.beam_each(ids, masks, num_beams=config.num_beams, top_k=config.top_k)
        else:
            results = [searcher.exact(ids, top_k=config.top_k, excluded=mask) for mask in masks]
        for mode, batch in zip(config.modes, results, strict=True):
            found[mode].update(zip(members.tolist(), batch, strict=True))
        progress(f"{label}: search", start + len(members), len(order))
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu

    # 2. Check and place.
    proof = Proof(searcher, renderer, rows.alive)
    counts = Counts()
    rankings: dict[Mode, Ranking] = {}
    sid_level: dict[Mode, Any] = {}
    target_rows = rows.of_item[judged.targets]
    for mode in config.modes:
        in_order = [found[mode][user] for user in range(len(judged))]
        lists = [
            checked_buckets(result, proof, history if mode == "filtered" else None, counts)
            for result, history in zip(in_order, excluded, strict=True)
        ]
        as_items = [[rows.item_of[bucket] for bucket in buckets] for buckets in lists]
        placement = ranks_from_lists(as_items, judged.targets)
        flat = tuple(np.concatenate([*buckets, np.zeros(0, np.int64)])[: config.top_k] for buckets in as_items)
        rankings[mode] = Ranking(placement, flat)
        sid_level[mode] = _sid_level_hits(table, lists, target_rows)

    # 3. What the beam misses.
    details: dict[str, Any] = {
        "kind": "generator",
        "window": window,
        "search": config.search,
        "num_beams": config.num_beams if config.search == "beam" else None,
        "normalise": searcher.normalise,
        "search_wall_s": wall,
        "search_cpu_s": cpu,
        "targets_without_sid": int((target_rows < 0).sum()),
        "targets_not_active": int((~rows.alive[target_rows[target_rows >= 0]]).sum()),
        "history_items_without_sid": sum(prompt.skipped_items for prompt in prompts),
        "users_with_shortened_history": sum(prompt.truncated_items > 0 for prompt in prompts),
        "shared_sid_targets": int((rankings[config.main_mode].placement.size > 1).sum()),
        "sid_level": sid_level,
    }
    if config.search == "beam" and config.exact_users:
        chosen = by_hash(judged.user_ids)[: config.exact_users]
        details["beam_recall_of_exact"] = _beam_recall_of_exact(
            searcher,
            [prompts[user].input_ids for user in chosen],
            [found[config.main_mode][int(user)] for user in chosen],
            [excluded[user] for user in chosen] if config.main_mode == "filtered" else None,
            config,
            lambda done, total: progress(f"{label}: exact search", done, total),
        )
    return RankedUsers(rankings, counts.checked, counts.invalid, counts.duplicates, counts.excluded, details)


@dataclass(frozen=True, eq=False)
class _Rows:
    """Rows of the table against items of the split.

    Attributes:
        of_item: (split items,) the row of each item, -1 without one.
        item_of: (table rows,) the item of each row, -1 outside the evaluation catalogue.
        alive: (table rows,) bool: active and in the evaluation catalogue.
    """

    of_item: np.ndarray
    item_of: np.ndarray
    alive: np.ndarray

    @classmethod
    def of(cls, table: SIDTable, split: Split) -> _Rows:
        row_of = {item_id: row for row, item_id in enumerate(table.item_ids)}
        of_item = np.array([row_of.get(item_id, -1) for item_id in split.items], np.int64)
        item_of = np.full(table.num_items, -1, np.int64)
        known = np.flatnonzero(of_item >= 0)
        item_of[of_item[known]] = known
        alive = (table.status == ACTIVE) & (item_of >= 0)
        if not alive.any():
            raise InputError(
                f"none of the {len(split.items)} items of the evaluation catalogue has an active SID in the table",
                hint="the checkpoint was made from another catalogue, or its item ids are spelled differently",
            )
        return cls(of_item, item_of, alive)


def _evaluation_searcher(searcher: Searcher, alive: np.ndarray, config: EvalConfig) -> Searcher:
    """The same model, searching living items of the evaluation catalogue only."""
    if searcher.trie.num_items != len(alive):
        raise InputError(f"the trie holds {searcher.trie.num_items} rows, the SID table {len(alive)}")
    return searcher.over(searcher.trie.with_alive(alive), normalise=config.normalise, batch_size=config.batch_size)


def _sid_level_hits(table: SIDTable, lists: Sequence[Sequence[np.ndarray]], target_rows: np.ndarray) -> dict[str, Any]:
    """Share of users with a SID among their first k that begins like the target's: ``{"a": {"Hit@10": ...}, "ab": …}``.

    The last entry is a hit on the whole SID, whatever item of its bucket is meant. Targets without a SID are misses.
    """
    first_hit = np.full((table.num_levels, len(lists)), np.iinfo(np.int64).max)
    for user, (buckets, target) in enumerate(zip(lists, target_rows, strict=True)):
        if target < 0 or not buckets:
            continue
        agree = table.codes[[bucket[0] for bucket in buckets]] == table.codes[target]
        for level in range(table.num_levels):
            places = np.flatnonzero(agree[:, : level + 1].all(axis=1))
            if places.size:
                first_hit[level, user] = places[0] + 1
    return {
        LEVEL_LETTERS[: level + 1]: {
            f"Hit@{cutoff}": float((first_hit[level] <= cutoff).mean()) for cutoff in SID_CUTOFFS
        }
        for level in range(table.num_levels)
    }


def _beam_recall_of_exact(
    searcher: Searcher,
    prompts: Sequence[np.ndarray],
    beams: Sequence[SearchResult],
    excluded: Sequence[np.ndarray] | None,
    config: EvalConfig,
    progress: Any,
) -> dict[str, Any]:
    """How much of the true top-k the beam found, as a mean over users."""
    shares: dict[int, list[float]] = {1: [], 10: [], config.top_k: []}
    for start in range(0, len(prompts), config.batch_size):
        batch = slice(start, start + config.batch_size)
        exact = searcher.exact(
            prompts[batch], top_k=config.top_k, excluded=None if excluded is None else excluded[batch]
        )
        for truth, beam in zip(exact, beams[batch], strict=True):
            for cutoff, values in shares.items():
                wanted = truth.items[:cutoff]
                values.append(float(np.isin(wanted, beam.items[:cutoff]).mean()) if wanted.size else 1.0)
        progress(min(start + config.batch_size, len(prompts)), len(prompts))
    return {"users": len(prompts), "mode": config.main_mode} | {f"@{k}": float(np.mean(v)) for k, v in shares.items()}
