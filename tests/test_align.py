"""``llmrec align``: every method from a finished run to a judged checkpoint, going on after a stop, bad input."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from llmrec import cli
from llmrec.align.config import AlignConfig, load_align_recipe
from llmrec.align.run import ALIGNED, START, run_align
from llmrec.checkpoint import Checkpoint
from llmrec.config import build_config
from llmrec.errors import ConfigError, InputError, MismatchError
from llmrec.recommender import Recommender
from llmrec.testing.worlds import write_tiny_folder
from llmrec.train.progress import LogCallback
from tests.tiny_run import STAGE

PREFERENCE = {
    "learning_rate": 1e-3, "batch_rows": 4, "valid_users": 10, "evaluations": 2, "save_steps": 2,
}  # fmt: skip
RANDOM = {"users": 16, "negatives": {"random": {"count": 3}}}
METHODS: dict[str, dict[str, Any]] = {
    "dpo": {"preference": {**PREFERENCE, "losses": {"sigmoid": 1.0}, "prefer": RANDOM}},
    "s-dpo": {
        "preference": {
            **PREFERENCE, "iterations": 2, "prefer": {"users": 8, "negatives": {"self_play": {"count": 2}}},
        }
    },
    "grpo": {
        "grpo": {
            "max_steps": 2, "prompts_per_step": 4, "rollout": {"group_size": 4}, "valid_users": 10,
            "evaluate_steps": 2, "learning_rate": 1e-3, "keep_best": False,
        }
    },
    "continued": {"continued": {**STAGE, "steps": 3, "learning_rate": 1e-3}},
}  # fmt: skip


def recipe(tiny_run: Any, method: str, **changes: Any) -> AlignConfig:
    """A recipe of `METHODS` on the last checkpoint of the tiny run."""
    start = {"checkpoint": str(tiny_run[1].folder), "eval": {"users": 12, "exact_users": 0}}
    return build_config(AlignConfig, {"name": method, **start, **METHODS[method], **changes}, source="test")


def align(config: AlignConfig, root: Path) -> tuple[Any, str]:
    """Run, and give the result and what was told."""
    shown = io.StringIO()
    result = run_align(config, root / config.name, Console(file=shown, width=200))
    return result, shown.getvalue()


@pytest.fixture
def llmrec(capsys: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., tuple[Any, str, str]]:
    """``llmrec(words...)`` -> (exit code, stdout, stderr), in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")

    def run(*words: Any) -> tuple[Any, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main([str(word) for word in words])
        captured = capsys.readouterr()
        return end.value.code or 0, captured.out, captured.err

    return run


@pytest.mark.parametrize("name", METHODS)
def test_a_method_gives_a_checkpoint_that_recommends_and_stands_beside_its_start(
    tiny_run: Any, tmp_path: Path, name: str
) -> None:
    config = recipe(tiny_run, name)
    result, shown = align(config, tmp_path)
    start, made = Checkpoint.load(tiny_run[1].final), Checkpoint.load(result.checkpoint)

    assert [entry.stage for entry in made.card.lineage] == ["cpt", "sft", config.method]
    assert made.card.lineage[-1].parent == start.fingerprint
    assert made.card.kind == "adapter"
    assert made.card.serving == start.card.serving
    assert (made.folder / "adapter_model.safetensors").read_bytes() != (
        start.folder / "adapter_model.safetensors"
    ).read_bytes()
    recommended = Recommender(made).recommend(["1", "2", "3"], 5)
    assert {item.item_id for item in recommended.items} <= set(made.table.item_ids)
    assert len(recommended.items) == 5

    assert result.evaluation.models[:2] == (ALIGNED, START)
    assert result.evaluation.summary["split"] == "valid"
    assert {"model": ALIGNED, "against": START}.items() <= result.evaluation.summary["paired"][0].items()
    assert result.training["steps"] == {"dpo": 4, "s-dpo": 4, "grpo": 2, "continued": 3}[name]
    assert result.training["tokens"] > 0
    assert result.report.exists()
    assert (result.folder / "logs" / f"{config.method}.jsonl").exists()
    assert not (result.folder / "work").exists()
    assert "start" in shown.splitlines()[0]
    assert str(start.folder) in shown

    again, told = align(config, tmp_path)
    assert [run.ran for run in again.stages] == [False, False]
    assert "done before" in told


def test_each_iteration_of_self_play_keeps_the_pairs_it_was_trained_on(tiny_run: Any, tmp_path: Path) -> None:
    from llmrec.train.preference.files import read_rows

    result, _ = align(recipe(tiny_run, "s-dpo"), tmp_path)
    first, second = (read_rows(result.folder / "pairs" / f"iteration-{number}.parquet") for number in (1, 2))
    assert {row.iteration for row in first} == {1}
    assert {row.iteration for row in second} == {2}
    assert [row.rejected for row in first] != [row.rejected for row in second]
    assert set(first[0].source) == {"self_play"}


def test_a_stopped_training_goes_on_and_ends_in_the_same_weights(
    tiny_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None
) -> None:
    config = recipe(tiny_run, "dpo")
    whole, _ = align(config, tmp_path / "whole")
    step_end = LogCallback.on_step_end

    def stops(self: Any, args: Any, state: Any, *rest: Any, **more: Any) -> None:
        if state.global_step == 3:
            raise KeyboardInterrupt
        step_end(self, args, state, *rest, **more)

    monkeypatch.setattr(LogCallback, "on_step_end", stops)
    with pytest.raises(KeyboardInterrupt):
        align(config, tmp_path)
    assert not (tmp_path / "dpo" / "align").exists()
    monkeypatch.undo()
    resumed, told = align(config, tmp_path)
    assert "resuming from step 2" in told
    weights = [one.checkpoint / "adapter_model.safetensors" for one in (whole, resumed)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_other_settings_train_anew_and_a_new_evaluation_does_not(tiny_run: Any, tmp_path: Path) -> None:
    first, _ = align(recipe(tiny_run, "dpo"), tmp_path)
    judged = {"users": 8, "exact_users": 0, "baselines": {}}
    second, _ = align(recipe(tiny_run, "dpo", eval=judged), tmp_path)
    assert [run.ran for run in second.stages] == [False, True]
    assert second.evaluation.summary["users"] == 8
    changed = {"preference": {**METHODS["dpo"]["preference"], "beta": 0.5}}
    third, told = align(recipe(tiny_run, "dpo", eval=judged, **changed), tmp_path)
    assert [run.ran for run in third.stages] == [True, True]
    assert "preference.beta: 0.1 -> 0.5" in told
    assert first.checkpoint == third.checkpoint


def test_pairs_of_a_folder_and_the_checkpoint_of_another_alignment(tiny_run: Any, tmp_path: Path, llmrec: Any) -> None:
    words = ("prefer", "random", f"checkpoint={tiny_run[1].folder}", "users=16", "--output", tmp_path / "pairs")
    assert llmrec(*words)[0] == 0
    given = {"preference": {**PREFERENCE, "pairs": str(tmp_path / "pairs")}}
    first, _ = align(recipe(tiny_run, "dpo", **given), tmp_path)
    second = recipe(tiny_run, "continued", checkpoint=str(first.folder))
    result, _ = align(second, tmp_path)
    lineage = Checkpoint.load(result.checkpoint).card.lineage
    assert [entry.stage for entry in lineage] == ["cpt", "sft", "preference", "continued"]
    assert lineage[-1].parent == Checkpoint.load(first.checkpoint).fingerprint


def test_the_command_runs_a_shipped_recipe_and_says_what_it_took(tiny_run: Any, llmrec: Any) -> None:
    changes = ("continued.steps=2", "continued.batch_tokens=256", "eval.users=8", "eval.exact_users=0")
    code, out, err = llmrec("align", "continued", f"checkpoint={tiny_run[1].final}", *changes)
    assert code == 0, err
    assert "trained     2 steps" in out
    assert "checkpoint  runs/continued/align" in out
    assert json.loads(Path("runs/continued/train.json").read_text())["method"] == "continued"
    again = load_align_recipe("runs/continued/recipe.yaml")
    assert again.continued is not None
    assert again.continued.steps == 2


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({}, "exactly one of preference, grpo, continued"),
        ({"grpo": {}, "continued": {}}, "given grpo and continued"),
        ({"preference": {}}, "given neither"),
        ({"preference": {"pairs": "x", "prefer": RANDOM}}, "given both"),
        ({"preference": {"prefer": {**RANDOM, "checkpoint": "x"}}}, "prefer.checkpoint"),
        ({"continued": {"steps": 3, "tokens": 4}}, "steps and tokens are both given"),
        ({"grpo": {"rewards": {"parts": {"text_similarity": {}}}}}, "no text vectors"),
        ({"grpo": {"rollout": {"group_size": 1}}}, "group_size"),
        ({"continued": {"step": 3}}, "did you mean 'steps'"),
    ],
)
def test_wrong_combinations_are_refused_with_reasons(values: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        build_config(AlignConfig, {"name": "x", **values}, source="test")


def test_a_start_that_cannot_be_aligned_leaves_nothing(tiny_run: Any, tmp_path: Path, llmrec: Any) -> None:
    run = tiny_run[1].folder
    untaught = tmp_path / "untaught"
    shutil.copytree(run / "cpt", untaught)
    card = json.loads((untaught / "llmrec.json").read_text())
    card["recipe"]["cpt"]["tasks"] = {"sid_to_title": {}}
    (untaught / "llmrec.json").write_text(json.dumps(card))
    with pytest.raises(InputError, match="seen no sft"):
        align(recipe(tiny_run, "dpo", checkpoint=str(untaught)), tmp_path)
    with pytest.raises(InputError, match=r"(?s)no llmrec checkpoint.*does not exist"):
        align(recipe(tiny_run, "grpo", checkpoint=str(tmp_path / "gone")), tmp_path)
    head = {"preference": {**METHODS["dpo"]["preference"], "head": "vocab"}}
    with pytest.raises(InputError, match=r"set preference.head: level"):
        align(recipe(tiny_run, "dpo", name="head", **head), tmp_path)
    folder = {"preference": {**PREFERENCE, "pairs": str(tmp_path / "none")}}
    with pytest.raises(InputError, match=r"no preference data|preferences.json"):
        align(recipe(tiny_run, "dpo", name="pairs", **folder), tmp_path)
    with pytest.raises(InputError, match="is kept"):
        run_align(recipe(tiny_run, "dpo"), run, Console(quiet=True))
    other = write_tiny_folder(tmp_path / "other", seed=1)
    with pytest.raises(MismatchError, match="may have learnt targets"):
        align(recipe(tiny_run, "dpo", name="moved", data={"path": str(other), "attributes": ["genres"]}), tmp_path)
    assert not list(tmp_path.glob("*/align"))
    assert not (tmp_path / "pairs").exists()
    code, _, err = llmrec("align", "dpo")
    assert (code, "names no checkpoint" in err) == (2, True)
    assert not (tmp_path / "runs").exists()
