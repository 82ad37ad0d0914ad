"""Files of predictions: the three formats, both forms, and everything that can be wrong with them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from llmrec.errors import DataError, InputError
from llmrec.eval.config import EvalConfig
from llmrec.eval.evaluate import evaluate
from llmrec.eval.predictions import PredictionsRanker

ALONE = EvalConfig(baselines={})


def write(frame: pl.DataFrame, path: Path, *, form: str) -> Path:
    """Write lists as a list column, as rows with rank, or as rows with score in shuffled order."""
    if form != "lists":
        frame = frame.explode("items").rename({"items": "item_id"})
        rank = pl.int_range(pl.len()).over("user_id") + 1
        column = rank.alias("rank") if form == "rank" else (-rank * 0.5).alias("score")
        frame = frame.with_columns(column).sample(fraction=1, shuffle=True, seed=0)
    if path.suffix == ".parquet":
        frame.write_parquet(path)
    elif path.suffix == ".jsonl":
        frame.write_ndjson(path)
    else:
        (frame.with_columns(pl.col("items").list.join(" ")) if form == "lists" else frame).write_csv(path)
    return path


@pytest.mark.parametrize("form", ["lists", "rank", "score"])
@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
@pytest.mark.parametrize("mode", ["filtered", "unfiltered"])
def test_a_file_equals_the_baseline_that_wrote_it(
    dataset: Any, result: Any, tmp_path: Path, form: str, suffix: str, mode: Any
) -> None:
    lists = result.lists.filter(model="itemknn", mode=mode).select("user_id", "items")
    path = write(lists, tmp_path / f"lists{suffix}", form=form)
    found = evaluate(dataset, {"file": PredictionsRanker.read(path)}, ALONE)
    expected = result.values("itemknn", mode)
    for name, values in found.values("file", mode).items():
        np.testing.assert_array_equal(values, expected[name], err_msg=name)
    assert found.recommendations("file", mode) == lists["items"].to_list()


def test_single_rows_are_counted(dataset: Any, tmp_path: Path) -> None:
    split = dataset.split
    target = {user: split.items[item] for user, item in zip(split.users, split.targets("test"), strict=True)}
    seen = {split.users[row]: split.items[split.history(row, "test")[-1]] for row in range(len(split.users))}
    new = [row for row in range(len(split.users)) if split.targets("test")[row] not in split.history(row, "test")]
    a, b, c = (split.users[row] for row in new[:3])
    rows = {
        a: ["nonsense", target[a]],  # an unknown item keeps its place
        b: ["66", seen[b], target[b]],  # outside the evaluation: taken out; the history: taken out when filtered
        c: [target[c], target[c], "1"],
        "stranger": ["1"],
    }
    path = tmp_path / "p.jsonl"
    path.write_text("".join(json.dumps({"user_id": u, "items": items}) + "\n" for u, items in rows.items()))
    found = evaluate(dataset, {"p": PredictionsRanker.read(path)}, ALONE)
    first = {
        mode: dict(found.per_user.filter(mode=mode).select("user_id", "first").iter_rows()) for mode in found.modes
    }
    assert [first["filtered"][user] for user in (a, b, c)] == [2, 1, 1]
    assert first["unfiltered"][b] == 2
    assert sum(found.values("p", "filtered")["Recall@20"]) == 3  # the other 37 users are misses
    details = found.summary["details"]["p"]
    assert details["users_without_list"] == 37
    assert details["unknown_users"] == details["unknown_items"] == details["duplicates"] == 1
    assert details["items_outside_evaluation"] == 1
    assert details["history_items"] >= 1
    assert (found.summary["invalid"], found.summary["duplicates"]) == (1, 1)


def test_problems_of_a_file_come_together(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_text("user_id,item_id,rank\n1,5,first\n,6,2\n2,,3\n")
    with pytest.raises(DataError) as error:
        PredictionsRanker.read(path)
    assert len(error.value.problems) == 3
    path.write_text("user,item\n1,5\n")
    with pytest.raises(DataError, match=r"no column user_id(?s:.)*neither a list column"):
        PredictionsRanker.read(path)
    path.write_text("user_id,items\n1,5 6\n1,7\n2,[8\n")
    with pytest.raises(DataError, match=r"repeat a user_id(?s:.)*unreadable entry"):
        PredictionsRanker.read(path)
    path.write_text("user_id,items\n")
    with pytest.raises(DataError, match="no row"):
        PredictionsRanker.read(path)
    pl.DataFrame({"user_id": ["1"], "items": [5]}).write_parquet(tmp_path / "p.parquet")
    with pytest.raises(DataError, match="not a list of ids"):
        PredictionsRanker.read(tmp_path / "p.parquet")
    (tmp_path / "p.jsonl").write_text("{nonsense")
    for name in ("p.jsonl", "p.txt", "missing.csv"):
        with pytest.raises(InputError):
            PredictionsRanker.read(tmp_path / name)


def test_foreign_ids_are_an_error(dataset: Any) -> None:
    with pytest.raises(DataError) as error:
        evaluate(dataset, {"p": PredictionsRanker({"u-1": ["i-1"]}, "p.csv")}, ALONE)
    assert len(error.value.problems) == 2
    assert "'u-1'" in str(error.value)


def test_csv_cells_may_be_json(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_text('user_id,items\n1,"[""5"", 6]"\n2,7 8\n')
    assert PredictionsRanker.read(path).lists == {"1": ["5", "6"], "2": ["7", "8"]}
