"""Pairs of graded feedback: an event of a high grade is preferred to the user's events of lower grades.

OneSug (Guo et al., "OneSug: The Unified End-to-End Generative Framework for E-commerce Query Suggestion",
arXiv:2506.06913) divides behaviour into levels with a base reward each, makes pairs of different levels, and weighs a
pair the less the further its rewards are apart, because near levels are hard to tell apart. Here the levels are of the
recipe (a rating, an event type, a weight), a rejected item is one of the user's later train events of a lower level,
and items that the user never met are the lowest level, of reward 0. The paper's adjustment by click-through rate needs
impressions and is left out.

An item that the user met several times in train has the highest of its grades.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import polars as pl

from llmrec.data.dataset import Dataset
from llmrec.errors import InputError, MismatchError
from llmrec.sid_vocab.table import ACTIVE, SIDTable
from llmrec.train.preference.config import FeedbackConfig, RandomNegatives
from llmrec.train.preference.contexts import Context, Drops
from llmrec.train.preference.negatives import random_source
from llmrec.train.preference.pairs import PreferenceRow


class Grades:
    """The reward of every train event.

    Attributes:
        rewards: per row of ``split.users`` one reward per event ``s_1..s_n``, NaN for an event of no level.

    Raises:
        InputError: the interactions have no such column, or levels are numbers and the column is not.
    """

    def __init__(self, config: FeedbackConfig, dataset: Dataset) -> None:
        split, frame = dataset.split, dataset.interactions.frame
        if config.column not in frame.columns:
            raise InputError(
                f"feedback.column={config.column}: the interactions of {dataset.name} have no such column.",
                hint=f"there are {', '.join(name for name in frame.columns if not name.endswith('_id'))}",
            )
        place_of = {user: place for place, user in enumerate(split.users)}
        kept = frame.filter(pl.col("user_id").is_in(pl.Series(split.users, dtype=pl.String).implode()))
        users = np.array([place_of[user] for user in kept["user_id"]], dtype=np.int64)
        order = np.lexsort((kept["timestamp"].to_numpy(), users))  # as leave_one_out orders: ties keep the file's
        rewards = _rewards(config, kept[config.column])[order]
        ends = np.cumsum([len(sequence) for sequence in split.sequences])
        self.rewards = np.split(rewards, ends[:-1])
        items = np.array(kept["item_id"].to_list(), dtype=object)[order]
        if [split.items[item] for sequence in split.sequences for item in sequence] != items.tolist():
            raise MismatchError("The split is not that of the interactions.", hint="read the data anew")
        self._place_of = place_of
        self._unmet_alone = not config.count

    def preferable(self, user: int, position: int) -> bool:
        """Whether an event has a grade, and something of a lower one to be preferred to."""
        own, later = self.rewards[user][position], self.rewards[user][position + 1 : -2]
        return bool(own > 0 and (self._unmet_alone or (later < own).any()))

    def of(self, context: Context) -> dict[str, float]:
        """By item the highest grade that the user gave it in train; items of no level are missing."""
        train = (*context.history, context.chosen, *context.later)
        best: dict[str, float] = {}
        for item_id, reward in zip(train, self.rewards[self._place_of[context.user_id]][: len(train)], strict=True):
            if not np.isnan(reward):
                best[item_id] = max(best.get(item_id, 0.0), float(reward))
        return best


def feedback_rows(
    config: FeedbackConfig, contexts: Sequence[Context], grades: Grades, table: SIDTable, seed: int, drops: Drops
) -> list[PreferenceRow]:
    """A row for every context with something of a lower grade behind it, or that the user never met."""
    living = {item_id for item_id, status in zip(table.item_ids, table.status, strict=True) if status == ACTIVE}
    unmet = random_source(RandomNegatives(count=config.unmet), table, seed) if config.unmet else None
    rows = []
    for context in contexts:
        best = grades.of(context)
        own = best[context.chosen]
        rejected: dict[str, float] = {}
        for item_id in context.later:
            if len(rejected) == config.count:
                break
            reason = _why_not(context, item_id, best.get(item_id), own, living)
            if reason:
                drops.items[f"feedback: {reason}"] += 1
            elif item_id not in rejected:
                rejected[item_id] = best[item_id]
        drops.missing["feedback"] += config.count - len(rejected)
        source = ["feedback"] * len(rejected)
        for drawn in unmet.pick(context, rejected.keys(), drops) if unmet else ():
            rejected[drawn.item_id] = 0.0
            source.append("random")
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
                rejected=tuple(rejected),
                chosen_source="feedback",
                source=tuple(source),  # type: ignore[arg-type]  # two literals of RejectedSource
                weights=tuple(_weight(config, own - reward) for reward in rejected.values()),
                scores=tuple(rejected.values()),
                chosen_score=own,
            )
        )
    return rows


def weights_of_mean_one(rows: Sequence[PreferenceRow]) -> list[PreferenceRow]:
    """The rows with their weights scaled to a mean of 1 over all pairs: the learning rate keeps its meaning."""
    weights = [weight for row in rows for weight in row.weights]
    mean = sum(weights) / max(1, len(weights))
    return [replace(row, weights=tuple(weight / mean for weight in row.weights)) for row in rows]


def _rewards(config: FeedbackConfig, column: pl.Series) -> np.ndarray:
    """(n_events,) rewards, NaN where no level covers the event."""
    rewards = np.full(len(column), np.nan)
    if config.levels[0].value is not None:
        said = column.cast(pl.String)
        for level in config.levels:
            rewards[(said == level.value).fill_null(value=False).to_numpy()] = level.reward
        return rewards
    numbers = column.cast(pl.Float64, strict=False)
    if numbers.null_count() == len(column):
        raise InputError(
            f"feedback.column={config.column} holds no numbers, such as {column.head(1).to_list()}.",
            hint="levels of text have value: buy instead of at_least",
        )
    values = numbers.fill_null(np.nan).to_numpy()
    for level in sorted(config.levels, key=lambda level: level.at_least or 0.0):
        rewards[values >= level.at_least] = level.reward
    return rewards


def _why_not(context: Context, item_id: str, reward: float | None, own: float, living: set[str]) -> str | None:
    if item_id == context.chosen or item_id in context.history:
        return "a history item or the chosen one again"
    if reward is None:
        return "an event of no level"
    if reward >= own:
        return "not of a lower grade"
    return None if item_id in living else "an item without a living SID"


def _weight(config: FeedbackConfig, gap: float) -> float:
    return {"inverse_gap": 1 / gap, "gap": gap, "equal": 1.0}[config.weighting]
