"""Bad input through the real command: the exit code, one clear screen, nothing half-written."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from llmrec import cli
from llmrec.checkpoint_card import fingerprint
from llmrec.testing.checkpoints import tiny_parts, tiny_table
from tests.tiny_run import BASE, write_recipe


@pytest.fixture
def llmrec(capsys, tmp_path, monkeypatch):
    """``llmrec(words...)`` -> (exit code, stdout, stderr), in an empty folder; errors fit on a screen."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")

    def call(*words):
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main([str(word) for word in words])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        assert len(captured.err.splitlines()) <= 24
        assert max(map(len, captured.err.splitlines()), default=0) <= 400
        return end.value.code or 0, captured.out, captured.err

    return call


def written(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*")) if folder.exists() else []


# -- data ----------------------------------------------------------------------------------------------------------


def spoil(folder: Path, how: str) -> None:
    items, interactions = folder / "tiny/items.jsonl", folder / "tiny/interactions.csv"
    if how == "missing file":
        interactions.unlink()
    elif how == "missing folder":
        shutil.rmtree(folder / "tiny")
    elif how == "wrong column":
        interactions.write_text(interactions.read_text().replace("timestamp", "when", 1))
    elif how == "empty file":
        interactions.write_text("")
    elif how == "header only":
        interactions.write_text("user_id,item_id,timestamp\n")
    elif how == "users too short":
        interactions.write_text("user_id,item_id,timestamp\n1,1,1\n1,2,2\n")
    elif how == "item without text":
        rows = [json.loads(line) for line in items.read_text().splitlines()]
        rows[4] = {"item_id": rows[4]["item_id"], "title": "", "genres": [], "year": None}
        items.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif how == "vector missing":
        (folder / "ids.txt").write_text("".join(f"{item}\n" for item in range(60)))


@pytest.mark.parametrize(
    ("how", "parts"),
    [
        ("missing file", ["interactions"]),
        ("missing folder", ["tiny"]),
        ("wrong column", ["interactions.csv", "timestamp", "when"]),
        ("empty file", ["interactions.csv:1", "there are: nothing"]),
        ("header only", ["interactions.csv", "no"]),
        ("users too short", ["none of 1 users has 3 events"]),
        ("item without text", ["items.jsonl:5", "text"]),
    ],
)
def test_data_that_cannot_be_used(llmrec, tmp_path, how, parts):
    recipe = write_recipe(tmp_path)
    spoil(tmp_path, how)
    for command in (["run", recipe], ["data", "stats", recipe]):
        code, _, err = llmrec(*command)
        assert code == 2
        for part in parts:
            assert part in err
    assert not (tmp_path / "runs").exists()


def test_items_without_a_vector_leave_no_sids(llmrec, tmp_path):
    recipe = write_recipe(tmp_path)
    spoil(tmp_path, "vector missing")
    code, _, err = llmrec("run", recipe)
    assert code == 2
    assert "1 of 60 catalogue items have no vector, first: '60'" in err
    assert "sid" not in written(tmp_path / "runs/tiny")
    (tmp_path / "vectors.npy").unlink()
    code, _, err = llmrec("run", recipe)
    assert code == 2
    assert "vectors.npy" in err


# -- recipes -------------------------------------------------------------------------------------------------------


def test_three_mistakes_of_a_recipe_are_listed_together_before_any_work(llmrec, tmp_path):
    recipe = write_recipe(tmp_path)
    values = yaml.safe_load(recipe.read_text())
    values["data"]["pth"] = "x"
    values["cpt"] |= {"epochs": -1, "tasks": {"behavior": {"settings": {}}, "sid_to_title": {"settings": {"x": 1}}}}
    recipe.write_text(yaml.safe_dump(values))
    code, _, err = llmrec("run", recipe, "sft.tasks.behaviour.settings.window=many")
    assert code == 2
    assert err.startswith("error: recipe.yaml has 4 problems:\n")
    assert "  - data.pth: unknown key; did you mean 'path'?\n" in err
    assert "  - cpt.epochs: input should be greater than 0 (given -1)\n" in err
    assert "'behavior' is no task; did you mean 'behaviour'?" in err
    assert "task sid_to_title has no setting 'x'" in err
    assert "setting window of task behaviour: Input should be a valid integer" in err
    assert not (tmp_path / "runs").exists()


def test_an_unknown_recipe_has_its_nearest_named(llmrec):
    code, _, err = llmrec("run", "quikstart")
    assert code == 2
    assert "hint: did you mean 'quickstart'?" in err
    assert llmrec("run", "nowhere/at/all.yaml")[0] == 2


def test_an_override_without_a_value_and_a_folder_are_no_recipe(llmrec, tmp_path):
    code, _, err = llmrec("run", write_recipe(tmp_path), "cpt.epochs")
    assert code == 2
    assert "'cpt.epochs' is not of the form key=value" in err
    assert "is a folder, not a recipe" in llmrec("run", tmp_path)[2]


@pytest.mark.parametrize(
    ("base", "exit_code", "text"),
    [
        ({"model": "./no-model"}, 2, "no such path"),
        ({"model": "asset:smollm2-135m"}, 2, "did you mean asset:smollm2-135m-instruct?"),
        ({"model": "nobody/no-model"}, 3, "'nobody/no-model' could not be downloaded"),
        ({"model": "tiny"}, 2, "holds no language model"),
        ({"config": {**BASE["config"], "model_type": "lama"}}, 2, "knows no model_type 'lama'; did you mean 'llama'?"),
        ({"config": {**BASE["config"], "hidden": 32}}, 2, "llama has no setting 'hidden'"),
        ({"config": {**BASE["config"], "hidden_size": 30}}, 2, "not a multiple of the number of attention heads"),
        ({"config": {**BASE["config"], "vocab_size": 30}}, 2, "config may not set vocab_size"),
        ({"model": "x", **BASE}, 2, "give either model (a checkpoint) or config"),
    ],
    ids=["path", "asset", "hub", "folder", "type", "setting", "value", "ours", "both"],
)
def test_a_base_that_does_not_exist(llmrec, tmp_path, base, exit_code, text):
    code, _, err = llmrec("run", write_recipe(tmp_path, base=base))
    assert code == exit_code
    assert text in err
    assert not (tmp_path / "runs/tiny/cpt").exists()


def test_a_stage_without_rows(llmrec, tmp_path):
    recipe = write_recipe(tmp_path, data={"path": str(tmp_path / "tiny"), "attributes": []})
    code, _, err = llmrec("run", recipe, "cpt.tasks={sid_to_attributes: {}}")
    assert code == 2
    assert "Stage cpt has nothing to train on" in err
    assert written(tmp_path / "runs/tiny/cpt") == []


# -- checkpoints ---------------------------------------------------------------------------------------------------


def test_a_checkpoint_with_a_foreign_table_is_refused(llmrec, tiny_run, tmp_path):
    _, result, _ = tiny_run
    folder = shutil.copytree(result.folder, tmp_path / "run") / "sft"
    shutil.rmtree(folder.parent / "eval")
    foreign = tiny_table()
    foreign.with_token_ids([ids.copy() for ids in tiny_parts().table.token_ids]).save(folder)
    for command in (["recommend", folder, "1"], ["explain", folder, "1", "--history", "2"], ["inspect", folder]):
        code, _, err = llmrec(*command)
        assert code == 2
        assert "is not as it was written" in err
        assert "sid_table" in err


def test_an_adapter_whose_base_was_trained_anew_is_refused(llmrec, tiny_run, tmp_path):
    _, result, _ = tiny_run
    folder = shutil.copytree(result.folder, tmp_path / "run") / "sft"
    weights = folder.parent / "cpt/model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    code, _, err = llmrec("recommend", folder, "1")
    assert code == 2
    assert "an adapter works only on the weights that it was trained on" in err


def test_a_history_of_unknown_items_only(llmrec, tiny_run):
    _, result, _ = tiny_run
    code, _, err = llmrec("recommend", result.final, "9001", "zzzz")
    assert code == 2
    assert "9001" in err
    assert "zzzz" in err


def test_more_items_than_there_are_come_back_as_all_with_a_note(llmrec, tiny_run):
    _, result, _ = tiny_run
    code, out, _ = llmrec("recommend", result.final, "1", "-k", "100", "--json")
    assert code == 0
    report = json.loads(out)
    assert len({item["item_id"] for item in report["items"]}) == 59
    assert report["notes"] == [
        "k=100 is more than there is: these are all 59 of 60 items that are neither excluded, filtered out nor retired"
    ]


# -- a full disk ---------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 MB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a 64 MB tmpfs needs root")
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)  # weights that were loaded from it are still mapped


