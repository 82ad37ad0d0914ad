"""A tiny world for GRPO: users who stay within a genre, a model that has learned it, and a stage's settings."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from llmrec.config import build_config
from llmrec.train import cpt
from llmrec.train.config import StageConfig
from llmrec.train.grpo.config import GRPOStageConfig
from llmrec.train.grpo.stage import GRPOResult, run_grpo
from llmrec.train.stage import run_stage
from tests.train.conftest import World

QUICK = {
    "rollout": {"group_size": 8},
    "prompts_per_step": 8,
    "max_steps": 4,
    "learning_rate": 1e-3,
    "sid_learning_rate": 1e-3,
    "method": "full",
    "train_sid_rows": True,
    "valid_users": 20,
    "evaluate_steps": 2,
    "save_steps": 2,
    "warmup_ratio": 0.0,
    "normalise": "legal",
}


def settings(**changes: Any) -> GRPOStageConfig:
    return build_config(GRPOStageConfig, {**QUICK, **changes}, source="test")


def learned(world: World, folder: Path, epochs: float = 8) -> World:
    """The world's model after some supervised epochs."""
    quick = {"epochs": epochs, "batch_tokens": 256, "learning_rate": 3e-3, "sid_learning_rate": 1e-2, "valid_users": 20}
    config = build_config(StageConfig, {**quick, "method": "full"}, source="test")
    model = cpt.prepare(world.model, world.table, config, "extended_base")
    run_stage(
        "sft",
        config,
        model=model,
        tokenizer=world.tokenizer,
        renderer=world.renderer,
        dataset=world.dataset,
        window=20,
        work=folder / "sft-work",
        log=folder / "sft.jsonl",
    )
    return world


def copied(world: World) -> World:
    return World(world.dataset, world.table, copy.deepcopy(world.model), world.tokenizer, world.renderer)


def grpo(world: World, config: GRPOStageConfig, folder: Path, **changes: Any) -> GRPOResult:
    return run_grpo(
        "grpo",
        config,
        **{
            "model": world.model,
            "tokenizer": world.tokenizer,
            "renderer": world.renderer,
            "dataset": world.dataset,
            "window": 20,
            "normalise": "level",
            "work": folder / "work",
            "log": folder / "grpo.jsonl",
            **changes,
        },
    )
