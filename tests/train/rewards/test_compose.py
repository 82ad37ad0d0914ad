"""Rewards by name, one's own rewards, the Pareto front."""

from __future__ import annotations

import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmrec.config import build_config
from llmrec.errors import ConfigError, InputError
from llmrec.testing.reward_conformance import reward_context, reward_table, sid_ids
from llmrec.train.rewards.base import Reward, RewardBatch, RewardConfig
from llmrec.train.rewards.compose import REWARDS, RewardsConfig, make_rewards
from llmrec.train.rewards.context import RewardContext
from llmrec.train.rewards.pareto import draw_front, non_dominated, weight_grid


def config(parts: dict[str, Any], normalise: str = "group") -> RewardsConfig:
    return build_config(RewardsConfig, {"parts": parts, "normalise": normalise}, source="recipe")


def test_every_reward_is_made_by_its_name() -> None:
    assert all(reward.name == name for name, reward in REWARDS.items())
    rewards = make_rewards(config({name: {"weight": 0.5} for name in REWARDS}), reward_context(thought=True))
    functions, settings = rewards.trl_arguments()
    assert [function.__name__ for function in functions] == list(REWARDS)
    assert settings == {"reward_weights": [0.5] * len(REWARDS), "multi_objective_aggregation": "normalize_then_sum"}


def test_every_reward_has_a_conformance_test() -> None:
    texts = "".join(path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("test_*.py"))
    made = set(re.findall(r"def make\(self\) -> Reward:\n +return (\w+)\(", texts))
    assert made == {reward.__name__ for reward in REWARDS.values()}


def test_mistakes_come_together() -> None:
    with pytest.raises(ConfigError) as caught:
        config({"prefix_deph": {}, "hit": {"wieght": 1}, "teacher": {"settings": {"shrnk": 1}}})
    for part in ("did you mean 'prefix_depth'", "did you mean 'weight'", "shrnk"):
        assert part in str(caught.value)
    with pytest.raises(ConfigError, match="no reward is named"):
        config({})
    with pytest.raises(InputError, match="needs train_counts"):
        make_rewards(config({"novelty": {}}), RewardContext(reward_table()))


def test_the_needs_of_a_run() -> None:
    assert config({"hit": {}, "novelty": {}, "teacher": {}, "x:y": {}}).needs() == {"train_counts", "teacher"}


def test_parts_have_a_column_per_reward() -> None:
    rewards = make_rewards(config({"hit": {}, "prefix_depth": {"weight": 2}}, "none"), reward_context())
    columns = {"target": ["5", "5"]}
    parts = rewards.parts([sid_ids("5"), sid_ids("4")], **columns)
    np.testing.assert_allclose(parts, [[1, 1], [0, 2 / 3]])
    np.testing.assert_allclose(rewards.total(parts, [np.arange(2)]), [3, 4 / 3])
    assert rewards.parts([], target=[]).shape == (0, 2)


class MarginConfig(RewardConfig):
    base: float = 0.0


class Margin(Reward):
    name = "margin"
    config_class = MarginConfig
    reads = ("margin",)

    def score(self, batch: RewardBatch) -> list[float]:
        return [self.config.base + margin for margin in batch.columns["margin"]]


@pytest.fixture
def shop() -> Iterator[None]:
    module = types.ModuleType("my_shop_rewards")
    vars(module).update(
        Margin=Margin,
        plain=lambda completion_ids, margin, **_: list(margin),
        short=lambda completion_ids, **_: [1.0],
        nothing=3,
    )
    sys.modules["my_shop_rewards"] = module
    yield
    del sys.modules["my_shop_rewards"]


@pytest.mark.usefixtures("shop")
def test_rewards_of_ones_own() -> None:
    parts = {"my_shop_rewards:Margin": {"base": 1, "weight": 2}, "my_shop_rewards:plain": {"weight": 3}, "hit": {}}
    rewards = make_rewards(config(parts, "none"), reward_context())
    assert rewards.weights == (2, 3, 1)
    assert rewards.parts([[], []], margin=[0.5, 1.5], target=["5", "5"]).tolist() == [[1.5, 0.5, 0], [2.5, 1.5, 0]]


@pytest.mark.usefixtures("shop")
@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("my_shop_rewards:none", {}, "cannot be imported"),
        ("no_such_module:x", {}, "cannot be imported"),
        (":x", {}, "cannot be imported"),
        ("my_shop_rewards:nothing", {}, "cannot be called"),
        ("my_shop_rewards:plain", {"base": 1}, "base"),
        ("my_shop_rewards:Margin", {"bas": 1}, "did you mean 'base'"),
    ],
)
def test_a_wrong_reward_of_ones_own(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_rewards(config({name: settings}), reward_context())


@pytest.mark.usefixtures("shop")
def test_a_plain_function_is_checked() -> None:
    rewards = make_rewards(config({"my_shop_rewards:short": {}}), reward_context())
    with pytest.raises(InputError, match="'short' gave 1 values for 2"):
        rewards.parts([[], []])


def test_the_grid_holds_every_mixture_once() -> None:
    grid = weight_grid(("hit", "novelty", "legal"), steps=4)
    assert len(grid) == 15
    assert len({tuple(weights.values()) for weights in grid}) == 15
    assert all(sum(weights.values()) == 1 for weights in grid)
    assert grid[0] == {"hit": 1, "novelty": 0, "legal": 0}
    assert weight_grid(("hit",), steps=3) == [{"hit": 1}]
    with pytest.raises(InputError, match="different names"):
        weight_grid(("hit", "hit"), steps=2)


_values = st.integers(0, 4).map(float)


@given(st.lists(st.tuples(_values, _values, _values), min_size=1, max_size=12))
def test_the_front_is_what_nothing_beats(points: list[tuple[float, float, float]]) -> None:
    rows = [dict(zip("abc", point, strict=True)) for point in points]

    def beats(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
        return one != other and all(mine >= theirs for mine, theirs in zip(one, other, strict=True))

    front = non_dominated(rows, "abc")
    assert set(front) == {i for i, mine in enumerate(points) if not any(beats(other, mine) for other in points)}
    assert [rows[place]["a"] for place in front] == sorted((rows[place]["a"] for place in front), reverse=True)


def test_what_cannot_be_compared_is_named() -> None:
    with pytest.raises(InputError, match=r"row 1: b.*row 2: a"):
        non_dominated([{"a": 1, "b": 1}, {"a": 1}, {"a": float("nan"), "b": 0}], ("a", "b"))


def test_the_front_is_drawn() -> None:
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    rows = [{"NDCG@10": 0.1, "coverage": 0.2}, {"NDCG@10": 0.05, "coverage": 0.6}, {"NDCG@10": 0.04, "coverage": 0.3}]
    assert draw_front(axes, rows, "NDCG@10", "coverage", labels=["hit", "novelty", "both"]) == [0, 1]
    assert axes.get_xlabel() == "NDCG@10"
    assert [text.get_text() for text in axes.texts] == ["hit", "novelty"]
