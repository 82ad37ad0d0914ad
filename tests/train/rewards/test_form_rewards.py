"""Rewards about form: legal, format, path consistency, true thoughts."""

from __future__ import annotations

from typing import Any

import pytest

from llmrec.errors import InputError
from llmrec.testing.reward_conformance import (
    CLOSING_IDS,
    EOS_ID,
    RETIRED,
    WORD_ID,
    RewardConformance,
    reward_context,
    sid_ids,
)
from llmrec.train.rewards.answer_format import AnswerFormat, AnswerFormatConfig
from llmrec.train.rewards.base import Reward
from llmrec.train.rewards.grounded import Grounded
from llmrec.train.rewards.legal import Legal
from llmrec.train.rewards.path_consistency import PathConsistency, PathConsistencyConfig


class TestLegal(RewardConformance):
    def make(self) -> Reward:
        return Legal(reward_context())

    def test_the_share_of_legal_sids_pays(self) -> None:
        batch = self.rollout(0, ["3", "3", "3"])
        batch["completion_ids"] = [sid_ids("3", RETIRED), [*sid_ids("3"), WORD_ID], sid_ids("3", "4")]
        assert self.call(batch) == [0.5, 0, 1]


class TestAnswerFormat(RewardConformance):
    def make(self) -> Reward:
        return AnswerFormat(reward_context())

    def test_the_number_of_items_counts(self) -> None:
        batch = self.rollout(0, ["3", "3", "3"])
        batch["completion_ids"] = [sid_ids("3"), sid_ids("3", RETIRED), [*sid_ids("3"), EOS_ID, WORD_ID]]
        assert self.call(batch) == [1, 0, 1]
        assert AnswerFormat(reward_context(), AnswerFormatConfig(num_items=2))(**batch) == [0, 1, 0]

    def test_a_bare_thought_can_be_what_is_asked_for(self) -> None:
        reward = AnswerFormat(reward_context(thought=True), AnswerFormatConfig(num_items=0))
        batch = self.rollout(0, ["3"] * 3)
        batch["completion_ids"] = [[WORD_ID, *CLOSING_IDS], [WORD_ID], [*CLOSING_IDS, *sid_ids("3")]]
        assert reward(**batch) == [1, 0, 0]


class TestGrounded(RewardConformance):
    thought = True

    def make(self) -> Reward:
        return Grounded(reward_context(thought=True))

    def ids(self, item_id: str) -> list[int]:
        return [WORD_ID, *CLOSING_IDS, *sid_ids(item_id)]

    def test_the_share_of_true_statements_pays_whatever_is_answered(self) -> None:
        batch = self.rollout(0, ["3"] * 4)
        half, silent, open_end = [WORD_ID, 6, *CLOSING_IDS], [*CLOSING_IDS, *sid_ids("5")], [WORD_ID]
        batch["completion_ids"] = [[WORD_ID, *CLOSING_IDS, *sid_ids(RETIRED)], half, silent, open_end]
        assert self.call(batch) == [1, 0.5, 0, 0]


class TestPathConsistency(RewardConformance):
    thought = True

    def make(self) -> Reward:
        return PathConsistency(reward_context(thought=True))

    def ids(self, item_id: str) -> list[int]:
        return [WORD_ID, *sid_ids("10")[:1], *sid_ids(item_id)[:2], WORD_ID, *CLOSING_IDS, *sid_ids(item_id)]

    def malformed(self) -> list[list[int]]:
        return [[*sid_ids("5")[:2], *ids] for ids in super().malformed()]

    def test_the_last_step_binds(self) -> None:
        said = {
            "deep": sid_ids("5")[:2],
            "shallow": sid_ids("5")[:1],
            "nothing": [],
            "other": [*sid_ids("5")[:2], *sid_ids("8")[:1]],
            "back": [*sid_ids("8")[:1], *sid_ids("5")[:2]],
            "whole": sid_ids("5"),
        }
        batch = self.rollout(0, ["5"] * len(said))
        batch["completion_ids"] = [[*ids, *CLOSING_IDS, *sid_ids("5")] for ids in said.values()]
        assert self.call(batch) == [1, 0.5, 0, 0, 1, 1]

    def test_the_answer_may_be_the_first_beam(self) -> None:
        reward = PathConsistency(reward_context(thought=True), PathConsistencyConfig(answer="beams"))
        batch: dict[str, Any] = self.rollout(0, ["5"] * 3)
        batch["completion_ids"] = [[*sid_ids("5")[:2], *CLOSING_IDS]] * 3
        assert reward(**batch, beams=[["5", "3"], ["3", "5"], []]) == [1, 0, 0]
        with pytest.raises(InputError, match="beams"):
            reward(**batch)

    def test_without_thoughts_it_is_refused(self) -> None:
        with pytest.raises(InputError, match="closing_ids"):
            PathConsistency(reward_context())
