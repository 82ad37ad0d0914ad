"""The seam of a reward: TRL's call, read once into completions, targets, histories and groups.

TRL's `GRPOTrainer` (1.16) calls every reward as ``reward(prompts=…, completions=…, completion_ids=…, **columns)`` with
one entry per completion: all columns of the data set and all extra fields of a rollout, each repeated for the group,
besides ``trainer_state``, ``log_extra`` and ``log_metric``. It expects one float (or None: does not apply) each, and
names the reward by its ``__name__``. `Reward` is such a callable. Columns that rewards read:

| column | holds |
|---|---|
| ``target`` | item id of the row's answer |
| ``history`` | item ids before it, oldest first |
| ``row_id`` | what the completions of one group have in common |
| ``log_probability`` | of the completion's item under the policy that wrote it (extra field of the rollout) |
| ``beams`` | item ids found after the completion's thought, best first (extra field of the rollout) |
| ``continuation`` | item ids that followed in train, the target first |

Rewards on groups (`RewardBatch.groups`) need whole groups in one call: keep groups whole across processes.

A reward of one's own is a class like `llmrec.train.rewards.hit.Hit`, or any callable of TRL's signature.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from llmrec.config import Config
from llmrec.errors import InputError
from llmrec.train.rewards.completion import SID, Completion
from llmrec.train.rewards.context import RewardContext

Values = list[float | None]
"""One reward per completion; None where a reward does not apply."""


class RewardConfig(Config):
    """What every reward can be told; a reward without further settings uses it as it is."""

    weight: float = Field(default=1.0, allow_inf_nan=False)
    """Factor in the weighted sum; a negative one turns a reward into a penalty."""


@dataclass(frozen=True, eq=False)
class RewardBatch:
    """A call's completions and what belongs to them; every property has one entry per completion."""

    context: RewardContext
    completions: tuple[Completion, ...]
    columns: Mapping[str, Sequence[Any]]

    def __len__(self) -> int:
        return len(self.completions)

    @cached_property
    def targets(self) -> list[int]:
        """Table rows of column ``target``."""
        return [self.context.table.row(item_id) for item_id in self.columns["target"]]

    @cached_property
    def target_sids(self) -> list[SID]:
        """SIDs of column ``target``."""
        return [self.context.sid(row) for row in self.targets]

    @cached_property
    def histories(self) -> list[np.ndarray]:
        """Table rows of column ``history``, oldest first; one array shared by the completions of a group."""
        rows: dict[tuple[str, ...], np.ndarray] = {}
        found = []
        for history in self.columns["history"]:
            key = tuple(history)
            if key not in rows:
                rows[key] = np.array([self.context.table.row(item_id) for item_id in key], dtype=np.int64)
            found.append(rows[key])
        return found

    @cached_property
    def groups(self) -> list[np.ndarray]:
        """Places of the completions of each group (equal ``row_id``), ascending."""
        places: dict[Any, list[int]] = {}
        for place, row_id in enumerate(self.columns["row_id"]):
            places.setdefault(row_id, []).append(place)
        return [np.array(group) for group in places.values()]

    @cached_property
    def answers(self) -> list[SID | None]:
        """The first SID of every legal completion; None where a completion is malformed or names no living item."""
        return [completion.sids[0] if completion.legal else None for completion in self.completions]


class Reward(ABC):
    """One reward. A subclass says what it reads and implements `score`.

    Raises:
        InputError: the context lacks what the reward needs.
    """

    name: ClassVar[str]
    """As recipes and logs call it."""
    config_class: ClassVar[type[RewardConfig]] = RewardConfig
    needs: ClassVar[tuple[str, ...]] = ()
    """Fields of `RewardContext` that must be there."""
    reads: tuple[str, ...] = ("target",)
    """Columns that must be there."""

    def __init__(self, context: RewardContext, config: Any = None) -> None:
        self.context = context
        self.config: Any = self.config_class() if config is None else config
        self.__name__ = self.name
        known = vars(context)
        if missing := [field for field in self.needs if known[field] is None]:
            raise InputError(
                f"The reward {self.name!r} needs {' and '.join(missing)}, which this context does not have.",
                hint="build the context for the rewards of the run (llmrec.train.rewards.build.build_context)",
            )

    @abstractmethod
    def score(self, batch: RewardBatch) -> Sequence[float | None]:
        """One value per completion of `batch`."""

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]],
        **columns: Any,
    ) -> Values:
        """TRL's call; `prompts` and `completions` (text) are not read.

        Raises:
            InputError: a column is missing, an item is not in the table, or the reward gave nonsense.
        """
        if missing := [column for column in self.reads if column not in columns]:
            raise InputError(
                f"The reward {self.name!r} reads the column{'s' if len(missing) > 1 else ''} {', '.join(missing)}, "
                f"which the rows do not have.",
                hint="columns come from the data set, or as extra fields from the rollout; docs/rewards.md lists them",
            )
        read = {column: columns[column] for column in self.reads}
        for column, values in read.items():
            if len(values) != len(completion_ids):
                raise InputError(f"Column {column!r} has {len(values)} entries for {len(completion_ids)} completions.")
        batch = RewardBatch(self.context, tuple(map(self.context.reader.read, completion_ids)), read)
        return checked(self.name, self.score(batch), len(completion_ids))


def checked(name: str, values: Sequence[float | None], count: int) -> Values:
    """`values` as floats, if they are one finite number (or None) per completion.

    TRL would take NaN for "does not apply" and hide it.

    Raises:
        InputError: a wrong length, NaN or infinity.
    """
    rewards = [None if value is None else float(value) for value in values]
    if len(rewards) != count:
        raise InputError(f"The reward {name!r} gave {len(rewards)} values for {count} completions.")
    if wrong := [place for place, value in enumerate(rewards) if value is not None and not math.isfinite(value)]:
        raise InputError(
            f"The reward {name!r} is {rewards[wrong[0]]} for {len(wrong)} of {count} completions, the first at place "
            f"{wrong[0]}.",
            hint="return None where a reward does not apply; NaN and infinity are faults",
        )
    return rewards
