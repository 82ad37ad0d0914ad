"""The prompts of a GRPO stage: a user's train history and the event behind it, as a row that carries its own target.

All rows of all epochs are laid out beforehand, shuffled per epoch, so that a resumed run sees the rows that an
uninterrupted one would have seen (as in `llmrec.train.batches`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from llmrec.data.split import Split
from llmrec.errors import InputError
from llmrec.prompts.renderer import Renderer
from llmrec.train.grpo.config import GRPOStageConfig
from llmrec.train.preference.contexts import Drops, select_contexts

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class Prompt:
    """A train event to be recommended.

    Attributes:
        number: of the prompt, the id of its draws.
        row_id: ``user_id:position``.
        prompt_ids: (n,) token ids in the serving form.
        target: item id of the event.
        history: item ids before it, oldest first, that have a SID.
        continuation: item ids from the target on, in train.
    """

    number: int
    row_id: str
    prompt_ids: np.ndarray
    target: str
    history: tuple[str, ...]
    continuation: tuple[str, ...]

    @property
    def columns(self) -> dict[str, Any]:
        """What the data set's row and the rewards see."""
        return {
            "number": self.number,
            "row_id": self.row_id,
            "prompt_ids": self.prompt_ids.tolist(),
            "target": self.target,
            "history": list(self.history),
            "continuation": list(self.continuation),
        }


@dataclass(frozen=True)
class Prompts:
    """All prompts of a stage.

    Attributes:
        prompts: in the order of the split.
        dropped: train events that give none, by reason.
    """

    prompts: tuple[Prompt, ...]
    dropped: Mapping[str, int]

    def rows(self, count: int, seed: int) -> Dataset:
        """`count` rows: epoch after epoch, each in an order of its own."""
        from datasets import Dataset

        order: list[int] = []
        epoch = 0
        while len(order) < count:
            order += np.random.default_rng([seed, epoch]).permutation(len(self.prompts)).tolist()
            epoch += 1
        return Dataset.from_list([self.prompts[place].columns for place in order[:count]])


def build_prompts(config: GRPOStageConfig, renderer: Renderer, split: Split, *, window: int) -> Prompts:
    """Choose the events and render their histories.

    Args:
        split: only ``s_1..s_{n-2}`` of each user is looked at.
        window: items of the history in the prompt.

    Raises:
        InputError: no event is left.
    """
    drops = Drops()
    contexts = select_contexts(
        split,
        renderer.table,
        drops,
        users=config.users,
        recent_events=config.recent_events,
        min_history=config.min_history,
    )
    known = set(renderer.table.item_ids)
    prompts: list[Prompt] = []
    for context in contexts:
        if config.rollout.exclude_history and context.chosen in context.history:
            drops.rows["the target is in the history, which cannot be drawn"] += 1
            continue
        row = renderer.sequence(context.history, window=window, max_length=config.max_length)
        history = tuple(item for item in context.history if item in known)
        continuation = (context.chosen, *context.later)
        prompts.append(Prompt(len(prompts), context.row_id, row.input_ids, context.chosen, history, continuation))
    dropped = {reason: count for reason, count in drops.rows.items() if count}
    if not prompts:
        told = "; ".join(f"{count:,} {reason}" for reason, count in dropped.items())
        raise InputError(
            f"No train event can be a prompt of this stage{': ' + told if told else ''}.",
            hint="lower min_history, or set rollout.exclude_history: false for data with repeats",
        )
    return Prompts(tuple(prompts), dropped)
