"""The reference of preference losses: the model as an iteration was given it.

The reference of DPO is the model that training starts from: the SFT model, not its base. Here it is that whatever the
flow, because it is told by what learns: every trained parameter (LoRA, and in flow "adapter" the SID rows beside it) is
as it was at the start. With a fresh adapter that equals switching the adapter off; with one that learns on, TRL's own
copy of the adapter would lack the trained SID rows, without a word.

By default all rows are scored once before the first step (`score_rows`), when the model *is* its reference: nothing has
to be kept in memory, and a run of several epochs pays one forward. What was scored is kept in a file for a resumed run.
Otherwise a copy of the trained parameters is swapped in for each batch (`llmrec.train.start_weights.StartWeights`).
An iteration begins with a new reference: the model as the iteration before has left it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llmrec import processes
from llmrec.train.mixed_precision import as_a_trainer_computes
from llmrec.train.preference.rows import PreferenceBatches
from llmrec.train.tree_forward import TreeForward


def score_rows(
    model: Any,
    forward: TreeForward,
    batches: PreferenceBatches,
    *,
    batch_rows: int,
    progress: Callable[[int, int], None] | None = None,
) -> list[np.ndarray]:
    """Log-probabilities of every row's completions by `model` as it is now, in evaluation mode.

    Several processes share the work.

    Args:
        forward: of `model`.
        progress: called with rows done and rows.

    Returns:
        Per row (completions,) float32.
    """
    order = np.argsort([len(row.tree.prompt) for row in batches.rows], kind="stable").tolist()
    parts = [order[start : start + batch_rows] for start in range(0, len(order), batch_rows)]
    found: dict[int, np.ndarray] = {}
    precision = as_a_trainer_computes(model)
    was_training = model.training
    model.eval()
    try:
        for number, members in enumerate(parts):
            if number % processes.count() != processes.index():
                continue
            with torch.no_grad(), precision:
                scores = forward([batches.rows[row].tree for row in members])
            for place, row in enumerate(members):
                found[row] = scores.sums[scores.row == place].cpu().numpy()
            if progress:
                progress(number * batch_rows + len(members), len(order))
    finally:
        model.train(was_training)
    everywhere = {row: scores for of_one in processes.gathered(found) for row, scores in of_one.items()}
    return [everywhere[row] for row in range(len(order))]


def kept_scores(folder: Path, batches: PreferenceBatches, score: Callable[[], list[np.ndarray]]) -> list[np.ndarray]:
    """What `score` returns, read from `folder` where an earlier run of the same rows has left it there."""
    path = folder / f"reference-{batches.fingerprint[:16]}.npy"
    ends = np.cumsum([len(row.tree.completions) for row in batches.rows])
    if processes.from_main(path.exists):
        return np.split(np.load(path, allow_pickle=False), ends[:-1])
    flat = np.concatenate(score())
    if processes.is_main():
        folder.mkdir(parents=True, exist_ok=True)
        waiting = path.with_name(f".{path.name}.{os.getpid()}")
        with waiting.open("wb") as file:
            np.save(file, flat, allow_pickle=False)
        waiting.rename(path)
    return np.split(flat, ends[:-1])
