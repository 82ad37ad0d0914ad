"""A pipeline recipe that runs in seconds: own vectors instead of an encoder, a two-layer Llama, two baselines."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from rich.console import Console

from llmrec.pipeline import RunResult, load_recipe, run_pipeline
from llmrec.testing.worlds import write_tiny_folder

BASE = {
    "config": {
        "model_type": "llama",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
    },
    "tokenizer_size": 400,
}
STAGE = {"batch_tokens": 256, "evaluations": 2, "valid_users": 10}


def write_recipe(folder: Path, **changes: Any) -> Path:
    """Write data, vectors and ``recipe.yaml`` into `folder`; `changes` replace whole groups of the recipe."""
    data = write_tiny_folder(folder / "tiny")
    np.save(folder / "vectors.npy", np.random.default_rng(0).normal(size=(60, 16)).astype(np.float32))
    (folder / "ids.txt").write_text("".join(f"{item + 1}\n" for item in range(60)))
    recipe = {
        "name": "tiny",
        "data": {"path": str(data), "attributes": ["genres"]},
        "base": BASE,
        "sid": {
            "embeddings": {"source": "file", "path": str(folder / "vectors.npy"), "ids": str(folder / "ids.txt")},
            "quantizer": {"num_levels": 2, "codebook_size": 8},
        },
        "cpt": {**STAGE, "method": "full", "epochs": 2, "learning_rate": 3e-3, "save_steps": 4},
        "sft": {**STAGE, "tasks": {"behaviour": {}, "explain": {"share": 0.3}}, "train_sid_rows": False},
        "serving": {"window": 10},
        "eval": {"users": 12, "baselines": {"popularity": {}, "itemknn": {}}, "exact_users": 2},
        **changes,
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return path


def run(recipe: Path, folder: Path, *overrides: str) -> tuple[RunResult, str]:
    """Run in this process; gives the result and what the console showed."""
    shown = io.StringIO()
    result = run_pipeline(load_recipe(recipe, overrides), folder, Console(file=shown, width=200))
    return result, shown.getvalue()
