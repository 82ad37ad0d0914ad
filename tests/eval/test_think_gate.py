"""The gate recommends thinking only when a paired test says so, and counts what each arm costs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmrec.config import build_config
from llmrec.data.dataset import Dataset
from llmrec.decode.thought import margin
from llmrec.errors import ConfigError
from llmrec.eval.config import EvalConfig
from llmrec.eval.generate import rank_with_model
from llmrec.eval.judged import Judged
from llmrec.eval.ranker import quiet
from llmrec.eval.think_gate import ThinkGateConfig, decide, gate_arms
from llmrec.metrics import per_user_metrics

RNG = np.random.default_rng(0)
PLAIN = RNG.random(200)
BETTER = PLAIN + np.abs(RNG.normal(0.1, 0.05, 200))


@pytest.mark.parametrize(
    ("arms", "settings", "serve"),
    [
        ({"think": BETTER}, {}, "think"),
        ({"think": 2 * PLAIN - BETTER}, {}, "plain"),  # significantly worse
        ({"think": PLAIN}, {}, "plain"),  # a tie
        ({"think": PLAIN + RNG.normal(0.001, 0.5, 200)}, {}, "plain"),  # noise
        ({"think": BETTER}, {"min_gain": 0.5}, "plain"),  # better, and not by enough
        ({"think": BETTER, "adaptive": BETTER + 0.1}, {}, "adaptive"),
        ({"think": 2 * PLAIN - BETTER, "adaptive": BETTER}, {}, "adaptive"),
    ],
)
def test_thinking_is_served_only_where_it_is_better(arms: Any, settings: Any, serve: str) -> None:
    verdict = decide({"plain": PLAIN, **arms}, ThinkGateConfig(**settings))
    assert verdict.serve == serve
    assert "p = " in verdict.reason
    assert set(verdict.tests) == set(arms)


def test_two_arms_share_the_error_rate() -> None:
    one = decide({"plain": PLAIN, "think": BETTER}, ThinkGateConfig())
    two = decide({"plain": PLAIN, "think": BETTER, "adaptive": PLAIN}, ThinkGateConfig())
    assert two.tests["think"]["p_holm"] == pytest.approx(2 * one.tests["think"]["p_holm"])


@pytest.fixture(scope="module")
def found(dataset: Dataset, make_world: Callable[..., Any]) -> Any:
    world = make_world()
    searcher, table, judged = world.searcher, world.renderer.table, Judged.choose(dataset.split, "valid", 8)
    leads = []
    for history in judged.histories:
        items = [dataset.split.items[item] for item in history]
        prompt = world.renderer.sequence(items, window=6).input_ids
        rows = np.array([table.row(item) for item in items])
        leads.append(margin(searcher.beam([prompt], num_beams=20, top_k=20, excluded=[rows])[0]))
    config = ThinkGateConfig(users=8, max_thought_tokens=10, sure_margin=float(np.median(leads)))
    return world, gate_arms(searcher, world.renderer, dataset, config, stop_ids=[], window=6)


def test_the_arms_are_compared_on_the_same_users_with_their_compute(found: Any, dataset: Dataset) -> None:
    world, result = found
    arms = result.summary["arms"]
    assert list(arms) == ["plain", "think", "adaptive"]
    assert result.per_user.columns == ["user_id", "plain", "think", "adaptive"]
    judged = Judged.choose(dataset.split, "valid", 8)
    assert result.per_user["user_id"].to_list() == list(judged.user_ids)
    # plain is what the evaluation says, and thinking is paid for
    config = EvalConfig(part="valid", modes=("filtered",), baselines={}, exact_users=0)
    ranked = rank_with_model(world.searcher, world.renderer, judged, config, quiet, window=6)
    expected = per_user_metrics(ranked.rankings["filtered"].placement)["NDCG@10"]
    np.testing.assert_allclose(result.per_user["plain"], expected)
    cost = {name: arm["compute_per_user"] for name, arm in arms.items()}
    assert cost["plain"]["forwards"] < 5
    assert cost["think"]["forwards"] > cost["plain"]["forwards"] + 10
    assert cost["think"]["tokens"] > cost["plain"]["tokens"] + 10
    assert cost["think"]["cpu_s"] > 0
    assert all(arm["invalid"] == 0 for arm in arms.values())


def test_an_adaptive_budget_leaves_sure_users_as_they_are(found: Any) -> None:
    _, result = found
    ends = result.summary["arms"]["adaptive"]["thoughts"]["ends"]
    assert 0 < ends["sure"] < 8, ends
    assert sum(ends.values()) == 8
    assert "sure" not in result.summary["arms"]["think"]["thoughts"]["ends"]
    assert result.summary["arms"]["think"]["thoughts"]["grounding"]["texts"] == 8
    frame = result.per_user
    either = (frame["adaptive"] == frame["plain"]) | (frame["adaptive"] == frame["think"])
    assert either.all()


def test_the_gate_is_written_as_json(found: Any, tmp_path: Path) -> None:
    _, result = found
    path = result.save(tmp_path / "gate")
    told = json.loads(path.read_text())
    assert told["serve"] in ("plain", "think", "adaptive")
    assert told == result.summary
    assert (tmp_path / "gate" / "think_gate.parquet").is_file()


def test_settings_that_cannot_decide_are_refused() -> None:
    for bad in ({"metric": "NDCG@7"}, {"alpha": 1e-5}, {"num_beams": 5}, {"usres": 3}):
        with pytest.raises(ConfigError):
            build_config(ThinkGateConfig, bad, source="test")
