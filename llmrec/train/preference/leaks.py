"""What keeps targets out of preference data: train positions only, and no row that names a target of its user.

Of a user ``s_1..s_n`` only ``s_1..s_{n-2}`` are histories and chosen events. A negative can still *be* the valid or the
test item, above all a hard one: the better the model, the more often its beams hold the target. There are three ways:

* Keep it. No knowledge of the target is used, but the model is taught that the answer is wrong.
* Take it out of the row. That reveals it: of the model's best answers all are pushed down but one, and the one is the
  target. Its rank rises by what the pairs do to its competitors, which is a leak into the very metric.
* **Leave out the whole row**, as is done here: no pair of that history is trained on, so that the target and its
  competitors there are treated alike. Negatives are picked without a look at the targets; then the row goes. What is
  left to know is which rows are missing: users whose target the model finds have fewer. (MovieLens-100K, four of 20
  beams of a model of 1M parameters: 270 of 1,886 rows go; with eight random negatives 26 of 2,829.)

The same holds for a chosen item that is met again as a target (repeat purchases): the row goes, which costs the target
a positive and cannot help it. Rows that went are counted.
"""

from __future__ import annotations

from collections.abc import Sequence

from llmrec.data.problems import Problems
from llmrec.data.split import Split
from llmrec.train.preference.pairs import PreferenceRow


def targets_of(split: Split) -> dict[str, frozenset[str]]:
    """Per user the ids of the valid and the test item."""
    ends = zip(split.users, split.sequences, strict=True)
    return {user: frozenset(split.items[item] for item in sequence[-2:]) for user, sequence in ends}


def without_targets(rows: Sequence[PreferenceRow], split: Split) -> list[PreferenceRow]:
    """The rows that name no valid or test item of their user, in their order."""
    targets = targets_of(split)
    return [row for row in rows if targets[row.user_id].isdisjoint((row.chosen, *row.rejected))]


def check_leaks(rows: Sequence[PreferenceRow], split: Split, *, what: str) -> None:
    """Refuse rows that know more than train does.

    Args:
        rows: of one data set.
        split: of the data that they were made from.
        what: what messages call the rows.

    Raises:
        DataError: a user is not of the split, a history is not the user's first train events, a chosen event is not the
            next of them, or a valid or test item of the user is chosen or rejected. All rows are named.
    """
    problems = Problems()
    targets = targets_of(split)
    places = {user: place for place, user in enumerate(split.users)}
    for row in rows:
        if row.user_id not in places:
            problems.add("unknown user", f"row {row.row_id}: the split has no user {row.user_id}")
            continue
        train = [split.items[item] for item in split.sequences[places[row.user_id]][:-2]]
        if row.position >= len(train):
            problems.add(
                "beyond train",
                f"row {row.row_id}: position {row.position} is no train event; the user has {len(train)} of them",
            )
            continue
        if list(row.history) != train[: row.position]:
            problems.add("other history", f"row {row.row_id}: the history is not the user's first train events")
        if row.chosen_source != "scorer" and row.chosen != train[row.position]:
            problems.add("other event", f"row {row.row_id}: {row.chosen} is not the train event after its history")
        for item in sorted(targets[row.user_id].intersection((row.chosen, *row.rejected))):
            role = "chosen" if item == row.chosen else "rejected"
            problems.add("leak", f"row {row.row_id}: {item} is {role} and is a valid or test item of the user")
    problems.raise_any(f"The preference data {what}", hint="make it anew from this data with llmrec prefer")
