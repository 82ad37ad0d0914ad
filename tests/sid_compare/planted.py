"""A planted data set: users stay within a kind of item and take any item of it, so that a code for the kind is what a
tokenizer can know. Vectors of the kinds carry that behaviour, random vectors do not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml

KINDS, PER_KIND, USERS = 8, 25, 120
PROXY = {
    "proxy.base.config.hidden_size": 32,
    "proxy.base.config.intermediate_size": 64,
    "proxy.base.config.num_hidden_layers": 2,
    "proxy.batch_tokens": 400,
    "proxy.window": 8,
    "proxy.exact_users": 5,
}


def write_planted(folder: Path) -> Path:
    """Write the data set into ``folder/planted`` and recipes ``kinds.yaml`` and ``random.yaml`` beside it."""
    rng = np.random.default_rng(0)
    data = folder / "planted"
    data.mkdir(parents=True)
    items = KINDS * PER_KIND
    rows = ["user_id,item_id,timestamp"]
    for user in range(USERS):
        taken = rng.choice(np.arange(user % KINDS, items, KINDS), size=8, replace=False)
        rows += [f"u{user},i{item},{time}" for time, item in enumerate(taken)]
    (data / "interactions.csv").write_text("\n".join(rows) + "\n")
    listed = [{"item_id": f"i{item}", "title": f"Thing {item}", "shelf": [f"s{item % KINDS}"]} for item in range(items)]
    (data / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in listed))
    (folder / "ids.txt").write_text("".join(f"i{item}\n" for item in range(items)))
    noise = rng.normal(size=(items, 8))
    write_arm(folder, "kinds", 5 * np.eye(KINDS)[np.arange(items) % KINDS] + 0.3 * noise)
    write_arm(folder, "random", rng.normal(size=(items, 8)))
    return folder


def write_arm(folder: Path, name: str, vectors: np.ndarray, **data: Any) -> Path:
    """A recipe of SIDs alone from own vectors."""
    np.save(folder / f"{name}.npy", vectors.astype(np.float32))
    recipe = {
        "name": name,
        "data": {"path": str(folder / "planted"), **data},
        "sid": {
            "embeddings": {"source": "file", "path": str(folder / f"{name}.npy"), "ids": str(folder / "ids.txt")},
            "quantizer": {"num_levels": 2, "codebook_size": 8},
        },
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return path
