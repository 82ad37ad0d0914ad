"""The commands parse, call and print: recipes, assets, data, doctor, bench."""

import json
import sys
import types

import pytest

from llmrec import cli, recipes
from llmrec.bench import BENCHES, runner
from llmrec.bench.runner import Outcome
from llmrec.data import assets
from llmrec.doctor import Finding
from llmrec.errors import ConfigError
from llmrec.testing.worlds import write_tiny_folder


@pytest.fixture
def llmrec(capsys, tmp_path, monkeypatch):
    """``llmrec(words...)`` -> (exit code, stdout, stderr), in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("LLMREC_CACHE", str(tmp_path / "cache"))

    def run(*words):
        with pytest.raises(SystemExit) as end:
            cli.main([str(word) for word in words])
        captured = capsys.readouterr()
        return end.value.code or 0, captured.out, captured.err

    return run


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """One shipped pipeline whose data is a tiny folder."""
    folder = write_tiny_folder(tmp_path / "tiny")
    path = tmp_path / "shelf/train/pipelines/toy.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(f"# Toy recipe\ndata:\n  path: {folder}\n  name: toyland\n")
    monkeypatch.setattr(recipes, "root", lambda: tmp_path / "shelf")
    return path


def test_recipes_ls_cat_cp(llmrec, shelf, tmp_path):
    code, out, _ = llmrec("recipes", "ls")
    assert code == 0
    assert "toy" in out
    assert "Toy recipe" in out
    assert llmrec("recipes", "cat", "toy")[1] == shelf.read_text()
    assert llmrec("recipes", "cp", "toy", "mine.yaml")[0] == 0
    assert (tmp_path / "mine.yaml").read_text() == shelf.read_text()
    code, _, err = llmrec("recipes", "cp", "toy", "mine.yaml")
    assert code == 2
    assert "exists already" in err
    assert llmrec("recipes", "cat", "tox")[0] == 2


def test_recipes_validate_passes_overrides_on(llmrec, shelf, monkeypatch):
    seen = []

    def load_recipe(path, overrides):
        seen.append((path, overrides))
        if overrides:
            raise ConfigError("toy.yaml has 2 problems:", ["a: wrong", "b: wrong"])

    monkeypatch.setitem(sys.modules, "llmrec.pipeline", types.SimpleNamespace(load_recipe=load_recipe))
    code, out, _ = llmrec("recipes", "validate", "toy")
    assert code == 0
    assert "is fine" in out
    code, _, err = llmrec("recipes", "validate", "toy", "cpt.epochs=2")
    assert code == 2
    assert "  - a: wrong\n  - b: wrong" in err
    assert seen == [(shelf, []), (shelf, ["cpt.epochs=2"])]


def test_assets_ls_and_path(llmrec, tmp_path):
    code, out, _ = llmrec("assets", "ls")
    assert code == 0
    assert all(f"asset:{name}" in out for name in assets.ASSETS)
    code, _, err = llmrec("assets", "path", "ml-100k")
    assert code == 2
    assert "llmrec assets fetch ml-100k" in err


def test_assets_fetch_takes_names_and_all(llmrec, tmp_path, monkeypatch):
    fetched = []
    monkeypatch.setattr(assets, "fetch", lambda asset: fetched.append(asset.name) or tmp_path / asset.name)
    assert llmrec("assets", "fetch", "ml-100k", "asset:all-minilm-l6-v2")[0] == 0
    assert llmrec("assets", "fetch", "all")[0] == 0
    assert fetched == ["ml-100k", "all-minilm-l6-v2", *assets.ASSETS]
    assert llmrec("assets", "fetch", "ml-100")[0] == 2


def test_data_stats_of_a_folder_and_of_a_recipe(llmrec, shelf, tmp_path):
    code, out, _ = llmrec("data", "stats", tmp_path / "tiny")
    assert code == 0
    assert "check value (loo_sha256)" in out
    assert (tmp_path / "runs/data/tiny.png").read_bytes().startswith(b"\x89PNG")
    code, out, err = llmrec("data", "stats", "toy", "--json", "--plot", "curves.png")
    assert code == 0
    figures = json.loads(out)
    assert figures["name"] == "toyland"
    assert figures["users"] == 40
    assert "curves.png" in err
    assert (tmp_path / "curves.png").exists()


def test_data_stats_refuses_a_recipe_without_data_and_a_wrong_key(llmrec, shelf, tmp_path):
    (tmp_path / "bare.yaml").write_text("name: x\n")
    code, _, err = llmrec("data", "stats", "bare.yaml")
    assert code == 2
    assert "has no data: section" in err
    (tmp_path / "wrong.yaml").write_text("data: {path: x, sourc: folder}\n")
    code, _, err = llmrec("data", "stats", "wrong.yaml")
    assert code == 2
    assert "did you mean 'source'?" in err


def test_doctor_prints_findings_and_fails_on_a_problem(llmrec, monkeypatch):
    findings = [Finding("torch", "ok", "2.13"), Finding("GPU", "note", "none", "buy [one]")]
    monkeypatch.setattr("llmrec.doctor.examine", lambda network: tuple(findings))
    code, out, _ = llmrec("doctor")
    assert code == 0
    assert "buy [one]" in out
    findings.append(Finding("transformers", "problem", "broken", "pip uninstall torchvision"))
    code, out, err = llmrec("doctor", "--json")
    assert code == 3
    assert json.loads(out)[2]["state"] == "problem"
    assert "to be mended: transformers\nhint: pip uninstall torchvision" in err


def test_bench_lists_prints_writes_and_fails_on_a_missed_target(llmrec, tmp_path, monkeypatch):
    assert llmrec("bench")[1].split() == list(BENCHES)
    outcomes = [Outcome("import", "import typer", "ms", 10.0, 20.0, 0.5, "<= 1", True, 3)]
    monkeypatch.setattr(runner, "run_bench", lambda name, quick, progress: outcomes)
    code, out, _ = llmrec("bench", "start", "--quick")
    assert code == 0
    assert "0.50" in out
    outcomes.append(Outcome("help", "bare", "ms", 30.0, 20.0, 1.5, "<= 1", False, 3))
    code, out, err = llmrec("bench", "start", "--json", "--output", "out/bench.json")
    assert code == 1
    assert "1 of 2 targets missed: help" in err
    assert json.loads(out) == json.loads((tmp_path / "out/bench.json").read_text())
    assert json.loads(out)["holds"] is False
