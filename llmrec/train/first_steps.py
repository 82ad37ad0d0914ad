"""The first steps of a stage as a trial: its own settings, every step measured, nothing kept."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PrinterCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from llmrec.sid_vocab.table import SIDTable
from llmrec.train.config import StageConfig
from llmrec.train.stage import stage_arguments, stage_trainer


@dataclass(frozen=True)
class FirstSteps:
    """What the first steps of a stage measured, all in nats per target.

    Attributes:
        losses: of each step's batches, before it learned from them: targets that the model had not seen.
        valid_before: valid loss before the first step.
        valid_after: and after the last one.
        seconds: of all this.
    """

    losses: tuple[float, ...]
    valid_before: float
    valid_after: float
    seconds: float


def first_steps(
    config: StageConfig,
    *,
    model: Any,
    tokenizer: Any,
    table: SIDTable,
    train: Any,
    valid: Any,
    steps: int,
    of_steps: int,
    work: Path,
) -> FirstSteps:
    """Train `model` in place for the first steps of a stage, and measure each of them; nothing is kept.

    Args:
        model: as in `run_stage`.
        table: SIDs with token ids.
        train: the batches of `build_batches`, at least as many as `steps` take.
        valid: the batches of `valid_dataset`.
        steps: where to stop.
        of_steps: steps of the whole stage, by which the learning rate goes.
        work: an empty folder for the trainer.
    """
    start = time.perf_counter()
    measured = _Measured(steps)
    arguments = stage_arguments(
        config,
        of_steps,
        work,
        fresh=True,
        max_steps=of_steps,
        logging_steps=1,
        eval_steps=of_steps + 1,
        save_strategy="no",
        report_to="none",
    )
    trainer = stage_trainer(
        config,
        arguments,
        model=model,
        tokenizer=tokenizer,
        table=table,
        train=train,
        valid=valid,
        callbacks=[measured],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    trainer.evaluate()
    before, after = measured.valid
    return FirstSteps(tuple(measured.losses), before, after, time.perf_counter() - start)


class _Measured(TrainerCallback):  # type: ignore[misc]  # transformers is untyped
    """Keeps the losses and stops after `steps`."""

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self.losses: list[float] = []
        self.valid: list[float] = []

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float],
        **kwargs: Any,
    ) -> None:
        if "loss" in logs:
            self.losses.append(logs["loss"])
        if "eval_loss" in logs:
            self.valid.append(logs["eval_loss"])

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        control.should_training_stop = state.global_step >= self._steps
