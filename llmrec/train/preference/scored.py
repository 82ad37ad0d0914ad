"""Chosen and rejected by a scorer: the best and the worst of the model's own candidates.

OneRec (Deng et al., arXiv:2502.18965) calls it iterative preference alignment: a user sees one list, so that what they
would have preferred to it is not in the logs; a reward model scores the candidates of the model's beam search instead,
the best becomes the chosen and the worst the rejected answer. Departures: items instead of sessions; several rejected
ones on request; the scorer is any `ItemScorer`, by default a baseline fitted on train.

A later train event of the user may be chosen, never rejected. Of candidates with equal scores the one that the model
ranks higher is taken, for both roles: of equally bad answers the more confident one is the worse.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from llmrec.baselines import make_baseline
from llmrec.data.split import Split
from llmrec.errors import InputError
from llmrec.train.preference.answers import Answers, Question
from llmrec.train.preference.config import ScorerConfig
from llmrec.train.preference.contexts import Context, Drops
from llmrec.train.preference.pairs import PreferenceRow

_SCORED_AT_ONCE = 256


class ItemScorer(Protocol):
    """Judges candidates: a reward model, a teacher."""

    name: str
    """What the card of the data set calls it."""

    def __call__(
        self, histories: Sequence[tuple[str, ...]], candidates: Sequence[tuple[str, ...]]
    ) -> Sequence[np.ndarray]:
        """Per history one score per candidate, higher is better; NaN for an item that it cannot judge."""
        ...


class BaselineScorer:
    """A baseline as a scorer, fitted on the train events of all users and on nothing else.

    Args:
        name: of the baseline.
        settings: its own.
        split: of the data. Items that it lacks get NaN.
    """

    def __init__(self, name: str, settings: dict[str, Any], split: Split) -> None:
        self.name = name
        self._place_of = {item_id: place for place, item_id in enumerate(split.items)}
        self._fitted = make_baseline(name, settings).fit(split.train(), len(split.items))

    def __call__(
        self, histories: Sequence[tuple[str, ...]], candidates: Sequence[tuple[str, ...]]
    ) -> Sequence[np.ndarray]:
        """See `ItemScorer`."""
        found: list[np.ndarray] = []
        for start in range(0, len(histories), _SCORED_AT_ONCE):
            chunk = histories[start : start + _SCORED_AT_ONCE]
            places = [np.array([self._place_of[item] for item in history], dtype=np.int64) for history in chunk]
            scores = self._fitted.scores(places)
            for row, items in zip(scores, candidates[start : start + _SCORED_AT_ONCE], strict=True):
                found.append(np.array([self._score(row, item) for item in items], dtype=np.float64))
        return found

    def _score(self, row: np.ndarray, item_id: str) -> float:
        place = self._place_of.get(item_id)
        return np.nan if place is None else float(row[place])


def scored_rows(
    config: ScorerConfig, contexts: Sequence[Context], answers: Answers, scorer: ItemScorer, drops: Drops
) -> list[PreferenceRow]:
    """A row for every context in which the scorer tells candidates apart.

    Raises:
        InputError: the scorer gives another number of scores than it was asked for.
    """
    question = Question("beam", top_k=config.candidates, num_beams=config.candidates)
    found = answers.ask(question, "candidates")
    items = [found[context.row_id].item_ids for context in contexts]
    scores = list(scorer([context.history for context in contexts], items))
    if [len(one) for one in scores] != [len(one) for one in items]:
        raise InputError(
            f"The scorer {scorer.name} gave {len(scores)} lists of {sum(map(len, scores))} scores; asked for were "
            f"{len(items)} of {sum(map(len, items))}.",
            hint="it returns one array a history, one number a candidate",
        )
    rows = []
    for context, candidates, judged in zip(contexts, items, scores, strict=True):
        if row := _row(config, context, candidates, np.asarray(judged, dtype=np.float64), drops):
            rows.append(row)
    return rows


def _row(
    config: ScorerConfig, context: Context, candidates: tuple[str, ...], scores: np.ndarray, drops: Drops
) -> PreferenceRow | None:
    judged = np.flatnonzero(np.isfinite(scores))
    drops.items["scorer: no finite score"] += len(candidates) - len(judged)
    if not len(judged):
        drops.rows["no candidate has a score"] += 1
        return None
    best = int(judged[np.argmax(scores[judged])])  # the first of equals, which is the model's order
    rejected: list[int] = []
    for place in judged[np.argsort(scores[judged], kind="stable")].tolist():
        if len(rejected) == config.count or scores[place] >= scores[best]:
            break
        if reason := context.why_not(candidates[place]):
            drops.items[f"scorer: {reason}"] += 1
        else:
            rejected.append(place)
    drops.missing["scorer"] += config.count - len(rejected)
    if not rejected:
        drops.rows["the scorer tells no candidates apart"] += 1
        return None
    return PreferenceRow(
        row_id=context.row_id,
        user_id=context.user_id,
        position=context.position,
        history=context.history,
        chosen=candidates[best],
        rejected=tuple(candidates[place] for place in rejected),
        chosen_source="scorer",
        source=tuple("scorer" for _ in rejected),
        weights=(1.0,) * len(rejected),
        scores=tuple(float(scores[place]) for place in rejected),
        chosen_score=float(scores[best]),
    )
