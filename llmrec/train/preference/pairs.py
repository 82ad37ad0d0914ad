"""`PreferenceRow`: one chosen item and one or more rejected ones after a history, with the provenance of every pair.

Rows hold item ids, never strings of tokens: a trainer renders them with the one `Renderer`, so that training and
serving read the same ids. One chosen with many rejected is what S-DPO takes (Chen et al., "On Softmax Direct Preference
Optimization for Recommendation", NeurIPS 2024); DPO takes the pairs of `PreferenceRow.pairs` one by one.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from llmrec.data.problems import Problems

ChosenSource = Literal["event", "scorer", "feedback"]
"""Why an item is the chosen one: the user's next event; a scorer's best of the model's candidates; the user's next
event, graded."""

RejectedSource = Literal[
    "random", "popular", "same_prefix", "beams", "self_play", "rejection_sampled", "scorer", "feedback"
]
"""Where a rejected item comes from; each is a function in this package."""


@dataclass(frozen=True)
class Pair:
    """One chosen and one rejected item of a row."""

    chosen: str
    rejected: str
    source: RejectedSource
    weight: float


@dataclass(frozen=True)
class PreferenceRow:
    """After `history`, `chosen` is preferred to each of `rejected`.

    Attributes:
        row_id: distinct in a data set, and the same whenever the same event is asked about.
        user_id: whose history it is.
        position: events of the user before the chosen one; `history` holds that many items.
        history: item ids ``s_1..s_position``, oldest first, all of them train events. The renderer cuts it to a window.
        chosen: item id.
        rejected: item ids, distinct, at least one.
        chosen_source: why `chosen` is.
        source: per rejected item, where it comes from.
        weights: per rejected item, how much its pair counts; 1.0 where nothing grades them.
        scores: per rejected item what its source gave it: the model's log-probability, a scorer's value, a user's
            grade; None where the source gives nothing.
        chosen_score: what `chosen_source` gave the item: a scorer's value, a user's grade; None for a plain event.
        iteration: of self-play; 0 elsewhere.
    """

    row_id: str
    user_id: str
    position: int
    history: tuple[str, ...]
    chosen: str
    rejected: tuple[str, ...]
    chosen_source: ChosenSource
    source: tuple[RejectedSource, ...]
    weights: tuple[float, ...]
    scores: tuple[float | None, ...]
    chosen_score: float | None = None
    iteration: int = 0

    @property
    def pairs(self) -> tuple[Pair, ...]:
        """The row as single pairs, in the order of `rejected`."""
        return tuple(
            Pair(self.chosen, item, source, weight)
            for item, source, weight in zip(self.rejected, self.source, self.weights, strict=True)
        )


def check_rows(rows: Sequence[PreferenceRow], *, what: str) -> None:
    """Refuse rows that cannot be trained on, whoever made them.

    Args:
        rows: of one data set.
        what: what messages call it, such as its file.

    Raises:
        DataError: with every problem and its row: chosen among the rejected, nothing rejected, an item rejected twice,
            lists of unequal length, a weight that is not positive, an unknown source, a row id used twice.
    """
    problems = Problems()
    if not rows:
        problems.add("no rows", "no rows")
    for row in rows:
        for kind, problem in _problems(row):
            problems.add(kind, f"row {row.row_id}: {problem}")
    for name, count in Counter(row.row_id for row in rows).items():
        if count > 1:
            problems.add("row id used again", f"row {name}: the row id is used {count} times")
    problems.raise_any(f"The preference data {what}", hint="llmrec prefer writes rows that pass")


def _problems(row: PreferenceRow) -> Iterator[tuple[str, str]]:
    """Kind and description of each problem."""
    if row.chosen in row.rejected:
        yield "chosen is rejected", f"{row.chosen} is both chosen and rejected"
    if not row.rejected:
        yield "nothing rejected", "nothing is rejected"
    if len(set(row.rejected)) < len(row.rejected):
        yield "rejected twice", "an item is rejected twice"
    if not len(row.rejected) == len(row.source) == len(row.weights) == len(row.scores):
        yield (
            "unequal lengths",
            f"{len(row.rejected)} rejected items have {len(row.source)} sources, {len(row.weights)} weights and "
            f"{len(row.scores)} scores",
        )
    if bad := [weight for weight in row.weights if not 0 < weight < math.inf]:
        yield "wrong weight", f"a weight is {bad[0]}, not a positive number"
    if unknown := {row.chosen_source, *row.source} - {*get_args(ChosenSource), *get_args(RejectedSource)}:
        yield "unknown source", f"unknown source {', '.join(sorted(unknown))}"
    if row.position != len(row.history):
        yield "wrong position", f"the history has {len(row.history)} items, its position says {row.position}"
