"""What the model answers after each history: beams or draws, kept in parts, so that a killed run goes on.

A part holds `PART_SIZE` histories and is written beside its place and renamed. The folder of the parts is named by a
hash of all that decides them (model, SIDs, histories, search), so that parts of another job are never taken for one's
own.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl

from llmrec.prompts.task import hash_number
from llmrec.recommender import Recommender
from llmrec.train.preference.contexts import Context

PART_SIZE = 128
"""Histories a part: what a kill loses at most."""
Progress = Callable[[str, int, int], None]
"""Called with (what is done, histories done, histories)."""
_SCHEMA: dict[str, Any] = {
    "row_id": pl.String,
    "item_ids": pl.List(pl.String),
    "scores": pl.List(pl.Float64),
    "chosen_score": pl.Float64,
}


@dataclass(frozen=True)
class Question:
    """How the model is asked. Items of the history are never among the answers.

    Attributes:
        search: ``beam`` for the most probable items, ``sample`` for draws without replacement.
        top_k: answers a history.
        num_beams: width of the beam.
        temperature: of the draws.
        seed: of the draws.
        scores_chosen: whether the chosen item's log-probability is asked for, too.
    """

    search: Literal["beam", "sample"]
    top_k: int
    num_beams: int = 0
    temperature: float = 1.0
    seed: int = 0
    scores_chosen: bool = False


@dataclass(frozen=True)
class Answer:
    """What the model said after one history.

    Attributes:
        item_ids: best first, or in the order of the draws.
        scores: their log-probabilities, normalised as the checkpoint's card says.
        chosen_score: that of the chosen item; None where it was not asked for.
    """

    item_ids: tuple[str, ...]
    scores: tuple[float, ...]
    chosen_score: float | None


class Answers:
    """Asks a model about contexts and keeps the answers.

    Args:
        recommender: the model.
        contexts: in the order of the rows.
        folder: of the parts; None keeps nothing.
        progress: where progress is told.
    """

    def __init__(
        self,
        recommender: Recommender,
        contexts: Sequence[Context],
        folder: Path | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.recommender = recommender
        self.contexts = contexts
        self.folder = folder
        self.progress = progress
        self.asked = 0
        """Histories asked about, once per search."""
        self.resumed = 0
        """Of these, answered by an earlier run."""

    def ask(self, question: Question, what: str) -> dict[str, Answer]:
        """The answer of every context by its row id; `what` names the work in the progress."""
        parts = None if self.folder is None else self.folder / self._name(question)
        answers: dict[str, Answer] = {}
        for start in range(0, len(self.contexts), PART_SIZE):
            contexts = self.contexts[start : start + PART_SIZE]
            self.asked += len(contexts)
            part = None if parts is None else parts / f"part-{start // PART_SIZE:05d}.parquet"
            if part is not None and part.exists():
                frame = pl.read_parquet(part)
                self.resumed += len(contexts)
            else:
                frame = self._asked(contexts, question)
                if part is not None:
                    _write(frame, part)
            for row_id, item_ids, scores, chosen_score in frame.iter_rows():
                answers[row_id] = Answer(tuple(item_ids), tuple(scores), chosen_score)
            if self.progress:
                self.progress(what, start + len(contexts), len(self.contexts))
        return answers

    def _asked(self, contexts: Sequence[Context], question: Question) -> pl.DataFrame:
        recommender, table = self.recommender, self.recommender.checkpoint.table
        histories = [context.history for context in contexts]
        prompts = [recommender.prompt(history).input_ids for history in histories]
        searcher = recommender.searcher(recommender.checkpoint.card.serving.normalise)
        if question.search == "beam":
            found = recommender.recommend_many(histories, question.top_k, num_beams=question.num_beams)
            items = [[one.item_id for one in answer] for answer in found]
            scores = [[one.score for one in answer] for answer in found]
        else:
            known = set(table.item_ids)
            met = [
                np.array([table.row(item) for item in history if item in known], dtype=np.int64)
                for history in histories
            ]
            drawn = searcher.sample(
                prompts,
                top_k=question.top_k,
                seed=question.seed,
                temperature=question.temperature,
                prompt_ids=[hash_number(context.row_id) for context in contexts],
                excluded=met,
            )
            items = [[table.item_ids[row] for row in one.items] for one in drawn]
            scores = [one.scores.tolist() for one in drawn]
        chosen: list[float | None] = [None] * len(contexts)
        if question.scores_chosen:
            rows = [np.array([table.row(context.chosen)]) for context in contexts]
            chosen = [float(one[0]) for one in searcher.score(prompts, rows)]
        columns = {
            "row_id": [context.row_id for context in contexts],
            "item_ids": items,
            "scores": scores,
            "chosen_score": chosen,
        }
        return pl.DataFrame(columns, schema=_SCHEMA)

    def _name(self, question: Question) -> str:
        job = {
            "checkpoint": self.recommender.checkpoint.fingerprint,
            "table": self.recommender.checkpoint.table.rows_fingerprint,
            "engine": self.recommender.engine,
            "question": asdict(question),
            "part_size": PART_SIZE,
            "contexts": [[context.row_id, context.chosen, *context.history] for context in self.contexts],
        }
        digest = hashlib.sha256(json.dumps(job, sort_keys=True).encode()).hexdigest()
        return f"{question.search}-{digest[:16]}"


def _write(frame: pl.DataFrame, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    waiting = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        frame.write_parquet(waiting)
        waiting.rename(path)
    finally:
        waiting.unlink(missing_ok=True)
