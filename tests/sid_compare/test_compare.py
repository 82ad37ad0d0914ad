"""Comparing tokenizers on a planted data set: who wins, what is cached, what a kill costs, what is refused."""

from __future__ import annotations

import io
import json

import numpy as np
import polars as pl
import pytest
from rich.console import Console

from llmrec.cli.sid_compare import proxy_config, read_arms
from llmrec.errors import DataError, InputError
from llmrec.eval.compare import compare as compare_runs
from llmrec.metrics import mean_over_seeds, sign_flip_test
from llmrec.sid_compare.compare import compare_tokenizers
from llmrec.sid_compare.table import markdown, notes, print_comparison
from llmrec.train.progress import LogCallback
from tests.sid_compare.planted import PROXY, write_arm, write_planted

TOKENS = 20_000


def config(**flags):
    return proxy_config([f"{key.removeprefix('proxy.')}={value}" for key, value in PROXY.items()], flags)


def compare(folder, recipes, runs="runs", **flags):
    """The comparison and what the console showed."""
    arms, _ = read_arms([str(folder / recipe) for recipe in recipes])
    shown = io.StringIO()
    flags = {"tokens": TOKENS, **flags}
    result = compare_tokenizers(arms, config(**flags), folder / runs, Console(file=shown, width=200))
    return result, shown.getvalue()


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """(folder, comparison of kinds and random, console text); tests change nothing that is cached there."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = write_planted(tmp_path_factory.mktemp("planted"))
    yield folder, *compare(folder, ["kinds.yaml", "random.yaml"])
    torch.set_num_threads(threads)


def test_codes_that_carry_behaviour_beat_random_ones(planted):
    _, result, _ = planted
    lifts = {name: one["prefix_lift"][0] for name, one in result.summary["tokenizers"].items()}
    assert lifts["kinds"]["lift"] > 5
    assert lifts["kinds"]["z"] > 5
    assert abs(lifts["random"]["z"]) < 3
    assert result.value("kinds") > 2 * result.value("random")
    test = next(row for row in result.summary["paired"] if row["metric"] == "NDCG@10")
    assert (test["model"], test["against"]) == ("kinds", "random")
    assert test["p_holm"] < 0.01


def test_budget_and_protocol_are_equal_and_told(planted):
    _, result, shown = planted
    summary = result.summary
    runs = [run for one in summary["tokenizers"].values() for run in one["runs"]]
    assert {run["steps"] for run in runs} == {runs[0]["steps"]}
    assert all(abs(run["tokens"] - TOKENS) <= config().batch_tokens for run in runs)
    assert (summary["split"], summary["mode"], summary["users"]) == ("valid", "filtered", 120)
    assert summary["proxy"]["normalise"] == "legal"
    assert [run["invalid"] for run in runs] == [0, 0]
    assert "2 proxies of 20,000 training tokens each: about" in shown
    for one in summary["tokenizers"].values():
        assert one["metrics"]["NDCG@10"]["se"] > 0
        assert one["fit_s"] >= 0
    assert set(summary["baselines"]) == {"popularity", "itemknn"}


def test_shorter_sids_get_the_same_tokens_and_see_more_items(planted):
    folder, _, _ = planted
    short = (folder / "kinds.yaml").read_text().replace("num_levels: 2", "num_levels: 1")
    (folder / "short.yaml").write_text(short)
    result, _ = compare(folder, ["kinds.yaml", "short.yaml"], runs="short", tokens=2000, users=5)
    long, short = (result.summary["tokenizers"][name]["runs"][0] for name in ("kinds", "short"))
    assert abs(long["tokens"] - short["tokens"]) <= config().batch_tokens
    assert short["items"] > 1.2 * long["items"]  # rows of 6 items: 3 + 6 * 2 tokens instead of 3 + 6 * 3
    assert short["epochs"] > 1.2 * long["epochs"]
    assert "not seen all of train" in markdown(result.summary)


def test_what_was_done_is_not_done_again(planted):
    folder, result, _ = planted
    again, shown = compare(folder, ["random.yaml", "kinds.yaml"])
    assert shown.count("train  done before") == 2
    assert shown.count("sid  done before") == 2
    assert "all trained before" in shown
    assert list(again.summary["tokenizers"]) == ["random", "kinds"]
    assert again.summary["tokenizers"]["kinds"] == result.summary["tokenizers"]["kinds"]
    fewer, shown = compare(folder, ["random.yaml"], users=20)
    assert "train  done before" in shown
    assert "eval  changed: users: None -> 20" in shown
    assert fewer.summary["users"] == 20
    assert fewer.summary["paired"] == []
    assert "eval  changed: users: 20 -> None" in compare(folder, ["random.yaml"])[1]


def test_a_killed_comparison_goes_on_and_ends_with_the_same_figures(planted, tmp_path, monkeypatch, one_thread):
    monkeypatch.setitem(PROXY, "proxy.batch_tokens", 100)
    folder = write_planted(tmp_path)
    whole, _ = compare(folder, ["random.yaml"], runs="whole", tokens=9_500, users=20)
    step_end, killed = LogCallback.on_step_end, []

    def kill(self, args, state, control, **kwargs):
        step_end(self, args, state, control, **kwargs)
        killed.append(state.global_step)
        if len(killed) == 105:  # behind the first state
            raise KeyboardInterrupt

    monkeypatch.setattr(LogCallback, "on_step_end", kill)
    with pytest.raises(KeyboardInterrupt):
        compare(folder, ["random.yaml"], tokens=9_500, users=20)
    monkeypatch.setattr(LogCallback, "on_step_end", step_end)
    resumed, shown = compare(folder, ["random.yaml"], tokens=9_500, users=20)
    assert "sid  done before" in shown
    assert "train  resuming from step 100" in shown
    assert resumed.per_user.equals(whole.per_user)
    assert not list((folder / "runs").rglob("work"))


def test_seeds_are_means_per_user(planted):
    folder, one_seed, _ = planted
    result, shown = compare(folder, ["kinds.yaml", "random.yaml"], seeds=(0, 7))
    assert shown.count("train  done before") == 2
    assert "seed 7, proxy 4 of 4" in shown
    by_seed = {
        (name, seed): rows["NDCG@10"].to_numpy()
        for (name, seed), rows in result.per_user.group_by(["tokenizer", "seed"], maintain_order=True)
    }
    first = one_seed.per_user.filter(pl.col("tokenizer") == "kinds")["NDCG@10"].to_numpy()
    np.testing.assert_array_equal(by_seed["kinds", 0], first)
    assert not np.array_equal(by_seed["kinds", 0], by_seed["kinds", 7])
    means = {
        name: mean_over_seeds([{"N": by_seed[name, 0]}, {"N": by_seed[name, 7]}])["N"] for name in ("kinds", "random")
    }
    assert result.value("kinds") == pytest.approx(means["kinds"].mean())
    told = next(row for row in result.summary["paired"] if row["metric"] == "NDCG@10")
    assert told["difference"] == pytest.approx(sign_flip_test(means["kinds"], means["random"]).difference)
    head = next(line for line in markdown(result.summary).splitlines() if line.startswith("| proxy of"))
    assert "N@10 by seed" in head
    folders = {name: [run["folder"] for run in one["runs"]] for name, one in result.summary["tokenizers"].items()}
    sides = [[folder / "eval" for folder in map(type(folder), folders[name])] for name in ("kinds", "random")]
    assert compare_runs(*sides).test.difference == pytest.approx(told["difference"])


def test_warnings_of_figures_that_say_little(planted):
    _, result, _ = planted
    summary = json.loads(json.dumps(result.summary))
    assert "warning" not in "\n".join(line for line in notes(summary) if "random" not in line and "beam" not in line)
    one = summary["tokenizers"]["kinds"]
    one["metrics"]["NDCG@10"]["value"] = 0.0
    one["runs"][0] |= {"valid_losses": [[0, 3.0], [5, 2.0], [9, 2.1]], "epochs": 0.5, "targets_without_sid": 3}
    one["runs"][0]["beam_recall_of_exact"]["@10"] = 0.5
    told = [line for line in notes(summary) if "kinds" in line]
    for part in ("below popularity", "overfits", "not seen all of train", "3 targets have no SID", "beam is narrow"):
        assert sum(part in line for line in told) == 1


def test_what_is_written_and_printed(planted, tmp_path):
    _, result, _ = planted
    path = result.save(tmp_path / "out")
    assert sorted(file.name for file in path.parent.iterdir()) == ["compare.json", "compare.md", "per_user.parquet"]
    assert json.loads(path.read_text()) == json.loads(json.dumps(result.summary))
    assert pl.read_parquet(path.with_name("per_user.parquet")).height == 2 * 120
    text = path.with_name("compare.md").read_text()
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in tables[:4]}) == len({line.count("|") for line in tables[4:]}) == 1
    assert "| **kinds** |" in text
    shown = io.StringIO()
    print_comparison(result.summary, Console(file=shown, width=120))
    for part in ("kinds", "random", "(popularity)", "equal compute, not equal epochs", "confirm it once on test"):
        assert part in shown.getvalue()
        assert part in text.replace("**", "")
    assert "…" not in shown.getvalue()


def test_what_cannot_be_compared_is_refused_before_any_fit(tmp_path):
    folder = write_planted(tmp_path)
    other = tmp_path / "other"
    write_planted(other)
    events = (other / "planted/interactions.csv").read_text()
    (other / "planted/interactions.csv").write_text(events.replace("u0,", "nobody,"))
    (folder / "moved.yaml").write_text((other / "kinds.yaml").read_text())
    with pytest.raises(DataError, match="compared on one data set") as raised:
        compare(folder, ["kinds.yaml", "moved.yaml"])
    assert len(raised.value.problems) == 2

    lines = events.splitlines()
    strangers = [line.replace(",i", ",x") if line.endswith(",6") else line for line in lines]
    (folder / "planted/interactions.csv").write_text("\n".join(strangers) + "\n")
    with pytest.raises(InputError, match="valid target in the catalogue"):
        compare(folder, ["kinds.yaml"])
    (folder / "planted/interactions.csv").write_text("\n".join(lines[:1] + lines[1:3]) + "\n")
    with pytest.raises(DataError, match="none of 1 users has 3 events"):
        compare(folder, ["kinds.yaml"])
    assert not (folder / "runs").exists()


def test_a_table_that_the_proxy_cannot_hold(tmp_path):
    folder = write_planted(tmp_path)
    write_arm(folder, "kinds", np.random.default_rng(0).normal(size=(200, 8)))
    arms, _ = read_arms([str(folder / "kinds.yaml")])
    narrow = proxy_config(["base.config.max_position_embeddings=16", "window=10"], {})
    with pytest.raises(InputError, match="10 items of 3 tokens each need"):
        compare_tokenizers(arms, narrow, folder / "runs", Console(file=io.StringIO()))
