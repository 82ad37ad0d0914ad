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


@pytest.mark.parametrize(
    ("strategy", "quantizer"), [("suffix", "rq-vae"), ("reassign", "rq-kmeans"), ("sinkhorn", "opq"), ("share", "opq")]
)
def test_versions_of_other_strategies_and_quantizers(llmrec, tmp_path, strategy, quantizer):
    recipe = write_recipe(tmp_path)
    size = "[6,40]" if strategy in ("reassign", "sinkhorn") else "6"
    changes = [f"sid.collisions.strategy={strategy}", f"sid.quantizer.name={quantizer}"]
    assert llmrec("sid", "fit", recipe, *changes, f"sid.quantizer.codebook_size={size}")[0] == 0
    old = SIDTable.load(tmp_path / "runs/tiny/sid")

    def arrive(source, output, names, vectors, *words):
        items = "".join(json.dumps({"item_id": name, "title": name, "genres": [], "year": 1}) + "\n" for name in names)
        (tmp_path / "new.jsonl").write_text(items)
        (tmp_path / "new_ids.txt").write_text("\n".join(names) + "\n")
        np.save(tmp_path / "new.npy", vectors.astype(np.float32))
        given = ["--items", "new.jsonl", "--vectors", "new.npy", "--ids", "new_ids.txt"]
        return llmrec("sid", "assign", source, *given, "--output", output, *words)

    # Items like the old ones fit; the first is the twin of one that retires.
    known = np.load(tmp_path / "vectors.npy")
    (tmp_path / "gone.txt").write_text("1\n2\n")
    alike = known[:10] + np.repeat([[0.0], [0.05]], [1, 9], axis=0)
    words = ["--retire", "gone.txt", "--json"]
    code, out, err = arrive("runs/tiny", "v2", [f"n{number}" for number in range(10)], alike, *words)
    assert (code, err) == (0, "")
    told = json.loads(out)
    assert (told["retired"], told["drift"]["refit_due"]) == (["1", "2"], False)
    assert (told["drift"]["items"], told["drift"]["reference_items"]) == (10, 60)
    # Without a suffix a twin finds its place taken: a tenth of such items is a reason to fit anew, whatever the drift.
    assert told["refit_due"] is (strategy in ("reassign", "sinkhorn"))
    assert (told["added"]["n0"] == old.text("1")) is (strategy == "share")
    assert ("n0" in told["sharing"]) is (strategy == "share")
    if strategy != "share":
        table = SIDTable.load(tmp_path / "v2")
        assert len(set(map(tuple, table.codes.tolist()))) == 70

    # Items unlike all old ones get SIDs as well, and a warning.
    far = 9 * np.random.default_rng(2).normal(size=(12, 16))
    code, out, err = arrive("v2", "v3", [f"far{number}" for number in range(12)], far)
    assert code == 0
    assert "refit is due" in err
    assert "100% above the old ones' 95th percentile" in out
    record = json.loads((tmp_path / "v3" / "sid_version.json").read_text())
    assert (record["num_fitted"], record["drift"]["reference_items"]) == (60, 58)  # items of v2 are no measure


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
