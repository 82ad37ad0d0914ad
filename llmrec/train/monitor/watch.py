"""`MonitorCallback`: writes a run's rows, evaluates every N steps, tells alarms, stops a run that has diverged.

Of several processes each sees the rows of the main one, so that all of them stop at the same step. It is the progress
bar of the stage besides. What it reads it finds in the trainer's logs, under the names of
`llmrec.train.monitor.record`; any trainer that logs them can be watched.
"""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from transformers import TrainerControl, TrainerState, TrainingArguments

from llmrec import processes
from llmrec.train.log import TrainingLog
from llmrec.train.monitor.alarms import Alarm
from llmrec.train.monitor.best import BestWeights
from llmrec.train.monitor.held_out import METRIC, HeldOut, remember, remembered
from llmrec.train.monitor.record import Monitor, held_out_fields
from llmrec.train.progress import LogCallback

FIELDS = (
    "loss", "grad_norm", "learning_rate", "reward", "zero_variance", "groups", "dropped", "distinct_items",
    "effective_items", "popularity", "legal_rate", "legal_mass", "entropy", "kl", "clip_share", "anchor",
    "thought_tokens", "thoughts_closed",
)  # fmt: skip
"""What a row takes from the trainer's logs, besides the parts of the reward (``reward/NAME``)."""


class MonitorCallback(LogCallback):
    """See the module's docstring.

    Args:
        log: the file, which a resumed run goes on with.
        tokens: of all prompts, for the rate that is shown.
        console: where progress and alarms are told.
        held_out: valid users.
        best: keeps the weights of the best evaluation.
        work: folder of the states, where the first evaluation is kept.
        evaluate_steps: steps between two evaluations.
    """

    def __init__(
        self,
        log: TrainingLog,
        *,
        tokens: int,
        console: Console,
        held_out: HeldOut,
        best: BestWeights,
        work: Path,
        evaluate_steps: int,
    ) -> None:
        super().__init__(log, tokens=tokens, console=console)
        self.monitor = Monitor()
        self._held_out = held_out
        self._best = best
        self._start_values = work / "held_out_start.npy"
        self._evaluate_steps = evaluate_steps

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Go on with the log, or evaluate the model as it was given."""
        super().on_train_begin(args, state, control, **kwargs)
        self.monitor = Monitor.replay(processes.from_main(self._log.rows))
        if not self.monitor.rows:
            row = {"step": 0, "steps": state.max_steps, "seconds": 0.0, "tokens": 0}
            self._add({**row, **self._evaluate(0, kwargs["model"])}, control)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Write a step's row, with the held-out metric where it is time for one."""
        logs = logs or {}
        if "loss" not in logs:  # the summary at the end
            return
        row: dict[str, Any] = {
            "step": state.global_step,
            "steps": state.max_steps,
            "seconds": round(self._before + time.perf_counter() - self._start, 2),
            "tokens": self._tokens * state.global_step // max(1, state.max_steps),
        }
        row |= {name: logs[name] for name in FIELDS if logs.get(name) is not None}
        row |= {name: value for name, value in logs.items() if name.startswith("reward/") and value is not None}
        row = processes.from_main(partial(dict, row))
        broken = not all(np.isfinite(row[name]) for name in ("loss", "grad_norm") if name in row)
        last = state.global_step == state.max_steps
        if not broken and (last or state.global_step % self._evaluate_steps == 0):
            row |= self._evaluate(state.global_step, kwargs["model"])
        if "reward" in row:
            self._last = f"reward {row['reward']:.3f}"
        self._add(row, control)

    @property
    def stopped_by(self) -> Alarm | None:
        """What ended the run before its time."""
        return self.monitor.stopped_by

    def _evaluate(self, step: int, model: Any) -> dict[str, Any]:
        values = self._held_out.measure()
        if step == 0 and processes.is_main():
            remember(self._start_values, values)
        start = processes.from_main(partial(remembered, self._start_values))
        fields = held_out_fields(values, values if start is None else start, METRIC)
        better = processes.from_main(partial(self._best.offer, model, step, fields["held_out"]))
        told = f"valid {METRIC} {fields['held_out']:.4f} (se {fields['held_out_se']:.4f}) after {step} steps"
        self._say(f"{told}, the best so far" if better and step else told)
        return fields

    def _add(self, row: dict[str, Any], control: TrainerControl) -> None:
        alarms = self.monitor.see(row)
        if alarms:
            row["alarms"] = [alarm.name for alarm in alarms]
        self._log.add(row)
        for alarm in alarms:
            self._say(f"{'stopped: ' if alarm.stops else 'alarm: '}{alarm}")
            if alarm.stops:
                control.should_training_stop = True
                control.should_save = False
