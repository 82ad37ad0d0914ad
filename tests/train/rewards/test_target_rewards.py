"""Rewards that know the target: depth, rank, lists."""

from __future__ import annotations

from functools import cache
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmrec.errors import InputError
from llmrec.metrics import per_user_metrics, ranks_from_lists
from llmrec.testing.reward_conformance import (
    CLOSING_IDS,
    RETIRED,
    SHARED,
    WORD_ID,
    RewardConformance,
    reward_context,
    reward_table,
    sid_ids,
)
from llmrec.train.rewards.base import Reward
from llmrec.train.rewards.best_beam import BestBeam, BestBeamConfig
from llmrec.train.rewards.ndcg import ListNDCG, ListNDCGConfig
from llmrec.train.rewards.prefix_depth import PrefixDepth
from llmrec.train.rewards.rank import RankAware
from llmrec.train.rewards.subsequence import CommonSubsequence, common_subsequence
from llmrec.train.rewards.text_similarity import TextSimilarity


class TestPrefixDepth(RewardConformance):
    def make(self) -> Reward:
        return PrefixDepth(reward_context())

    def test_levels_pay_from_the_first_on(self) -> None:
        # the target 5 is (0, 1, 2); 12 is (2, 1, 0) and shares a later level alone
        assert self.call(self.rollout(0, ["5", "4", "1", "12"])) == pytest.approx([1, 2 / 3, 1 / 3, 0])


class TestRankAware(RewardConformance):
    def make(self) -> Reward:
        return RankAware(reward_context())

    def test_sure_negatives_cost_most(self) -> None:
        batch = self.rollout(0, ["3", "5", "4", "7"], [[]])
        batch["log_probability"] = [-3.0, -2.0, -1.0, -4.0, -0.5]
        discount = 1 / np.log2([2, 3, 4, 5])
        expected = [-discount[2], 1, -discount[0], -discount[3]] / np.array([discount.sum(), 1, *[discount.sum()] * 2])
        assert self.call(batch) == pytest.approx([*expected, -1])

    def test_without_a_hit_no_negative_is_worse(self) -> None:
        assert self.call(self.rollout(0, ["3", "4"], [[]])) == [0, 0, -1]

    def test_one_item_twice_has_one_rank(self) -> None:
        batch = self.rollout(0, ["5", "3", "3"])
        batch["log_probability"] = [-2.0, -1.0, -1.0]
        values = self.call(batch)
        assert values[1] == values[2] == pytest.approx(-1 / (1 + 1 / np.log2(3)))

    def test_nan_is_refused(self) -> None:
        with pytest.raises(InputError, match="NaN"):
            self.call(self.rollout(0, ["3"]) | {"log_probability": [float("nan")]})


class TestListNDCG(RewardConformance):
    def make(self) -> Reward:
        return ListNDCG(reward_context())

    def of(self, target: str, *items: str, top_k: int = 10) -> Any:
        batch = self.rollout(0, ["3"]) | {"target": [target], "completion_ids": [sid_ids(*items)]}
        return ListNDCG(reward_context(), ListNDCGConfig(top_k=top_k))(**batch)[0]

    @given(st.permutations([item for item in reward_table().item_ids if item not in ("2", RETIRED)]), st.data())
    def test_equals_the_evaluation(self, items: list[str], data: st.DataObject) -> None:
        target = data.draw(st.sampled_from(items))
        row = reward_table().row
        buckets = [[row(shared) for shared in SHARED] if item in SHARED else [row(item)] for item in items]
        placement = ranks_from_lists([buckets], np.array([row(target)]))
        assert self.of(target, *items) == pytest.approx(per_user_metrics(placement)["NDCG@10"][0])

    def test_repeats_and_illegal_sids_take_places(self) -> None:
        assert self.of("5", "3", "3", RETIRED, "5") == pytest.approx(1 / np.log2(5))
        assert self.of("5", "3", "5", top_k=1) == 0


class TestCommonSubsequence(RewardConformance):
    def make(self) -> Reward:
        return CommonSubsequence(reward_context())

    def test_the_longer_list_counts(self) -> None:
        batch = self.rollout(0, ["3"] * 4)
        batch["completion_ids"] = [sid_ids("5", "3", "8"), sid_ids("5", "8"), sid_ids("8", "5"), sid_ids(*"53789")]
        batch["continuation"] = [["5", "3", "8"]] * 4
        assert self.call(batch) == pytest.approx([1, 2 / 3, 1 / 3, 3 / 5])

    def test_an_empty_continuation_is_refused(self) -> None:
        with pytest.raises(InputError, match="empty continuation"):
            self.call(self.rollout(0, ["3"]) | {"continuation": [[]]})


_codes = st.lists(st.tuples(st.integers(0, 3)), max_size=6)


@given(_codes, _codes)
def test_common_subsequence_equals_trying_all(one: list[Any], other: list[Any]) -> None:
    def all_of(sids: list[Any]) -> set[tuple[Any, ...]]:
        return {chosen for size in range(len(sids) + 1) for chosen in combinations(sids, size)}

    assert common_subsequence(one, other) == max(map(len, all_of(one) & all_of(other)))


class TestBestBeam(RewardConformance):
    thought = True

    def make(self) -> Reward:
        return BestBeam(reward_context(thought=True))

    def ids(self, item_id: str) -> list[int]:
        return [WORD_ID, *CLOSING_IDS]

    def extras(self, item_id: str, place: int) -> dict[str, Any]:
        return {"beams": ["10", item_id]}

    def malformed(self) -> list[list[int]]:
        return [[], [WORD_ID], CLOSING_IDS[:1] * 3, [*CLOSING_IDS, *sid_ids("5")[:2]], sid_ids("5")]

    def test_the_best_beam_pays(self) -> None:
        batch = self.rollout(0, ["3", "5", "4"], [[WORD_ID]])
        assert self.call(batch) == pytest.approx([1 / 3, 1, 2 / 3, 0])
        assert BestBeam(reward_context(thought=True), BestBeamConfig(top_k=1))(**batch) == [0, 0, 0, 0]
        assert self.call(batch | {"beams": [[]] * 4}) == [0, 0, 0, 0]


class TestTextSimilarity(RewardConformance):
    def make(self) -> Reward:
        return TextSimilarity(reward_context())

    def test_equals_the_cosine(self) -> None:
        vectors = _vectors()
        items = self.living()
        for item, value in zip(items, self.call(self.rollout(0, items)), strict=True):
            row = reward_table().row(item)
            rows = [0, 1] if item in SHARED else [row]
            expected = np.mean([max(0.0, float(vectors[each] @ vectors[4])) for each in rows])
            assert value == pytest.approx(expected)


@cache
def _vectors() -> np.ndarray:
    vectors = reward_context().text_vectors
    assert vectors is not None
    return vectors
