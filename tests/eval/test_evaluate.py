"""The table: its shape on disk, users by hash, paired tests, slices, comparisons, and known figures."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmrec.config import build_config
from llmrec.errors import ConfigError, InputError, MismatchError
from llmrec.eval.compare import compare
from llmrec.eval.config import EvalConfig
from llmrec.eval.evaluate import evaluate
from llmrec.eval.judged import Judged
from llmrec.eval.paired import paired_tests
from llmrec.eval.result import EvalResult
from llmrec.eval.slices import popularity_groups, slice_masks
from llmrec.metrics import METRICS, Placement, per_user_metrics

KEYS = {
    "dataset", "loo_sha256", "split", "users", "modes", "paired", "invalid", "checked", "duplicates", "seeds",
    "selection", "window", "num_beams", "normalise", "wall_s", "cpu_s",
}  # fmt: skip


def test_eval_json_has_the_agreed_shape(result: Any, saved: Path) -> None:
    summary = json.loads((saved / "eval.json").read_text())
    assert summary.keys() >= KEYS
    assert (summary["dataset"], summary["split"], summary["users"]) == ("tiny", "test", 40)
    assert (summary["window"], summary["num_beams"], summary["normalise"]) == (6, 80, "vocab")
    assert (summary["seeds"], summary["selection"]) == ([3], "nothing")
    assert list(summary["modes"]) == ["filtered", "unfiltered"]
    for models in summary["modes"].values():
        assert list(models) == ["tiny <b>model</b>", "popularity", "itemknn"]
        for metrics in models.values():
            assert list(metrics) == list(METRICS)
            for one in metrics.values():
                assert one.keys() == {"value", "se"}
                assert 0 <= one["value"] <= 1
    assert (summary["invalid"], summary["duplicates"], summary["excluded_violations"]) == (0, 0, 0)
    assert summary["checked"] == 2 * 40 * 20
    assert summary["baselines_left_out"] == ["ease", "sasrec"]
    rows = summary["paired"]
    assert {(row["mode"], row["against"], row["metric"]) for row in rows} == {
        (mode, model, metric)
        for mode in ("filtered", "unfiltered")
        for model in ("popularity", "itemknn")
        for metric in ("NDCG@10", "Recall@10")
    }


def test_saved_results_come_back(result: Any, saved: Path) -> None:
    again = EvalResult.load(saved)
    assert again.summary == result.summary
    assert again.per_user.equals(result.per_user)
    assert again.lists.equals(result.lists)
    for model in result.models:
        for mode in result.modes:
            assert again.values(model, mode)["NDCG@10"].mean() == pytest.approx(again.value(model, "NDCG@10", mode))
    with pytest.raises(InputError, match="holds no evaluation"):
        EvalResult.load(saved / "elsewhere")


def test_users_are_chosen_by_hash(dataset: Any) -> None:
    expected = sorted(dataset.split.users, key=lambda user: hashlib.sha256(user.encode()).hexdigest())[:12]
    judged = Judged.choose(dataset.split, "valid", 12)
    assert sorted(judged.user_ids) == sorted(expected)
    assert judged.rows.tolist() == sorted(judged.rows.tolist())
    assert set(Judged.choose(dataset.split, "test", 5).rows) < set(judged.rows)
    for row, history, target in zip(judged.rows, judged.histories, judged.targets, strict=True):
        assert [*history, target] == dataset.split.sequences[row][:-1].tolist()
    summary = evaluate(dataset, {}, EvalConfig(users=12, baselines={"popularity": {}})).summary
    assert (summary["users"], summary["users_total"]) == (12, 40)
    assert "SHA-256" in summary["users_chosen_by"]
    assert len(Judged.choose(dataset.split, "test", 1000)) == 40


def test_fewer_users_have_the_same_places(dataset: Any, result: Any) -> None:
    some = evaluate(dataset, {}, EvalConfig(users=9, baselines={"itemknn": {}}))
    everybody = result.per_user.filter(model="itemknn")
    ours = some.per_user.join(everybody, on=["mode", "user_id"], suffix="_all")
    assert ours.height == 18
    assert ours["first"].equals(ours["first_all"], check_names=False)


def test_paired_tests() -> None:
    rng = np.random.default_rng(0)
    good = per_user_metrics(Placement.of_ranks(rng.integers(1, 8, 200)))
    poor = per_user_metrics(Placement.of_ranks(rng.integers(8, 60, 200)))
    shared = per_user_metrics(Placement(rng.integers(8, 12, 200), np.full(200, 3)))
    rows = paired_tests({"filtered": {"a": good, "same": good, "poor": poor, "shared": shared}}, seed=0)
    by = {(row["against"], row["metric"]): row for row in rows}
    assert by["same", "NDCG@10"]["p_value"] == by["same", "Recall@10"]["p_value"] == 1
    assert by["same", "NDCG@10"]["difference"] == 0
    assert by["poor", "NDCG@10"]["p_holm"] < 0.01
    assert by["poor", "NDCG@10"]["difference"] > 0
    assert by["poor", "Recall@10"]["test"] == "exact McNemar"
    assert by["shared", "Recall@10"]["test"] == "sign flip"  # fractional hits
    assert all(row["p_holm"] >= row["p_value"] for row in rows)


@given(st.lists(st.integers(0, 50), min_size=1, max_size=60))
def test_popularity_groups_are_ordered_thirds(counts: list[int]) -> None:
    array = np.array(counts)
    group = popularity_groups(array)
    assert ((group == 3) == (array == 0)).all()
    for side in range(2):
        if (group == side).any() and ((group > side) & (group < 3)).any():
            assert array[group == side].min() > array[(group > side) & (group < 3)].max()
    for side in range(3):  # each group begins within its third of the events, counted from the most popular item
        if (group == side).any():
            before = array[array > array[group == side].max()].sum()
            assert before * 3 // array.sum() == side


def test_slices_cover_every_user_once(dataset: Any, result: Any) -> None:
    judged = Judged.choose(dataset.split, "test", None)
    for masks in slice_masks(judged).values():
        assert (np.sum(list(masks.values()), axis=0) == 1).all()
    for rows in result.summary["slices"].values():
        assert sum(row["users"] for row in rows) == 40
        weighted = sum(row["users"] * row["models"]["itemknn"]["NDCG@10"]["value"] for row in rows if row["users"])
        assert weighted / 40 == pytest.approx(result.value("itemknn"))


def test_compare_across_runs(dataset: Any, saved: Path, tmp_path: Path) -> None:
    same = compare([saved, saved], [saved])
    assert (same.test.difference, same.test.p_value, same.users) == (0, 1, 40)
    other = compare([saved], [saved], models=("itemknn", "popularity"))
    assert other.a["value"] - other.b["value"] == pytest.approx(other.test.difference)
    assert other.test.p_value < 0.05
    evaluate(dataset, {}, EvalConfig(users=9, baselines={"popularity": {}})).save(tmp_path / "few")
    with pytest.raises(MismatchError, match="9 users"):
        compare([saved], [tmp_path / "few"])
    evaluate(dataset, {}, EvalConfig(part="valid", baselines={"popularity": {}})).save(tmp_path / "valid")
    with pytest.raises(MismatchError, match="split"):
        compare([saved], [tmp_path / "valid"])


def test_mistakes_in_settings_come_together() -> None:
    values = {"num_beams": 0, "baselines": {"popularityy": {}}, "top_k": 3, "user": 4}
    with pytest.raises(ConfigError) as error:
        build_config(EvalConfig, values, source="recipe")
    assert len(error.value.problems) == 4
    text = str(error.value)
    assert "no baseline 'popularityy'" in text
    assert "did you mean 'users'" in text
    for wrong in ({"baselines": {"ease": {"l3": 1}}}, {"num_beams": 10}, {"modes": []}):
        with pytest.raises(ConfigError):
            build_config(EvalConfig, wrong, source="recipe")


def test_nothing_to_judge(dataset: Any) -> None:
    with pytest.raises(InputError, match="nothing to judge"):
        evaluate(dataset, {}, EvalConfig(baselines={}))


@pytest.mark.assets
def test_known_figures_of_ml_100k() -> None:
    from llmrec.data.config import DataConfig
    from llmrec.data.dataset import read_data

    dataset = read_data(DataConfig(path="asset:ml-100k"))
    config = EvalConfig(modes=("filtered",), baselines={"popularity": {}, "itemknn": {}})
    result = evaluate(dataset, {}, config)
    assert result.summary["users"] == 943
    found = {
        model: (round(result.value(model, "Recall@10"), 4), round(result.value(model), 4)) for model in result.models
    }
    assert found == {"popularity": (0.0859, 0.0449), "itemknn": (0.1898, 0.1007)}
    assert result.summary["modes"]["filtered"]["itemknn"]["Recall@10"]["se"] == pytest.approx(0.0128, abs=1e-4)
