"""Trains the tiny world with GRPO on one thread and kills itself: ``grpo_and_stop.py FOLDER STEP`` (0: never)."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save_model

sys.path.insert(0, str(Path(__file__).parents[2]))
from llmrec.data.config import DataConfig
from llmrec.data.dataset import read_data
from llmrec.testing.worlds import write_tiny_folder
from tests.train.conftest import make_world
from tests.train.grpo_world import grpo, settings
from tests.train.train_and_stop import KillAt


def main(folder: Path, stop_at: int) -> None:
    torch.set_num_threads(1)
    data = write_tiny_folder(folder / "data")
    world = make_world(read_data(DataConfig(path=str(data), attributes=["genres"])))
    world.model.requires_grad_(True)
    config = settings(max_steps=8, save_steps=3, num_iterations=2, keep_best=False, evaluate_steps=3)
    grpo(world, config, folder, callbacks=[KillAt(stop_at)])
    save_model(world.model, str(folder / "weights.safetensors"))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
