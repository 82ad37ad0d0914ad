"""What every reward must do: subclass `RewardConformance` in a test and say how to make one.

Example:
    >>> class TestMine(RewardConformance):
    ...     def make(self):
    ...         return Mine(reward_context())
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
from typing import Any, ClassVar

import numpy as np
import pytest

from llmrec.errors import LLMRecError
from llmrec.prompts.grounding import Grounding, Untrue
from llmrec.sid_vocab.table import SIDTable
from llmrec.train.rewards.base import Reward, Values
from llmrec.train.rewards.context import RewardContext

CLOSING_IDS, EOS_ID, WORD_ID = (7, 8), 0, 5
RETIRED, SHARED, UNUSED_SID = "6", ("1", "2"), (2, 2, 2)


def reward_table() -> SIDTable:
    """Twelve items of three levels: two share a SID, one is retired, most SIDs are unused. Token ids start at 100."""
    codes = [
        (0, 0, 0), (0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 1, 2), (0, 2, 0),
        (1, 0, 0), (1, 0, 1), (1, 1, 1), (2, 0, 0), (2, 0, 2), (2, 1, 0),
    ]  # fmt: skip
    return SIDTable(
        item_ids=tuple(str(row + 1) for row in range(len(codes))),
        codes=np.array(codes, dtype=np.int32),
        codebook_sizes=(3, 3, 3),
        status=np.array([item == RETIRED for item in map(str, range(1, len(codes) + 1))], dtype=np.uint8),
        token_ids=(np.arange(100, 103), np.arange(110, 113), np.arange(120, 123)),
    )


class LinearScorer:
    """Scores of items that depend on the history: near rows score high, and an item that is not known gets -inf."""

    def scores(self, histories: Sequence[np.ndarray]) -> np.ndarray:
        """(len(histories), 12)."""
        rows = np.arange(12)
        scores = np.array([-np.abs(rows - (history.mean() if len(history) else 0.0)) for history in histories])
        scores[:, 11] = -np.inf
        return scores


def true_words(ids: Sequence[int], history: Collection[str]) -> Grounding:
    """Every token is a statement; words are true, and all others not."""
    return Grounding({"item": len(ids)}, tuple(Untrue("item", str(each)) for each in ids if each != WORD_ID))


def reward_context(*, thought: bool = False) -> RewardContext:
    """Everything that a reward may need, over `reward_table`."""
    vectors = np.random.default_rng(0).normal(size=(12, 5))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return RewardContext(
        reward_table(),
        closing_ids=CLOSING_IDS if thought else (),
        stop_ids=frozenset({EOS_ID}),
        train_counts=np.array([9, 1, 4, 0, 2, 7, 3, 30, 1, 2, 5, 0]),
        text_vectors=vectors,
        teacher=LinearScorer(),
        preference=LinearScorer(),
        grounding=true_words,
    )


def sid_ids(*item_ids: str) -> list[int]:
    """Token ids of the SIDs of items, one after the other."""
    table = reward_table()
    return [int(token) for item_id in item_ids for token in table.sid_token_ids()[table.row(item_id)]]


class RewardConformance:
    """The gold answer gets the maximum, values are numbers, illegal answers never pay, order is of no importance."""

    targets: ClassVar[tuple[str, ...]] = ("5", "8", "1")
    """Targets of the rows that are tried; the last one shares its SID."""
    histories: ClassVar[tuple[tuple[str, ...], ...]] = (("3", "4"), (), ("9", "10", "11"))
    thought: ClassVar[bool] = False
    """Whether completions begin with a thought."""
    illegal_never_pays: ClassVar[bool] = True
    """Off for a reward that judges something else than the answer."""

    def make(self) -> Reward:
        """The reward under test; to be overridden."""
        raise NotImplementedError

    def gold(self, target: str) -> str:
        """The item that must get the maximum in a row: the target, unless a reward is blind to it."""
        return target

    def ids(self, item_id: str) -> list[int]:
        """A completion that answers with `item_id`."""
        return sid_ids(item_id)

    def extras(self, item_id: str, place: int) -> dict[str, Any]:
        """Extra fields of the rollout of the completion that answers with `item_id`."""
        return {"log_probability": -0.5 * place - 1}

    def malformed(self) -> list[list[int]]:
        """Completions that hold no legal answer."""
        unused = [int(level[code]) for level, code in zip(reward_table().token_ids or (), UNUSED_SID, strict=True)]
        whole = sid_ids("5")
        answers = [
            [], unused, sid_ids(RETIRED), whole[:2], whole[1:], whole[::-1],
            [WORD_ID, *whole], [*whole, WORD_ID], [*whole, whole[0]], [EOS_ID, *whole],
        ]  # fmt: skip
        return [[*CLOSING_IDS, *answer] for answer in answers] + answers if self.thought else answers

    def rollout(self, number: int, items: Sequence[str], bad: Sequence[list[int]] = ()) -> dict[str, list[Any]]:
        """A group of row `number`: a completion per item, then the malformed ones."""
        target, history = self.targets[number], self.histories[number]
        ids = [*(self.ids(item_id) for item_id in items), *bad]
        extras = [self.extras(item_id, place) for place, item_id in enumerate([*items, *([items[0]] * len(bad))])]
        count = len(ids)
        return {
            "prompts": ["prompt"] * count,
            "completions": ["text that nobody reads"] * count,
            "completion_ids": ids,
            "target": [target] * count,
            "history": [list(history)] * count,
            "row_id": [number] * count,
            "continuation": [[target]] * count,
            **{name: [extra[name] for extra in extras] for name in extras[0]},
        }

    def call(self, batch: dict[str, list[Any]]) -> Values:
        """The reward, called as TRL calls it."""
        return self.make()(**batch, trainer_state=None, log_extra=print, log_metric=print)

    def living(self) -> list[str]:
        """Every item that may be answered."""
        return [item_id for item_id in reward_table().item_ids if item_id != RETIRED]

    def test_the_gold_answer_gets_the_maximum(self) -> None:
        """Among all items of the catalogue, and among few of them, wherever the gold answer stands in the group."""
        for number, target in enumerate(self.targets):
            gold, items = self.gold(target), self.living()
            for candidates in (items, items[::-1], [gold, "3"], ["12", gold], [gold]):
                values = self.call(self.rollout(number, candidates))
                assert values[candidates.index(gold)] == max(value for value in values if value is not None)

    def test_values_are_numbers(self) -> None:
        """One finite value per completion, malformed ones included; no completion, no value."""
        batch = self.rollout(0, self.living(), self.malformed())
        values = self.call(batch)
        assert len(values) == len(batch["completion_ids"])
        assert all(value is None or np.isfinite(value) for value in values)
        assert self.call({name: [] for name in batch}) == []

    def test_illegal_never_beats_legal(self) -> None:
        """A malformed completion gets at most what the worst legal one gets."""
        if not self.illegal_never_pays:
            pytest.skip("this reward judges something else than the answer")
        items = self.living()
        for number in range(len(self.targets)):
            values = self.call(self.rollout(number, items, self.malformed()))
            legal, bad = values[: len(items)], values[len(items) :]
            assert max(value for value in bad if value is not None) <= min(v for v in legal if v is not None)

    def test_order_does_not_matter(self) -> None:
        """Completions of all groups, shuffled together, keep their values."""
        groups = [self.rollout(number, self.living(), self.malformed()[:2]) for number in range(len(self.targets))]
        batch = {name: [value for group in groups for value in group[name]] for name in groups[0]}
        alone = [value for group in groups for value in self.call(group)]
        order = np.random.default_rng(0).permutation(len(alone))
        shuffled = self.call({name: [values[place] for place in order] for name, values in batch.items()})
        np.testing.assert_allclose(np.array(shuffled, float), np.array(alone, float)[order], rtol=1e-12)

    def test_nothing_given_is_changed(self) -> None:
        """A second call with the same batch gives the same values."""
        batch = self.rollout(0, self.living())
        before = copy.deepcopy(batch)
        assert self.call(batch) == self.call(batch)
        assert batch == before

    def test_missing_columns_are_named(self) -> None:
        """Each column that the reward reads, and no other, must be there."""
        reward, batch = self.make(), self.rollout(0, ["3", "5"])
        needed = {"prompts", "completions", "completion_ids", *reward.reads}
        assert len(reward(**{name: values for name, values in batch.items() if name in needed})) == 2
        for column in reward.reads:
            with pytest.raises(LLMRecError, match=column):
                reward(**{name: values for name, values in batch.items() if name != column})
