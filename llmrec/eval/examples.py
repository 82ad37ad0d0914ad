"""A few judged users as people see them: what they had, what was recommended, what they took next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llmrec.data.dataset import Dataset
from llmrec.eval.config import Mode
from llmrec.eval.judged import by_hash
from llmrec.eval.result import EvalResult


@dataclass(frozen=True)
class Titled:
    """An item of an example."""

    item_id: str
    title: str
    is_target: bool = False


@dataclass(frozen=True)
class ExampleUser:
    """One judged user.

    Attributes:
        user_id: who.
        history: the latest events before the target, oldest first.
        history_length: how many there are in all.
        recommended: best first.
        target: what the user took next.
        place: of the target in the whole list, 0 if it is not there.
    """

    user_id: str
    history: tuple[Titled, ...]
    history_length: int
    recommended: tuple[Titled, ...]
    target: Titled
    place: int


def example_users(
    result: EvalResult,
    dataset: Dataset,
    *,
    model: str | None = None,
    mode: Mode | None = None,
    count: int = 5,
    shown: int = 5,
    user_ids: Sequence[str] | None = None,
) -> list[ExampleUser]:
    """The first `count` judged users by hash (not picked by how well they went), or those of `user_ids`.

    Args:
        result: the evaluation.
        dataset: the data it was made on.
        model: whose lists; the first one by default.
        mode: the main mode by default.
        count: users.
        shown: events and recommendations per user.
        user_ids: judged users to show instead.
    """
    mode, model = mode or result.modes[0], model or result.models[0]
    users = result.user_ids()
    chosen = [users.index(one) for one in user_ids] if user_ids else by_hash(tuple(users))[:count]
    lists = result.recommendations(model, mode)
    rows = result.per_user.filter(model=model, mode=mode)
    split = dataset.split
    row_of = {user: row for row, user in enumerate(split.users)}
    part = result.summary["split"]

    def titled(item_id: str, target: str = "") -> Titled:
        title = dataset.catalog.title(item_id) if item_id in dataset.catalog else f"item {item_id}"
        return Titled(item_id, title, item_id == target)

    examples = []
    for place in np.asarray(chosen).tolist():
        history = split.history(row_of[users[place]], part)
        target = rows["target"][place]
        examples.append(
            ExampleUser(
                users[place],
                tuple(titled(split.items[item]) for item in history[-shown:]),
                len(history),
                tuple(titled(item_id, target) for item_id in lists[place][:shown]),
                titled(target),
                rows["first"][place],
            )
        )
    return examples
