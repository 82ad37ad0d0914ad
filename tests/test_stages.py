"""The stage cache: what runs, what is skipped, and why."""

import io
import json

import pytest
from rich.console import Console

from llmrec.stages import StageCache, is_done


class Run:
    """One start of a pipeline of stages that write the text they are given."""

    def __init__(self, folder):
        self.folder = folder
        self.shown = io.StringIO()
        self.cache = StageCache(folder, Console(file=self.shown, width=200))
        self.keys = {}

    def stage(self, name, parts, leaves="same"):
        output = self.folder / name

        def work(key):
            self.keys[name] = key
            output.mkdir(exist_ok=True)
            (output / "result.txt").write_text(leaves)

        return self.cache.run(name, parts, [output], work)


def test_a_stage_runs_once_and_then_is_skipped_with_its_old_figures(tmp_path):
    first = Run(tmp_path).stage("sid", {"levels": 3})
    assert (first.ran, first.why) == (True, "no finished run yet")
    run = Run(tmp_path)
    second = run.stage("sid", {"levels": 3})
    assert (second.ran, second.why) == (False, "nothing changed")
    assert (second.wall_s, second.peak_rss_mb) == (first.wall_s, first.peak_rss_mb)
    assert "sid  done before" in run.shown.getvalue()
    assert not run.keys


def test_the_reason_names_every_changed_key_with_both_values(tmp_path):
    Run(tmp_path).stage("cpt", {"cpt": {"epochs": 1, "lora": {"rank": 4}}, "seed": 0, "gone": 1})
    rerun = Run(tmp_path).stage("cpt", {"cpt": {"epochs": 2, "lora": {"rank": 8}}, "seed": 0})
    assert rerun.why == "changed: cpt.epochs: 1 -> 2; cpt.lora.rank: 4 -> 8; gone: 1 -> None"
    many = Run(tmp_path).stage("cpt", {f"x{number}": number for number in range(5)})
    assert many.why.endswith(" and 5 more")


def test_order_of_keys_does_not_count_and_values_do(tmp_path):
    Run(tmp_path).stage("sid", {"a": 1, "b": [1, 2]})
    assert not Run(tmp_path).stage("sid", {"b": (1, 2), "a": 1}).ran
    assert Run(tmp_path).stage("sid", {"a": 1, "b": [2, 1]}).ran


def test_a_missing_output_runs_the_stage_again(tmp_path):
    Run(tmp_path).stage("sid", {})
    (tmp_path / "sid" / "result.txt").unlink()
    (tmp_path / "sid").rmdir()
    assert Run(tmp_path).stage("sid", {}).why == "sid is not there any more"


def test_a_stage_whose_input_came_out_otherwise_runs_again_and_says_so(tmp_path):
    def run(leaves, settings):
        started = Run(tmp_path)
        return started.stage("cpt", {"cpt": settings}, leaves), started.stage("sft", {"cpt": settings})

    run("weights", 1)
    same = run("weights", 2)
    assert [stage.why for stage in same] == ["changed: cpt: 1 -> 2"] * 2
    (tmp_path / "stages" / "cpt.json").unlink()
    assert [stage.ran for stage in run("weights", 2)] == [True, False]
    (tmp_path / "stages" / "cpt.json").unlink()
    assert run("other weights", 2)[1].why == "cpt left something else this time"
    assert [stage.ran for stage in run("other weights", 2)] == [False, False]


def test_a_failed_stage_is_not_done_and_keeps_its_key(tmp_path):
    parts = {"epochs": 1}
    Run(tmp_path).stage("cpt", {"epochs": 2})
    keys = []

    def work(key):
        keys.append(key)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Run(tmp_path).cache.run("cpt", parts, [tmp_path / "cpt"], work)
    assert not is_done(tmp_path, "cpt", parts)
    run = Run(tmp_path)
    assert run.stage("cpt", parts).ran  # though the output of other settings is there
    assert run.keys["cpt"] == keys[0]  # by it unfinished work is found again
    assert is_done(tmp_path, "cpt", parts)
    assert not is_done(tmp_path, "cpt", {"epochs": 2})


def test_timing_tells_what_ran_and_sums_only_that(tmp_path):
    run = Run(tmp_path)
    run.stage("sid", {})
    run.stage("cpt", {})
    again = Run(tmp_path)
    again.stage("sid", {})
    again.stage("cpt", {"epochs": 2})
    timing = json.loads((tmp_path / "timing.json").read_text())
    assert {name: stage["ran"] for name, stage in timing["stages"].items()} == {"sid": False, "cpt": True}
    assert timing["stages"]["cpt"]["why"] == "changed: epochs: None -> 2"
    assert timing["wall_s"] == timing["stages"]["cpt"]["wall_s"]
    assert timing["peak_rss_mb"] > 10
