"""Trains the tiny world with plain SGD and keeps how its weights moved: ``two_processes.py KIND FOLDER``.

Started by itself it takes the batches that two processes take together, one after the other.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parents[2]))
from llmrec import processes
from llmrec.config import build_config
from llmrec.data.config import DataConfig
from llmrec.data.dataset import read_data
from llmrec.stages import quiet_libraries
from llmrec.testing.worlds import write_tiny_folder
from llmrec.train import cpt, stage
from llmrec.train.config import StageConfig
from llmrec.train.grpo import stage as grpo_stage
from llmrec.train.log import TrainingLog
from llmrec.train.monitor.watch import MonitorCallback
from llmrec.train.preference import stage as preference_stage
from llmrec.train.preference.stage_config import PreferenceConfig
from llmrec.train.preference.trainer import MEASURES
from tests.train.conftest import World, make_world
from tests.train.grpo_world import grpo, settings
from tests.train.test_preference import make_rows
from tests.train.test_preference import run as prefer
from tests.train.train_and_stop import KillAt

TOGETHER = 2
ACCUMULATION = TOGETHER // processes.count()
SHARED: dict[str, Any] = {
    "method": "full",
    "learning_rate": 0.1,
    "sid_learning_rate": 0.1,
    "schedule": "constant_with_warmup",
    "warmup_ratio": 0.0,
    "gradient_accumulation": ACCUMULATION,
    "valid_users": 21,
}
GROUPS = {"prompts_per_step": 4, "max_steps": 3, "keep_best": False, "beta": 0.04, "anchor": 0.1, "learning_rate": 0.02}


def by_sgd(arguments: Callable[..., Any]) -> Callable[..., Any]:
    """Adam divides by the gradient's size and would hide a wrong scale."""

    def made(*args: Any, **kwargs: Any) -> Any:
        found = arguments(*args, **kwargs)
        found.optim, found.max_grad_norm = "sgd", 0.0
        return found

    return made


def sft(world: World, folder: Path, callbacks: Sequence[Any] = ()) -> dict[str, Any]:
    values = {**SHARED, "epochs": 0.5, "batch_tokens": 96, "evaluations": 2, "save_steps": 1}
    config = build_config(StageConfig, values, source="test")
    model = cpt.prepare(world.model, world.table, config, "extended_base")
    done = stage.run_stage(
        "cpt", config, model=model, tokenizer=world.tokenizer, renderer=world.renderer, dataset=world.dataset,
        window=20, work=folder / "work", log=folder / "log.jsonl", callbacks=callbacks,
    )  # fmt: skip
    return {"steps": done.steps, "valid": [loss for _, loss in done.valid_losses], "logged": logged(folder, "sid_loss")}


def preference(world: World, folder: Path, **changes: Any) -> dict[str, Any]:
    values = {**SHARED, "epochs": 0.5, "batch_rows": 5, "evaluations": 2, "window": 20, **changes}
    config = build_config(PreferenceConfig, values, source="test")
    done = prefer(world, trained_in_full(world).model, config, make_rows(world), folder)
    valid = [loss for _, loss in done.valid_losses[0]]
    return {"steps": done.steps, "valid": valid, "logged": logged(folder, "loss", *MEASURES)}


def rewards(world: World, folder: Path) -> dict[str, Any]:
    done = grpo(trained_in_full(world), settings(**{**SHARED, **GROUPS}), folder)
    told = logged(folder, "loss", "reward", "kl", "entropy", "anchor", "dropped", name="grpo.jsonl")
    return {"steps": done.steps, "valid": [value for _, value in done.held_out], "logged": told}


def stopped(world: World, folder: Path) -> dict[str, Any]:
    """A gradient that is no number, at the second step, in the log of the main process alone."""

    class Broken(MonitorCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if state.global_step == 2 and processes.is_main() and "grad_norm" in logs:
                logs["grad_norm"] = math.nan
            super().on_log(args, state, control, logs, **kwargs)

    grpo_stage.MonitorCallback = Broken
    done = grpo(trained_in_full(world), settings(**{**SHARED, **GROUPS}), folder)
    return {"steps": done.steps, "stopped_by": done.stopped_by and done.stopped_by.name}


def killed(world: World, folder: Path) -> dict[str, Any]:
    """SFT whose main process dies after the second step, once."""
    first = processes.from_main(lambda: not (folder / "work").exists())
    return sft(world, folder, [KillAt(2)] if first and processes.is_main() else [])


def trained_in_full(world: World) -> World:
    world.model.requires_grad_(True)
    return world


def logged(folder: Path, *names: str, name: str = "log.jsonl") -> list[float]:
    """What the log says of each step, in its order."""
    rows = processes.from_main(TrainingLog(folder / name, "").rows)
    return [row[each] for row in rows for each in names if each in row]


KINDS: dict[str, Callable[[World, Path], dict[str, Any]]] = {
    "sft": sft,
    "dpo": partial(preference, losses={"sigmoid": 1.0}),
    "s-dpo": partial(preference, losses={"s_dpo": 1.0}, precompute_reference=False),
    "grpo": rewards,
}


def main(kind: str, folder: Path) -> None:
    torch.set_num_threads(1)
    quiet_libraries()
    stage.stage_arguments = by_sgd(stage.stage_arguments)
    preference_stage.stage_arguments = by_sgd(preference_stage.stage_arguments)
    grpo_stage.grpo_arguments = by_sgd(grpo_stage.grpo_arguments)
    data = processes.from_main(lambda: write_tiny_folder(folder / "data"))
    world = make_world(read_data(DataConfig(path=str(data), attributes=["genres"])))
    before = {name: weight.detach().clone() for name, weight in world.model.named_parameters()}
    told = {**KINDS, "stopped": stopped, "killed": killed}[kind](world, folder)
    moved = {name: weight.detach() - before[name] for name, weight in world.model.named_parameters()}
    if processes.is_main():
        save_file(moved, str(folder / "moved.safetensors"))
        (folder / "told.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
