"""A reward that can be hacked is caught on a tiny world, and a healthy run raises no alarm."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmrec.data.config import DataConfig
from llmrec.data.dataset import read_data
from llmrec.testing.worlds import write_tiny_folder
from llmrec.train.grpo.stage import GRPOResult
from tests.train.conftest import World, make_world
from tests.train.grpo_world import copied, grpo, learned, settings

LONG = {
    "max_steps": 32, "prompts_per_step": 12, "learning_rate": 6e-4, "sid_learning_rate": 6e-4, "evaluate_steps": 10,
    "valid_users": 120, "save_steps": 100, "beta": 0.0, "anchor": 0.0, "recent_events": None,
}  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Users within genres, some items more popular than others, and a model that SFT has taught."""
    folder = tmp_path_factory.mktemp("hacking")
    data = write_tiny_folder(folder / "data", num_users=120)
    world = make_world(read_data(DataConfig(path=str(data), attributes=["genres"])))
    return learned(world, folder, epochs=16)


def run(world: World, folder: Path, **changes: Any) -> GRPOResult:
    return grpo(copied(world), settings(**{**LONG, **changes}), folder)


def reward(folder: Path) -> np.ndarray:
    rows = [json.loads(line) for line in (folder / "grpo.jsonl").read_text().splitlines()]
    return np.array([row["reward"] for row in rows if "reward" in row])


def test_popularity_alone_is_caught_and_the_start_is_handed_on(trained: World, tmp_path: Path) -> None:
    result = run(trained, tmp_path, rewards={"parts": {"popularity_only": {}}, "normalise": "none"})
    names = {alarm.name for alarm in result.alarms}
    paid = reward(tmp_path)
    assert paid[-8:].mean() > paid[:8].mean()
    assert {"reward_hacking", "popularity"} <= names
    [hacking] = [alarm for alarm in result.alarms if alarm.name == "reward_hacking"]
    assert hacking.step < result.steps
    metric = dict(result.held_out)
    assert metric[result.handed_on] == max(metric.values()) >= metric[0]


def test_a_reward_for_what_users_want_raises_no_alarm(trained: World, tmp_path: Path) -> None:
    result = run(
        trained, tmp_path, rewards={"parts": {"hit": {}, "prefix_depth": {"weight": 0.3}}, "normalise": "none"},
        beta=0.04, anchor=0.1,
    )  # fmt: skip
    paid = reward(tmp_path)
    assert paid[-8:].mean() > paid[:8].mean()
    assert result.alarms == ()
    assert result.stopped_by is None
    assert result.steps == 32
    assert result.held_out[-1][1] > 0.8 * result.held_out[0][1]
