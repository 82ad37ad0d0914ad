"""The monitor's rules on made-up runs: what raises an alarm, what does not, what stops a run; plots and replay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmrec.train.log import TrainingLog
from llmrec.train.monitor.alarms import RULES, check_rules
from llmrec.train.monitor.plots import save_plots
from llmrec.train.monitor.record import Monitor, drawn_items, held_out_fields, popularity_percentile
from llmrec.train.monitor.thresholds import THRESHOLDS, Thresholds

STEPS = 40


def healthy(steps: int = STEPS, seed: int = 0) -> list[dict[str, Any]]:
    """A run as it should be: reward and held-out metric rise, everything else stays, all with noise."""
    rng = np.random.default_rng(seed)
    start = rng.random(100) * 0.2
    rows = []
    for step in range(steps + 1):
        row: dict[str, Any] = {"step": step, "steps": steps, "seconds": float(step), "tokens": step}
        if step:
            row |= {
                "loss": 0.1 * rng.normal(), "grad_norm": 1.0, "reward": 0.1 + 0.002 * step + 0.01 * rng.normal(),
                "zero_variance": 0.5 + 0.1 * rng.random(), "distinct_items": 8.0,
                "effective_items": 30 + 3 * rng.normal(), "popularity": 0.6 + 0.02 * rng.normal(), "legal_rate": 1.0,
                "legal_mass": 0.8 + 0.02 * rng.normal(), "entropy": 1.5 - 0.01 * step, "kl": 0.002 * step,
                "clip_share": 0.05,
            }  # fmt: skip
        if step % 10 == 0:
            noise = 0.05 * rng.normal(size=100)
            row |= held_out_fields(start + 0.001 * step + (noise if step else 0), start, "NDCG@10")
        rows.append(row)
    return rows


def alarms(rows: list[dict[str, Any]]) -> dict[str, int]:
    return {alarm.name: alarm.step for alarm in Monitor.replay(rows).alarms}


@pytest.mark.parametrize("seed", range(20))
def test_a_healthy_run_raises_no_alarm(seed: int) -> None:
    assert alarms(healthy(seed=seed)) == {}


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("zero_variance", "zero_variance", lambda step: 0.97),
        ("same_items", "effective_items", lambda step: 40 * 0.95**step),
        ("illegal", "legal_mass", lambda step: 0.9 * 0.95**step),
        ("illegal", "legal_rate", lambda step: 0.9),
        ("entropy", "entropy", lambda step: 2 * 0.94**step),
        ("kl", "kl", lambda step: 0.05 * step),
        ("clipping", "clip_share", lambda step: 0.4),
        ("popularity", "popularity", lambda step: 0.5 + 0.01 * step),
    ],
)
def test_each_rule_sees_what_it_is_for_and_nothing_else_does(name: str, field: str, value: Any) -> None:
    rows = healthy()
    for row in rows[1:]:
        row[field] = value(row["step"])
    found = alarms(rows)
    assert set(found) == {name}
    assert found[name] >= THRESHOLDS.window


def fall(rows: list[dict[str, Any]], part: float, error: float) -> None:
    for row in rows[1:]:
        if "held_out" in row:
            row["held_out"] = rows[0]["held_out"] * part
            row["held_out_change_se"] = error


def test_a_rising_reward_beside_a_falling_metric_is_hacking_and_noise_is_not() -> None:
    rows = healthy()
    fall(rows, 0.7, 0.005)
    assert set(alarms(rows)) == {"reward_hacking"}
    noisy = healthy()
    fall(noisy, 0.7, 0.02)
    assert alarms(noisy) == {}
    flat = healthy()
    fall(flat, 0.7, 0.005)
    for row in flat[1:]:
        row["reward"] = 0.1 + 0.01 * (row["step"] % 2)
    assert alarms(flat) == {}


def test_a_collapse_and_a_divergence_stop_the_run() -> None:
    rows = healthy()
    fall(rows, 0.3, 0.005)
    monitor = Monitor.replay(rows)
    assert monitor.stopped_by is not None
    assert (monitor.stopped_by.name, monitor.stopped_by.step) == ("collapsed", 10)
    for field, value, name in (
        ("loss", float("nan"), "not_finite"),
        ("grad_norm", float("inf"), "not_finite"),
        ("kl", 9.0, "diverged"),
    ):
        rows = healthy(5)
        rows[3][field] = value
        stopped = Monitor.replay(rows).stopped_by
        assert stopped is not None
        assert (stopped.name, stopped.step) == (name, 3)


def test_an_alarm_names_figures_cause_and_knob_and_comes_once() -> None:
    rows = healthy()
    for row in rows[1:]:
        row["zero_variance"] = 1.0
    monitor = Monitor()
    new = [alarm for row in rows for alarm in monitor.see(row)]
    assert len(new) == len(monitor.alarms) == 1
    told = str(new[0])
    assert "100% of the groups" in told
    assert "sparse" in told
    assert "prefix depth" in told
    assert "step 8" in told
    assert all(rule.cause and rule.knob for rule in RULES.values())


def test_a_replayed_run_knows_the_same_alarms() -> None:
    rows = healthy()
    for row in rows[1:]:
        row["kl"] = 0.1 * row["step"]
    assert Monitor.replay(rows).alarms == Monitor.replay(Monitor.replay(rows).rows).alarms
    assert check_rules([]) == []


def test_limits_are_fixed_and_reachable_only_in_one_place() -> None:
    assert Thresholds() == THRESHOLDS
    with pytest.raises(AttributeError):
        THRESHOLDS.kl = 2.0  # type: ignore[misc]


def test_effective_items_and_popularity_of_what_is_drawn() -> None:
    percentile = popularity_percentile(np.array([0, 5, 5, 9]))
    np.testing.assert_allclose(percentile, [0.125, 0.5, 0.5, 0.875])
    same = drawn_items([np.array([3, 0])] * 4, [np.array([1.0, 0.0])] * 4, percentile)
    assert same == {"distinct_items": 2.0, "effective_items": 1.0, "popularity": 0.875}
    spread = drawn_items([np.array([i]) for i in range(4)], [np.ones(1)] * 4, percentile)
    assert spread["effective_items"] == pytest.approx(4)
    assert drawn_items([np.zeros(0, int)], [np.zeros(0)], percentile) == {"distinct_items": 0.0, "effective_items": 0.0}


def test_the_plot_is_drawn_from_the_log(tmp_path: Path) -> None:
    rows = healthy()
    fall(rows, 0.7, 0.005)
    log = TrainingLog(tmp_path / "grpo.jsonl", "grpo")
    for row in rows:
        log.add(row)
    save_plots(log.rows(), tmp_path / "grpo.svg")
    drawn = (tmp_path / "grpo.svg").read_text(encoding="utf-8")
    assert drawn.startswith("<?xml")
    assert len(drawn) > 20_000
