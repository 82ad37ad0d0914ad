"""Two processes over gloo move the weights as one does, agree when to stop, and leave one run behind."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from llmrec import recipes
from llmrec.train.log import TrainingLog
from tests.tiny_run import write_recipe
from tests.train.two_processes import KINDS

pytestmark = pytest.mark.slow
CONFIG = recipes.folder("train") / "accelerate" / "two-processes-cpu.yaml"
SCRIPTS = Path(__file__).parent


def together(*words: Any) -> str:
    """Start the words after ``python`` in two processes; returns what they printed."""
    return started("-m", "accelerate.commands.launch", "--config_file", CONFIG, *words)


def started(*words: Any) -> str:
    done = subprocess.run([sys.executable, *map(str, words)], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def length(weights: dict[str, torch.Tensor]) -> float:
    return float(torch.cat([weight.double().flatten() for weight in weights.values()]).norm())


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_move_the_weights_as_one_with_the_same_batches(kind: str, tmp_path: Path) -> None:
    started(SCRIPTS / "two_processes.py", kind, tmp_path / "one")
    together(SCRIPTS / "two_processes.py", kind, tmp_path / "two")
    one, two = (load_file(tmp_path / name / "moved.safetensors") for name in ("one", "two"))
    apart = length({name: two[name] - moved for name, moved in one.items()})
    told = [json.loads((tmp_path / name / "told.json").read_text()) for name in ("one", "two")]
    figures = {"kind": kind, "moved": length(one), "apart": apart / length(one), "one": told[0], "two": told[1]}
    sys.stdout.write(json.dumps(figures) + "\n")  # pytest -rP shows it
    assert figures["moved"] > 0, figures
    assert figures["apart"] <= 1e-2, figures
    assert told[0]["steps"] == told[1]["steps"] > 1, figures
    assert told[0]["valid"] == pytest.approx(told[1]["valid"], rel=1e-4), figures
    assert told[0]["logged"] == pytest.approx(told[1]["logged"], rel=1e-4), figures


def test_an_alarm_that_one_process_sees_stops_both_at_the_same_step(tmp_path: Path) -> None:
    together(SCRIPTS / "two_processes.py", "stopped", tmp_path)
    assert json.loads((tmp_path / "told.json").read_text()) == {"steps": 2, "stopped_by": "not_finite"}


def test_a_run_whose_main_process_was_killed_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    together(SCRIPTS / "two_processes.py", "sft", tmp_path / "whole")
    with pytest.raises(AssertionError, match="SIGKILL"):
        together(SCRIPTS / "two_processes.py", "killed", tmp_path / "killed")
    assert "resuming from step" in together(SCRIPTS / "two_processes.py", "killed", tmp_path / "killed")
    whole, resumed = (load_file(tmp_path / name / "moved.safetensors") for name in ("whole", "killed"))
    assert length({name: resumed[name] - moved for name, moved in whole.items()}) <= 1e-6 * length(whole)


@pytest.mark.parametrize("rows", ["frozen", "trained"])
def test_a_model_sharded_by_fsdp2_has_the_gradients_of_a_whole_one_and_becomes_whole_again(rows: str) -> None:
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2)
    told = json.loads(started(*torchrun, SCRIPTS / "two_shards.py", rows))
    assert told["gradients"] > 10
    assert told["apart"] < 1e-5
    assert told["moved_apart"] < 1e-4
    assert told["whole"]


def test_a_run_and_an_alignment_in_two_processes_end_and_leave_one_checkpoint(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"eval": {"users": 12, "baselines": {"popularity": {}}, "exact_users": 0}}
    recipe, runs = write_recipe(tmp_path, **changes), tmp_path / "runs"
    told = together("-m", "llmrec", "run", recipe, "--runs", runs)
    run = runs / "tiny"
    assert told.count("valid loss:") == told.count("checkpoint  ") == 1  # of the summary
    assert (run / "sft" / "llmrec.json").is_file()
    assert not (run / "work").exists()
    log = TrainingLog(run / "logs" / "cpt.jsonl", "cpt").rows()
    steps = [row["step"] for row in log if "loss" in row]
    assert steps == sorted(set(steps))
    assert max(steps) == log[-1]["steps"]
    assert "processes" in json.loads((run / "stages" / "cpt.json").read_text())["parts"]

    play = {"users": 8, "negatives": {"self_play": {"count": 2}}}
    preference = {"iterations": 2, "batch_rows": 4, "learning_rate": 1e-3, "valid_users": 10, "prefer": play}
    aligned = {"name": "play", "checkpoint": str(run), "preference": preference, **changes}
    path = tmp_path / "play.yaml"
    path.write_text(yaml.safe_dump(aligned))
    told = together("-m", "llmrec", "align", path, "--runs", runs)
    assert told.count("checkpoint  ") == 1
    assert (runs / "play" / "align" / "llmrec.json").is_file()
    assert len(list((runs / "play" / "pairs").glob("*.parquet"))) == 2
    assert "done before" in together("-m", "llmrec", "align", path, "--runs", runs)
