"""``llmrec prefer`` from the command line: from a run to a data set that reads back, and what it refuses."""

import json

import pytest
import yaml

from llmrec import cli
from llmrec.checkpoint_card import DataCard
from llmrec.data.config import DataConfig
from llmrec.data.dataset import read_data
from llmrec.sid_vocab.table import SIDTable
from llmrec.testing.checkpoints import tiny_parts
from llmrec.testing.worlds import write_tiny_folder
from llmrec.train.preference.files import CARD_FILE, load_preferences


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with data and two checkpoints: of its own split, and of another."""
    folder = tmp_path_factory.mktemp("prefer")
    data = write_tiny_folder(folder / "data")
    dataset = read_data(DataConfig(path=str(data)))
    recipe = {"seed": 0, "data": {"path": str(data)}}
    parts = tiny_parts()
    for name, check in (("cpt", dataset.split.loo_sha256), ("other", "0" * 64)):
        card = DataCard(name="tiny", loo_sha256=check, fingerprint=dataset.fingerprint)
        parts.write(folder / "run" / name, data=card, recipe=recipe)
    return folder / "run", dataset


@pytest.fixture
def llmrec(capsys, monkeypatch, tmp_path):
    """``llmrec(words...)`` -> (exit code, stdout, stderr), in an empty folder and 80 columns."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")

    def run(*words):
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main([str(word) for word in words])
        captured = capsys.readouterr()
        return end.value.code or 0, captured.out, captured.err

    return run


def load(folder, world):
    run, dataset = world
    return load_preferences(folder, split=dataset.split, table=SIDTable.load(run / "cpt"))


def test_a_checkpoint_gives_pairs_from_its_beams(llmrec, world, tmp_path):
    code, out, err = llmrec("prefer", world[0] / "cpt")
    assert code == 0
    data = load(tmp_path / "runs" / "preference" / "beams", world)
    assert data.card.pairs_by_source == {"beams": data.card.pairs}
    assert data.card.model.engine == "torch float32"
    assert f"beams: {data.card.pairs} pairs in {data.card.rows} rows" in out
    assert "left out: a valid or test item" in out
    first = data.rows[0]
    assert f"({first.chosen})" in out
    assert "beams 40/40" in err
    assert not (tmp_path / "runs" / "preference" / "beams.parts").exists()


def test_a_recipe_with_overrides_and_json(llmrec, world, tmp_path):
    words = ("prefer", "random", f"checkpoint={world[0] / 'cpt'}", "negatives.random.count=2", "seed=5", "--json")
    code, out, _ = llmrec(*words, "--output", "made")
    assert code == 0
    card = json.loads(out)
    assert card == json.loads((tmp_path / "made" / CARD_FILE).read_text())
    assert card["seed"] == 5
    assert card["model"]["engine"] is None
    assert {len(row.rejected) for row in load(tmp_path / "made", world).rows} == {2}
    code, _, err = llmrec(*words, "--output", "made")
    assert code == 2
    assert "made exists already" in err


def test_the_teacher_judges_and_is_named(llmrec, world):
    code, out, _ = llmrec("prefer", "teacher", f"checkpoint={world[0] / 'cpt'}", "users=8")
    assert code == 0
    assert "judged by itemknn, fitted on train" in out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("nowhere",), "there is no recipe 'nowhere'"),
        (("beams",), "names no checkpoint"),
        (("quickstart",), "is a pipeline"),
        (("beams", "checkpoint=nowhere"), "is no llmrec checkpoint"),
        (("beams", "checkpoint={run}/other"), "it may have learnt targets of this data"),
        (("beams", "checkpoint={run}/cpt", "negatives.beam.count=2"), "did you mean 'beams'?"),
        (("ratings", "checkpoint={run}/cpt"), "have no such column"),
        (("mixed", "checkpoint={run}/cpt", "negatives.same_prefix.levels=3"), "no level would"),
    ],
)
def test_what_cannot_work_is_said_and_leaves_nothing(llmrec, world, tmp_path, words, told):
    code, _, err = llmrec("prefer", *(word.format(run=world[0]) for word in words))
    assert code == 2
    assert told in " ".join(err.split())
    assert not (tmp_path / "runs").exists()


def test_a_run_gives_its_last_checkpoint_and_an_unfinished_one_is_refused(llmrec, world, tmp_path):
    recipe = {"name": "r", "data": {"path": "x"}, "base": {"model": "y"}, "cpt": {}, "sft": {"train_sid_rows": False}}
    run = tmp_path / "r"
    run.mkdir()
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    code, _, err = llmrec("prefer", run)
    assert code == 2
    assert "has no checkpoint sft yet" in err
    (run / "sft").symlink_to(world[0] / "cpt")
    code, out, _ = llmrec("prefer", "random", f"checkpoint={run}", "users=5")
    assert code == 0
    assert "not asked, its SIDs are used" in " ".join(out.split())
