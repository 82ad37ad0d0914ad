"""Trains the tiny world on preferences on one thread and kills itself: ``prefer_and_stop.py FOLDER ITERATION STEP``."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import TrainerCallback

sys.path.insert(0, str(Path(__file__).parents[2]))
from llmrec.data.config import DataConfig
from llmrec.data.dataset import read_data
from llmrec.testing.worlds import write_tiny_folder
from tests.train.conftest import make_world
from tests.train.test_preference import make_rows, quick, run, start_model, trained


class KillAt(TrainerCallback):  # type: ignore[misc]  # transformers is untyped
    """Kills the process after a step of an iteration; steps count from 1, so that step 0 never comes."""

    def __init__(self, iteration: int, step: int) -> None:
        self.iteration, self.step = iteration, step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step and args.output_dir.endswith(f"iteration-{self.iteration}"):
            os.kill(os.getpid(), signal.SIGKILL)


def main(folder: Path, iteration: int, step: int) -> None:
    torch.set_num_threads(1)
    world = make_world(read_data(DataConfig(path=str(write_tiny_folder(folder / "data")), attributes=["genres"])))
    model = start_model(world, "adapter")
    config = quick(iterations=2, batch_rows=6, train_sid_rows=True)
    run(world, model, config, make_rows(world), folder, callbacks=[KillAt(iteration, step)])
    save_file(trained(model), str(folder / "weights.safetensors"))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
