"""Reading completions, the context, and the checks around a reward."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from llmrec.errors import DataError, InputError
from llmrec.testing.reward_conformance import (
    CLOSING_IDS,
    EOS_ID,
    SHARED,
    WORD_ID,
    RewardConformance,
    reward_context,
    reward_table,
    sid_ids,
)
from llmrec.train.rewards.base import Reward, RewardBatch, checked
from llmrec.train.rewards.completion import CompletionReader, common_depth
from llmrec.train.rewards.context import RewardContext
from llmrec.train.rewards.hit import Hit, HitConfig


class TestHit(RewardConformance):
    def make(self) -> Reward:
        return Hit(reward_context())

    def test_only_the_target_pays(self) -> None:
        items = self.living()
        assert self.call(self.rollout(0, items)) == [float(item == "5") for item in items]
        assert self.call(self.rollout(2, list(SHARED))) == [1.0, 1.0]

    def test_a_list_is_looked_at_as_far_as_top_k(self) -> None:
        batch = self.rollout(0, ["3", "5"])
        batch["completion_ids"] = [sid_ids("3", "5"), sid_ids("5", "3")]
        assert Hit(reward_context())(**batch) == [0.0, 1.0]
        assert Hit(reward_context(), HitConfig(top_k=2))(**batch) == [1.0, 1.0]


def test_completions_are_read() -> None:
    reader = CompletionReader(reward_table(), stop_ids=[EOS_ID])
    two = reader.read([*sid_ids("5", "1"), EOS_ID, WORD_ID])
    assert two.sids == ((0, 1, 2), (0, 0, 0))
    assert two.rows == ((4,), (0, 1))
    assert two.well_formed
    assert two.legal
    assert reader.read(np.array(sid_ids("6"))).rows == ((),)
    words = reader.read([WORD_ID, *sid_ids("5"), *sid_ids("3")[:1]])
    assert words.sids == ((0, 1, 2),)
    assert not words.well_formed


def test_thoughts_are_read() -> None:
    reader = CompletionReader(reward_table(), CLOSING_IDS)
    first, second = sid_ids("5")[:2], sid_ids("8")[:1]
    said = [WORD_ID, *first, *second, WORD_ID]
    thought = reader.read([*said, *CLOSING_IDS, *sid_ids("3")])
    assert thought.thought == tuple(said)
    assert thought.prefixes == ((0, 1), (1,))
    assert thought.sids == ((0, 0, 1),)
    assert thought.legal
    bare = reader.read([*said, *CLOSING_IDS])
    assert bare.well_formed
    assert not bare.legal
    unclosed = reader.read(sid_ids("3"))
    assert unclosed.sids == ()
    assert not unclosed.well_formed


def test_common_depth() -> None:
    assert common_depth((1, 2, 3), (1, 2, 4)) == 2
    assert common_depth((1, 2), (1, 2, 4)) == 2
    assert common_depth((0,), (1, 2, 4)) == 0


def test_a_table_without_token_ids_is_refused() -> None:
    with pytest.raises(InputError, match="token ids"):
        CompletionReader(dataclasses.replace(reward_table(), token_ids=None))


def test_problems_of_a_context_come_together() -> None:
    with pytest.raises(DataError, match="negative") as caught:
        RewardContext(reward_table(), train_counts=np.full(12, -1), text_vectors=np.full((12, 2), np.nan))
    assert "text_vectors holds NaN" in str(caught.value)


class Faulty(Reward):
    """Gives what it is told to give."""

    name = "faulty"
    needs = ("teacher",)
    values: list[float | None] = []  # noqa: RUF012 - set by a test

    def score(self, batch: RewardBatch) -> list[float | None]:
        return self.values


def test_nonsense_is_refused() -> None:
    reward = Faulty(reward_context())
    batch = {"prompts": ["", ""], "completions": ["", ""], "completion_ids": [[], []], "target": ["5", "5"]}
    for values, message in (([1.0], "1 values for 2"), ([0.0, float("nan")], "nan"), ([float("inf"), 0.0], "inf")):
        reward.values = values
        with pytest.raises(InputError, match=message):
            reward(**batch)
    reward.values = [None, 1]
    assert reward(**batch) == [None, 1.0]
    assert checked("x", [np.float32(1)], 1) == [1.0]
    with pytest.raises(InputError, match="needs teacher"):
        Faulty(RewardContext(reward_table()))
    with pytest.raises(InputError, match="Column 'target' has 1 entries for 2"):
        reward(**(batch | {"target": ["5"]}))
    with pytest.raises(InputError, match="'99'"):
        Hit(reward_context())(**(batch | {"target": ["99", "5"]}))