def test_a_disk_too_small_for_the_states_is_told_before_training(llmrec, tmp_path, small_disk):
    wide = {**BASE["config"], "hidden_size": 512, "intermediate_size": 1024}
    recipe = write_recipe(tmp_path, base={**BASE, "config": wide})
    code, out, err = llmrec("run", recipe, "--runs", small_disk)
    assert code == 3
    assert "the disk has no room for the states to resume cpt from" in err
    assert "hint: free some space, or put the run on another disk with --runs FOLDER" in err
    assert "valid loss" not in out
    assert written(small_disk / "tiny/sid")
    assert not (small_disk / "tiny/cpt").exists()


@pytest.mark.parametrize("at_step", [2, 6])
def test_a_disk_that_fills_up_while_training(llmrec, tmp_path, small_disk, monkeypatch, at_step):
    from llmrec.train import stage
    from llmrec.train.progress import LogCallback

    filler, filled = small_disk / "filler", []

    class Filling(LogCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == at_step and not filled:
                filled.append(True)
                with filler.open("wb") as file:  # all but 50 kB: a state begins and does not end
                    free = shutil.disk_usage(small_disk).free
                    os.posix_fallocate(file.fileno(), 0, free - 50_000)
            super().on_step_end(args, state, control, **kwargs)

    monkeypatch.setattr(stage, "LogCallback", Filling)
    recipe = write_recipe(tmp_path)
    code, _, err = llmrec("run", recipe, "--runs", small_disk)
    assert code == 3
    assert err.startswith("error: the disk became full while cpt was training")
    kept = "goes on from step 4" if at_step == 6 else "starts cpt again"
    assert f"hint: free some space; the same command then {kept}\n" in err
    states = [path.name for path in small_disk.glob("tiny/work/cpt-*/checkpoint-*")]
    assert states == (["checkpoint-4"] if at_step == 6 else [])
    assert not (small_disk / "tiny/cpt").exists()
    filler.unlink()
    code, out, _ = llmrec("run", recipe, "--runs", small_disk)
    assert code == 0
    assert ("resuming from step 4" in out) == (at_step == 6)


def test_a_disk_too_small_for_the_checkpoint(llmrec, tmp_path, small_disk, monkeypatch, one_thread):
    from llmrec.train import stage

    run_stage = stage.run_stage

    def fill_afterwards(name, *args, **kwargs):
        result = run_stage(name, *args, **kwargs)
        with (small_disk / "filler").open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(small_disk).free - 50_000)
        return result

    recipe = write_recipe(tmp_path, sft=None, untrained=False, eval={"users": 2, "baselines": {}, "exact_users": 0})
    assert llmrec("run", recipe, "--runs", tmp_path / "elsewhere")[0] == 0
    with monkeypatch.context() as patched:
        patched.setattr(stage, "run_stage", fill_afterwards)
        code, _, err = llmrec("run", recipe, "--runs", small_disk)
    assert code == 3
    assert "the disk has no room for" in err
    assert "tiny/cpt" in err
    assert "tiny/cpt" not in [str(path.relative_to(small_disk)) for path in small_disk.glob("tiny/*")]
    assert not list(small_disk.glob("tiny/.cpt*"))
    (small_disk / "filler").unlink()
    code, out, _ = llmrec("run", recipe, "--runs", small_disk)
    assert code == 0
    assert "resuming from step" in out
    assert fingerprint(small_disk / "tiny/cpt") == fingerprint(tmp_path / "elsewhere/tiny/cpt")
