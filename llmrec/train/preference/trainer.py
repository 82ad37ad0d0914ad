"""`PreferenceTrainer`: the trainer of all stages, with losses over preferences on one forward per shared prefix tree.

It is a `RecommenderTrainer`: batches come ready-made and in order, SID rows have a learning rate of their own, and the
valid loss is that of the other stages. Only ``loss_of`` and ``log`` differ. TRL's ``DPOTrainer`` is not its base:
that one tokenises strings and repeats the prompt for every completion; its losses are taken from it nevertheless
(`llmrec.train.preference.trl_losses`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor
from trl.trainer.utils import disable_dropout_in_model

from llmrec.train.batches import IGNORED, collate
from llmrec.train.preference.losses import PreferenceObjective, ScoredRows
from llmrec.train.preference.rows import PreferenceBatches
from llmrec.train.start_weights import StartWeights
from llmrec.train.trainer import RecommenderTrainer
from llmrec.train.tree_forward import TreeForward

MEASURES = ("preference_loss", "sft_loss", "margin", "accuracy")
"""What a step logs beside ``loss``, as means over rows: the losses without and of the anchor, the reward of the chosen
item less the mean of the rejected ones, and the share of pairs whose chosen item has the higher reward."""


class PreferenceTrainer(RecommenderTrainer):
    """Trains one iteration; see the module's docstring.

    Args:
        forward: of the model.
        objective: the loss.
        reference: scores each batch; None where the batches bring what the reference said.
    """

    def __init__(
        self,
        *args: Any,
        forward: TreeForward,
        objective: PreferenceObjective,
        reference: StartWeights | None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        disable_dropout_in_model(self.model)  # model and reference would differ before the first step
        self._forward = forward
        self._objective = objective
        self._reference = reference
        self._sums: dict[str, Tensor | float] = defaultdict(float)
        self._rows = 0

    def loss_of(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any) -> Tensor:
        """The mean loss over the rows of the step; batches of the valid loss are those of every stage."""
        if "trees" not in inputs:
            return super().loss_of(model, inputs, num_items_in_batch)
        with torch.no_grad(), nullcontext() if self._reference is None else self._reference.active():
            reference = inputs["reference"] if self._reference is None else self._forward(inputs["trees"]).sums
        found = self._forward(inputs["trees"])
        parts = self._objective(ScoredRows(found.tokens, found.mask, reference, found.row, inputs["weight"]))
        if not (inputs["labels"] != IGNORED).any():
            return parts.total * 0.0  # a batch that only evens out the processes
        values = (parts.preference, parts.anchor, parts.margin, parts.ahead)
        for name, value in zip(MEASURES, values, strict=True):
            self._sums[name] = self._sums[name] + value
        self._rows += parts.rows
        return self.share(parts.total, parts.rows, num_items_in_batch)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add `MEASURES` since the last call."""
        if self.model.training:
            own = [float(self._sums[name]) for name in MEASURES] + [float(self._rows)]
            sums = self.accelerator.reduce(torch.tensor(own, device=self.accelerator.device), reduction="sum").tolist()
            if sums[-1]:
                logs.update({name: value / sums[-1] for name, value in zip(MEASURES, sums[:-1], strict=True)})
            self._sums.clear()
            self._rows = 0
        super().log(logs, start_time)


class PreferenceCollator:
    """Turns the numbers of a batch's rows into what ``loss_of`` reads, and pads batches of the valid loss.

    A row of the data set is a batch: ``rows``, their numbers, and whether it ``counts``. One that does not evens out
    the processes, as `llmrec.train.batches.evened` says.

    Args:
        batches: the rows.
        reference: per row what the reference said, None where it is asked for each batch.
        pad_id: for batches of the valid loss.
    """

    def __init__(self, batches: PreferenceBatches, reference: Sequence[np.ndarray] | None, pad_id: int) -> None:
        self._batches = batches
        self._reference = reference
        self._pad_id = pad_id

    def __call__(self, batches: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """``trees``, ``weight``, ``reference`` and ``labels``: one label a row, which the Trainer counts."""
        if "rows" not in batches[0]:
            return collate(batches, self._pad_id)
        members = [number for batch in batches for number in batch["rows"]]
        counts = [batch["counts"] for batch in batches for _ in batch["rows"]]
        rows = [self._batches.rows[number] for number in members]
        weight = [value for row in rows for value in (1.0, *row.weights)]
        made: dict[str, Any] = {
            "trees": [row.tree for row in rows],
            "weight": torch.tensor(weight),
            # the Trainer divides a step of several batches by the labels behind the first place: here, by its rows
            "labels": torch.tensor([[IGNORED, 0 if counted else IGNORED] for counted in counts]),
        }
        if self._reference is not None:
            made["reference"] = torch.from_numpy(np.concatenate([self._reference[number] for number in members]))
        return made
