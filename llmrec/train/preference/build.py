"""From a recipe to checked rows: contexts, chosen and rejected items, then the leak check.

    made = make_preferences(config, dataset, checkpoint, recommender=Recommender(checkpoint))
    made.rows[0].pairs

Everything that is left out on the way is in `Preferences.drops`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from llmrec.checkpoint import Checkpoint
from llmrec.data.dataset import Dataset
from llmrec.errors import DataError, InputError
from llmrec.recommender import Recommender
from llmrec.sid_vocab.table import SIDTable
from llmrec.train.preference.answers import Answers, Progress
from llmrec.train.preference.config import NegativesConfig, PreferConfig
from llmrec.train.preference.contexts import Context, Drops, select_contexts
from llmrec.train.preference.feedback import Grades, feedback_rows, weights_of_mean_one
from llmrec.train.preference.leaks import check_leaks, without_targets
from llmrec.train.preference.model_negatives import beam_source, rejection_sampled_source, self_play_source
from llmrec.train.preference.negatives import Rejected, SamePrefix, Source, popular_source, random_source
from llmrec.train.preference.pairs import PreferenceRow, check_rows
from llmrec.train.preference.scored import BaselineScorer, ItemScorer, scored_rows

T = TypeVar("T")


@dataclass(frozen=True)
class Preferences:
    """Rows that passed every check, and what was left out.

    Attributes:
        rows: by user in the order of the split, then by position.
        drops: train events and candidates that were left out, and what sources could not give.
        scorer: what judged; None where nothing did.
        asked: histories that a model was asked about, once per search.
        resumed: of these, answers that an earlier run had left.
    """

    rows: tuple[PreferenceRow, ...]
    drops: Drops
    scorer: str | None
    asked: int
    resumed: int

    @property
    def pairs_by_source(self) -> dict[str, int]:
        """Number of pairs of each source, the most frequent first."""
        return dict(Counter(source for row in self.rows for source in row.source).most_common())


def make_preferences(
    config: PreferConfig,
    dataset: Dataset,
    checkpoint: Checkpoint,
    *,
    recommender: Recommender | None = None,
    scorer: ItemScorer | None = None,
    parts: Path | None = None,
    progress: Progress | None = None,
) -> Preferences:
    """Make the rows of a recipe.

    Args:
        config: the recipe.
        dataset: what it names.
        checkpoint: has the SIDs.
        recommender: its model; needed where the recipe asks it (`PreferConfig.needs_model`).
        scorer: judges candidates instead of the baseline that ``config.scorer`` names.
        parts: folder that keeps the model's answers until the end; None keeps none.
        progress: where progress is told.

    Raises:
        InputError: the recipe asks a model and there is none, or a setting does not fit the data or the SIDs.
        DataError: no row is left; what was dropped is listed.
    """
    if config.needs_model and recommender is None:
        raise InputError(f"The recipe {config.name} asks the model, and there is none.", hint="give a recommender")
    split, table, drops = dataset.split, checkpoint.table, Drops()
    grades = Grades(config.feedback, dataset) if config.feedback else None
    contexts = select_contexts(
        split,
        table,
        drops,
        users=config.users,
        recent_events=config.recent_events,
        min_history=config.min_history,
        eligible=grades.preferable if grades else None,
    )
    answers = Answers(recommender, contexts, parts, progress) if recommender else None
    if config.feedback and grades:
        rows = feedback_rows(config.feedback, contexts, grades, table, config.seed, drops)
    elif config.scorer and answers:
        scorer = scorer or BaselineScorer(config.scorer.baseline, config.scorer.settings, split)
        rows = scored_rows(config.scorer, contexts, answers, scorer, drops)
    else:
        assert config.negatives is not None  # the recipe has exactly one of the three
        sources = _sources(config.negatives, config.seed, dataset, checkpoint, answers)
        iteration = config.negatives.self_play.iteration if config.negatives.self_play else 0
        rows = _event_rows(contexts, sources, iteration, drops)
    rows = _without_twins(rows, table, drops)
    kept = without_targets(rows, split)
    drops.rows["a valid or test item of the user is chosen or rejected"] += len(rows) - len(kept)
    if not kept:
        reasons = [f"{count:,} {reason}" for reason, count in (drops.rows + drops.items).most_common()]
        raise DataError(f"The recipe {config.name} leaves no row:", reasons, hint="loosen it, or give more data")
    if config.feedback:
        kept = weights_of_mean_one(kept)
    check_rows(kept, what=config.name)
    check_leaks(kept, split, what=config.name)
    return Preferences(
        rows=tuple(kept),
        drops=Drops(+drops.rows, +drops.items, +drops.missing),
        scorer=scorer.name if scorer and config.scorer else None,
        asked=answers.asked if answers else 0,
        resumed=answers.resumed if answers else 0,
    )


def _sources(
    config: NegativesConfig, seed: int, dataset: Dataset, checkpoint: Checkpoint, answers: Answers | None
) -> list[Source]:
    """In the order of the recipe's fields."""
    table = checkpoint.table
    sources: list[Source] = []
    if config.random:
        sources.append(random_source(config.random, table, seed))
    if config.popular:
        sources.append(popular_source(config.popular, table, dataset.split, seed))
    if config.same_prefix:
        sources.append(SamePrefix(config.same_prefix, table, seed))
    if config.beams and answers:
        sources.append(beam_source(config.beams, answers))
    if config.self_play and answers:
        sources.append(self_play_source(config.self_play, answers, seed))
    if config.rejection_sampled and answers:
        sources.append(rejection_sampled_source(config.rejection_sampled, answers, seed))
    return sources


def _event_rows(contexts: list[Context], sources: list[Source], iteration: int, drops: Drops) -> list[PreferenceRow]:
    """The user's next event is chosen, the sources reject."""
    rows = []
    for context in contexts:
        rejected: list[Rejected] = []
        for source in sources:
            rejected += source.pick(context, {one.item_id for one in rejected}, drops)
        if not rejected:
            drops.rows["no rejected item is left"] += 1
            continue
        rows.append(
            PreferenceRow(
                row_id=context.row_id,
                user_id=context.user_id,
                position=context.position,
                history=context.history,
                chosen=context.chosen,
                rejected=tuple(one.item_id for one in rejected),
                chosen_source="event",
                source=tuple(one.source for one in rejected),
                weights=(1.0,) * len(rejected),
                scores=tuple(one.score for one in rejected),
                iteration=iteration,
            )
        )
    return rows


def _without_twins(rows: Sequence[PreferenceRow], table: SIDTable, drops: Drops) -> list[PreferenceRow]:
    """The rows without rejected items that share the chosen one's SID: no model can tell the two apart."""
    sid_of = dict(zip(table.item_ids, map(tuple, table.codes.tolist()), strict=True))
    found = []
    for row in rows:
        kept = [place for place, item in enumerate(row.rejected) if sid_of[item] != sid_of[row.chosen]]
        for place in set(range(len(row.rejected))).difference(kept):
            drops.items[f"{row.source[place]}: the chosen item's SID"] += 1
        if not kept:
            drops.rows["no rejected item is left"] += 1
        elif len(kept) == len(row.rejected):
            found.append(row)
        else:
            found.append(
                replace(
                    row,
                    rejected=_at(row.rejected, kept),
                    source=_at(row.source, kept),
                    weights=_at(row.weights, kept),
                    scores=_at(row.scores, kept),
                )
            )
    return found


def _at(values: Sequence[T], places: Sequence[int]) -> tuple[T, ...]:
    return tuple(values[place] for place in places)
