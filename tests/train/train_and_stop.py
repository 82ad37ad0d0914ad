"""Trains the tiny world on one thread and kills itself after a step: ``train_and_stop.py FOLDER STEP`` (0: never)."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_model
from transformers import TrainerCallback

from llmrec.data.config import DataConfig
from llmrec.data.dataset import read_data
from llmrec.testing.worlds import write_tiny_folder
from llmrec.train import cpt
from llmrec.train.config import StageConfig
from llmrec.train.stage import run_stage

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.train.conftest import make_world


class KillAt(TrainerCallback):  # type: ignore[misc]
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def main(folder: Path, stop_at: int) -> None:
    torch.set_num_threads(1)
    data = write_tiny_folder(folder / "data")
    world = make_world(read_data(DataConfig(path=str(data), attributes=["genres"])))
    config = StageConfig(method="full", epochs=2, batch_tokens=128, save_steps=5, evaluations=4, valid_users=10)
    model = cpt.prepare(world.model, world.table, config, "extended_base")
    run_stage(
        "cpt", config, model=model, tokenizer=world.tokenizer, renderer=world.renderer, dataset=world.dataset,
        window=20, work=folder / "work", log=folder / "log.jsonl", callbacks=[KillAt(stop_at)],
    )  # fmt: skip
    save_model(model, str(folder / "weights.safetensors"))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
