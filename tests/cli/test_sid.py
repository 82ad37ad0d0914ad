"""``llmrec sid``: fit leaves a finished stage, report measures it, assign makes versions that old checkpoints take."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import yaml

from llmrec import cli
from llmrec.config import parse_yaml
from llmrec.recommender import Recommender
from llmrec.serve.catalog import ServedCatalog
from llmrec.sid_vocab.table import SIDTable
from tests.tiny_run import write_recipe

NEW = [
    {"item_id": "n1", "title": "The Silent Ocean", "genres": ["Drama"], "year": 2020},
    {"item_id": "n2", "title": "The Golden Ocean", "genres": "Comedy", "year": 2021},
    {"item_id": "7", "title": "Known for long", "genres": ["Drama"], "year": 2020},
]


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
def arrivals(tmp_path):
    """New items with vectors, and two items to retire."""
    (tmp_path / "new.jsonl").write_text("".join(json.dumps(item) + "\n" for item in NEW))
    np.save(tmp_path / "new.npy", np.random.default_rng(5).normal(size=(2, 16)))
    (tmp_path / "new_ids.txt").write_text("n1\nn2\n")
    (tmp_path / "gone.txt").write_text("5\n\n10\n")
    words = ["--items", tmp_path / "new.jsonl", "--retire", tmp_path / "gone.txt"]
    return [*words, "--vectors", tmp_path / "new.npy", "--ids", tmp_path / "new_ids.txt"]


def test_fit_report_and_assign_without_a_model(llmrec, tmp_path, arrivals):
    recipe = write_recipe(tmp_path)
    code, out, _ = llmrec("sid", "fit", recipe, "sid.quantizer.codebook_size=6")
    assert code == 0
    assert "60 items, codebooks 6 x 6 x" in out
    fit = tmp_path / "runs/tiny/sid"
    table = SIDTable.load(fit)
    assert "done before" in llmrec("sid", "fit", recipe, "sid.quantizer.codebook_size=6")[1]
    assert "codebook_size: 6 -> 8" in llmrec("sid", "fit", recipe)[1]
    llmrec("sid", "fit", recipe, "sid.quantizer.codebook_size=6")
    assert SIDTable.load(fit).rows_fingerprint == table.rows_fingerprint

    code, out, _ = llmrec("sid", "report", "runs/tiny", "--json")
    assert code == 0
    told = json.loads(out)
    assert told["health"] == json.loads((fit / "report.json").read_text())
    assert told["health"]["levels"][0]["reconstruction_error"] > 0
    assert [lift["what"] for lift in told["prefix_lift"]] == ["a", "ab"]
    assert {lift["what"] for lift in told["category_lift"]} == {"genres a", "genres ab"}
    assert not (tmp_path / "runs/tiny/sid_report.html").exists()
    first = table.tokens("9")[0]
    code, out, _ = llmrec("sid", "report", fit, "--prefix", first)
    assert code == 0
    assert f"{first}  " in out
    assert "<svg" in (tmp_path / "runs/tiny/sid_report.html").read_text()
    for wrong in ("<b_1>", "a_1", "<a_99>", "<a_1><b_1><c_1>"):
        assert llmrec("sid", "report", fit, "--prefix", wrong)[0] == 2

    code, out, err = llmrec("sid", "assign", "runs/tiny", *arrivals, "--output", "v2")
    assert (code, err) == (0, "")
    assert "version 2: 2 items added, 2 retired; 62 in all" in out
    assert "1 were in the table already" in out
    new = SIDTable.load(tmp_path / "v2")
    assert new.parent == table.rows_fingerprint
    code, out, _ = llmrec("sid", "assign", "v2", "--retire", tmp_path / "gone.txt", "--output", "v3")
    assert code == 2  # both are retired already
    (tmp_path / "gone.txt").write_text("n1\n5\n")
    code, out, _ = llmrec("sid", "assign", "v2", "--retire", tmp_path / "gone.txt", "--output", "v3", "--json")
    told = json.loads(out)
    assert (told["version"], told["retired"], told["already_retired"]) == (3, ["n1"], ["5"])
    assert told["parent"] == new.rows_fingerprint
    code, out, _ = llmrec("sid", "report", "v3", "--json")
    assert code == 0
    assert "without the vectors" in json.loads(out)["health"]["notes"][0]


def test_a_recipe_of_sids_alone_and_a_fragment(llmrec, tmp_path):
    values = parse_yaml(write_recipe(tmp_path).read_text(), source="recipe")
    alone = {key: values[key] for key in ("name", "data", "sid")}
    (tmp_path / "alone.yaml").write_text(yaml.safe_dump(alone))
    assert llmrec("sid", "fit", "alone.yaml", "name=one")[0] == 0
    (tmp_path / "part.yaml").write_text(yaml.safe_dump(values["sid"]))
    assert llmrec("sid", "fit", "part.yaml", f"data.path={values['data']['path']}", "data.attributes=[genres]")[0] == 0
    one, part = (SIDTable.load(tmp_path / "runs" / name / "sid") for name in ("one", "part"))
    assert one.rows_fingerprint == part.rows_fingerprint
    code, _, err = llmrec("sid", "fit", "part.yaml")
    assert code == 2
    assert "data: missing" in err
    code, _, err = llmrec("sid", "fit", "alone.yaml", "sid.collisions.strategy=reassigned", "sid.collision.spare=1")
    assert code == 2
    assert "did you mean 'collisions'?" in err


def test_mistakes_leave_nothing_behind(llmrec, tmp_path, arrivals):
    recipe = write_recipe(tmp_path)
    llmrec("sid", "fit", recipe)
    assert llmrec("sid", "assign", tmp_path, "--output", "v2", "--items", "new.jsonl")[0] == 2
    code, _, err = llmrec("sid", "assign", "runs/tiny", "--items", "new.jsonl", "--output", "v2")
    assert code == 2
    assert "2 of 2 catalogue items have no vector" in err
    (tmp_path / "bad.jsonl").write_text('{"item_id": "n1", "title": ""}\n')
    code, _, err = llmrec("sid", "assign", "runs/tiny", "--items", "bad.jsonl", "--output", "v2")
    assert code == 2
    assert "genres" in err
    np.save(tmp_path / "new.npy", np.ones((2, 9)) + np.eye(2, 9))
    code, _, err = llmrec("sid", "assign", "runs/tiny", *arrivals, "--output", "v2")
    assert code == 2
    assert "vectors of 16 numbers, these have 9" in err
    (tmp_path / "gone.txt").write_text("nobody\n")
    assert llmrec("sid", "assign", "runs/tiny", "--retire", "gone.txt", "--output", "v2")[0] == 2
    assert not (tmp_path / "v2").exists()


def test_an_old_run_takes_the_new_version(llmrec, tmp_path, tiny_run, arrivals):
    _, result, _ = tiny_run
    shutil.copytree(result.folder, tmp_path / "old")
    code, _, err = llmrec("sid", "assign", "old", *arrivals, "--output", "v2")
    assert (code, err) == (0, "")
    old = Recommender.load(result.final)
    served = ServedCatalog(old).prepare(tmp_path / "v2")  # what the server does with a new catalogue
    answer = {item.item_id: item for item in served.recommender.recommend(["7", "5"], k=100, search="exact")}
    assert {"n1", "n2"} <= answer.keys()
    assert not {"5", "10"} & answer.keys()
    assert answer["n1"].title == "The Silent Ocean"
    assert served.recommender.checkpoint.catalog.attribute_values("n2") == {"genres": ("Comedy",)}
