"""Rewards by what an item is like: they pay the target most, and otherwise what they say."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest
from pydantic import ValidationError

from llmrec.errors import InputError
from llmrec.testing.reward_conformance import RewardConformance, reward_context, reward_table, sid_ids
from llmrec.train.rewards.base import Reward
from llmrec.train.rewards.diversity import Diversity, DiversityConfig
from llmrec.train.rewards.item_value import percentiles
from llmrec.train.rewards.novelty import Novelty
from llmrec.train.rewards.popularity import PopularityOnly
from llmrec.train.rewards.popularity_debias import PopularityDebias
from llmrec.train.rewards.scored import Preference, Teacher, TeacherConfig


class TestPopularityOnly(RewardConformance):
    def make(self) -> Reward:
        return PopularityOnly(reward_context())

    def gold(self, target: str) -> str:
        return "8"  # the most popular item, whatever the target: this reward is made to be hacked

    def test_the_target_is_not_known(self) -> None:
        assert self.call(self.rollout(0, ["8", "5", "12"])) == pytest.approx([1, np.log(3) / np.log(31), 0])


class TestPopularityDebias(RewardConformance):
    def make(self) -> Reward:
        return PopularityDebias(reward_context())

    def test_only_what_is_above_the_users_level_costs(self) -> None:
        values = dict(zip(self.living(), self.call(self.rollout(0, self.living())), strict=True))
        assert values["12"] == values["4"] == values["9"] == 1  # nobody's items, and those below the history's level
        history_level = (7 + 0) / 10 / 2  # of 10 other living items 7 are below item 3, none below item 4
        assert values["8"] == pytest.approx(1 - (1 - history_level))
        assert self.call(self.rollout(1, ["4", "3"]))[0] == 1


class TestNovelty(RewardConformance):
    def make(self) -> Reward:
        return Novelty(reward_context())

    def test_rare_items_pay_and_known_ones_do_not(self) -> None:
        values = dict(zip(self.living(), self.call(self.rollout(0, self.living())), strict=True))
        events = 64
        assert values["12"] == values["9"] == 1
        assert values["8"] == pytest.approx(np.log(events / 30) / np.log(events))
        assert values["3"] == values["4"] == 0


class TestTeacher(RewardConformance):
    def make(self) -> Reward:
        return Teacher(reward_context())

    def test_the_percentile_of_the_score_pays(self) -> None:
        # history rows 2 and 3: rows are scored by their distance to 2.5; row 5 is retired, row 11 is unknown
        values = dict(zip(self.living(), self.call(self.rollout(0, self.living())), strict=True))
        assert values["3"] == values["4"] == 0.9
        assert values["11"] == pytest.approx(0.1)
        assert values["12"] == 0

    def test_an_unknown_baseline_is_refused(self) -> None:
        with pytest.raises(ValidationError, match="itemknm"):
            TeacherConfig(baseline="itemknm")


class TestPreference(RewardConformance):
    def make(self) -> Reward:
        return Preference(reward_context())

    def test_wrong_scores_are_refused(self) -> None:
        class Wrong:
            def __init__(self, scores: np.ndarray) -> None:
                self._scores = scores

            def scores(self, histories: Sequence[np.ndarray]) -> np.ndarray:
                return self._scores

        for scores, message in ((np.zeros((1, 5)), "shape"), (np.full((1, 12), np.nan), "NaN")):
            reward = Preference(dataclasses.replace(reward_context(), preference=Wrong(scores)))
            with pytest.raises(InputError, match=message):
                reward(**self.rollout(0, ["3"]))


class TestDiversity(RewardConformance):
    def make(self) -> Reward:
        return Diversity(reward_context())

    def test_the_distance_to_the_others_pays(self) -> None:
        # 4 is (0, 1, 0), 3 is (0, 0, 1), 10 is (2, 0, 0)
        assert self.call(self.rollout(0, ["4", "3", "10"])) == pytest.approx([(2 / 3 + 1) / 2, (2 / 3 + 1) / 2, 1])
        assert self.call(self.rollout(0, ["4", "4"])) == [0, 0]
        assert self.call(self.rollout(0, ["5", "5", "4"])) == pytest.approx([1, 1, 1 / 3])
        assert self.call(self.rollout(0, ["4"], [[]])) == [1, 0]


class TestListDiversity(RewardConformance):
    def make(self) -> Reward:
        return Diversity(reward_context(), DiversityConfig(within="list"))

    def ids(self, item_id: str) -> list[int]:
        return sid_ids(item_id, "10", "7")

    def malformed(self) -> list[list[int]]:
        return [*super().malformed(), [*sid_ids("5", "3"), 5]]

    def test_all_pairs_count(self) -> None:
        batch = self.rollout(0, ["3"] * 4)
        batch["completion_ids"] = [sid_ids("4", "3", "10"), sid_ids("3"), sid_ids("3", "3"), sid_ids("5", "4")]
        assert self.call(batch) == pytest.approx([(2 / 3 + 1 + 1) / 3, 0, 0, 1])


def test_lists_pay_the_mean_and_repeats_nothing() -> None:
    reward, of = Novelty(reward_context()), TestNovelty()
    batch = of.rollout(0, ["3"] * 3)
    batch["completion_ids"] = [sid_ids("12", "3"), sid_ids("12", "12"), sid_ids("12", "9")]
    assert reward(**batch) == pytest.approx([0.5, 0.5, 1])


def test_percentiles_of_equal_scores_share_the_lowest_place() -> None:
    scores = np.zeros(12)
    scores[[0, 5]] = 1.0  # row 5 is retired
    scores[11] = -np.inf
    values = percentiles(scores, reward_table())
    assert values[0] == 1
    assert values[1] == pytest.approx(1 / 10)
    assert values[11] == 0
