"""What a training run tells: progress with an ETA on the console, and rows for the log file."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from llmrec.train.log import TrainingLog


class LogCallback(TrainerCallback):  # type: ignore[misc]  # transformers is untyped
    """Feeds `TrainingLog` and a progress bar; without a terminal it prints a line now and then instead.

    Args:
        log: the file.
        tokens: tokens of all batches, spread evenly over the steps for the rate that is shown.
        console: where to show progress.
        measures: what a stage logs beside its losses.
        every_seconds: distance of the lines without a terminal.
    """

    def __init__(
        self,
        log: TrainingLog,
        *,
        tokens: int,
        console: Console,
        measures: Sequence[str] = (),
        every_seconds: float = 20.0,
    ) -> None:
        self._log = log
        self._tokens = tokens
        self._console = console
        self._names = ("loss", "sid_loss", "text_loss", "learning_rate", "grad_norm", *measures)
        self._every = every_seconds
        self._before = 0.0
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._last = ""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the clock, after the seconds that an interrupted run has used."""
        self._first_step = state.global_step
        self._before = self._log.cut(state.global_step)
        self._start = self._printed = time.perf_counter()
        if self._console.is_terminal:
            self._bar = Progress(
                TextColumn(f"{self._log.stage:>4}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("steps · {task.fields[info]} · left"),
                TimeRemainingColumn(),
                console=self._console,
            )
            self._bar.start()
            self._task = self._bar.add_task("", total=state.max_steps, completed=state.global_step, info="starting")

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Write a row; ``eval_loss`` becomes ``valid_loss``."""
        seconds = self._before + time.perf_counter() - self._start
        done = self._tokens * state.global_step // max(1, state.max_steps)
        row: dict[str, Any] = {
            "step": state.global_step,
            "steps": state.max_steps,
            "seconds": round(seconds, 2),
            "tokens": done,
        }
        for name, value in (logs or {}).items():
            if name in self._names:
                row[name] = value
            elif name == "eval_loss":
                row["valid_loss"] = value
        if len(row) > 4:
            self._log.add(row)
        if "valid_loss" in row:
            self._say(f"valid loss {row['valid_loss']:.3f} after {state.global_step} of {state.max_steps} steps")
        elif "loss" in row:
            self._last = f"loss {row['loss']:.3f}"

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Move the bar, or print a line where it is time for one."""
        elapsed = time.perf_counter() - self._start
        steps = state.global_step - self._first_step
        rate = self._tokens * steps / max(1, state.max_steps) / elapsed
        info = f"{self._last or 'loss …'} · {rate:,.0f} tokens/s"
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=state.global_step, info=info)
        elif time.perf_counter() - self._printed > self._every:
            self._printed = time.perf_counter()
            left = elapsed / steps * (state.max_steps - state.global_step)
            self._say(f"step {state.global_step}/{state.max_steps} · {info} · {_clock(left)} left")

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Close the bar."""
        self.close()

    def close(self) -> None:
        """Give the terminal back, also after an error or Ctrl-C, which no event tells."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _say(self, text: str) -> None:
        self._console.print(f"{self._log.stage:>4}  {text}", highlight=False)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"
