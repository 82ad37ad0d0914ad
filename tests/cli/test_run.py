"""``llmrec run``: what it prints, and that killed and interrupted trainings go on as if nothing had happened."""

import io
import os
import signal
import subprocess
import sys
import time

import pytest
from rich.console import Console

from llmrec import cli
from llmrec.checkpoint_card import fingerprint
from llmrec.pipeline import load_recipe, run_pipeline
from llmrec.train.states import last_state
from tests.tiny_run import STAGE, write_recipe


@pytest.fixture
def llmrec(capsys, monkeypatch):
    """``llmrec(words...)`` -> (exit code, stdout, stderr)."""
    monkeypatch.setenv("COLUMNS", "160")

    def call(*words):
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main([str(word) for word in words])
        captured = capsys.readouterr()
        return end.value.code or 0, captured.out, captured.err

    return call


def long_recipe(folder):
    """Some two hundred small steps, a state every fourth."""
    cpt = {**STAGE, "method": "full", "epochs": 8, "batch_tokens": 64, "save_steps": 4, "learning_rate": 1e-3}
    lean = {"users": 4, "baselines": {}, "exact_users": 0}
    return write_recipe(folder, cpt=cpt, sft=None, eval=lean, untrained=False)


class Started:
    """``llmrec run RECIPE`` in a process of its own, on one thread."""

    def __init__(self, recipe, runs):
        self.folder = runs / "tiny"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "llmrec", "run", str(recipe), "--runs", str(runs)],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def wait_for_state(self):
        deadline = time.monotonic() + 200
        while not any(self.folder.glob("work/cpt-*/checkpoint-*/trainer_state.json")):
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        return self

    def end(self, with_signal=None):
        """Exit code, stdout and stderr."""
        if with_signal is not None:
            self.process.send_signal(with_signal)
        out, err = self.process.communicate(timeout=250)
        return self.process.returncode, out, err


def test_a_finished_run_shows_its_tables_users_losses_and_what_to_try(tiny_run, llmrec):
    recipe, result, _ = tiny_run
    code, out, err = llmrec("run", recipe, "--runs", result.folder.parent)
    assert (code, err) == (0, "")
    for text in (
        "tiny in ", "60 items in the catalogue", "done before", "filtered (history taken out", "unfiltered",
        "popularity", "untrained", "invalid items: 0 of", "valid loss: cpt ", ", sft ", f"report      {result.report}",
        f"checkpoint  {result.final}", f"llmrec recommend {result.final} ",
    ):  # fmt: skip
        assert text in out
    assert out.count("took") == 5
    told = result.explanations[0]
    assert f"Why {told['item']}, for user {told['user_id']}?" in out
    suggested = out.split("try         llmrec ")[1].split()
    code, out, _ = llmrec(*suggested)
    assert code == 0
    assert "recommended" in out


def test_recipes_validate_knows_the_same_mistakes(tmp_path, llmrec):
    recipe = write_recipe(tmp_path)
    assert llmrec("recipes", "validate", recipe)[0] == 0
    code, _, err = llmrec("recipes", "validate", recipe, "sft.method=full")
    assert code == 2
    assert "sft.method must be lora" in err


def test_ctrl_c_tells_where_things_are_and_exits_130(tmp_path, llmrec, monkeypatch):
    from llmrec.train import stage

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(stage, "run_stage", interrupted)
    code, out, err = llmrec("run", write_recipe(tmp_path), "--runs", tmp_path / "runs")
    assert code == 130
    assert f"What is finished stays in {tmp_path / 'runs' / 'tiny'}; the same command goes on from there." in out
    assert err.startswith("stopped: interrupted by Ctrl-C\nhint: ")
    assert (tmp_path / "runs/tiny/sid").is_dir()
    assert not (tmp_path / "runs/tiny/cpt").exists()


def test_ctrl_c_gives_the_terminal_back(tiny_run, tmp_path, monkeypatch):
    from llmrec.train import progress

    def interrupted(self, *args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(progress.LogCallback, "on_step_end", interrupted)
    shown = io.StringIO()
    with pytest.raises(KeyboardInterrupt):
        run_pipeline(
            load_recipe(write_recipe(tmp_path)), tmp_path / "run", Console(file=shown, force_terminal=True, width=100)
        )
    hidden, visible = shown.getvalue().rfind("\x1b[?25l"), shown.getvalue().rfind("\x1b[?25h")
    assert -1 < hidden < visible  # the cursor


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(recipe, folder) of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    recipe = long_recipe(folder)
    started = Started(recipe, folder)
    code, _, err = started.end()
    assert code == 0, err
    return recipe, started.folder


@pytest.mark.slow
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT], ids=["kill", "ctrl-c"])
def test_a_stopped_run_goes_on_to_the_same_bits(whole, tmp_path, end):
    recipe, whole_folder = whole
    stopped = Started(recipe, tmp_path / "stopped").wait_for_state()
    code, out, err = stopped.end(end)
    assert code == (130 if end == signal.SIGINT else -9)
    if end == signal.SIGINT:
        assert "the same command goes on from there" in out
        assert err == "stopped: interrupted by Ctrl-C\nhint: the same command goes on from the last finished step\n"
    assert not (stopped.folder / "cpt").exists()
    assert not list(stopped.folder.glob(".cpt-*"))
    assert last_state(next(stopped.folder.glob("work/cpt-*"))) is not None
    code, out, err = Started(recipe, tmp_path / "stopped").end()
    assert code == 0, err
    assert "resuming from step" in out
    assert not (stopped.folder / "work").exists()
    assert fingerprint(stopped.folder / "cpt") == fingerprint(whole_folder / "cpt")
    logs = [(folder / "logs/cpt.jsonl").read_text() for folder in (whole_folder, stopped.folder)]
    steps = [[line.split('"seconds"')[0] for line in log.splitlines()] for log in logs]
    assert steps[0] == steps[1]
