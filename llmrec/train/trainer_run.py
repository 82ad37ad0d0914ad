"""What every stage does around its trainer: where to go on from, and the training itself, in one process or several."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from transformers import PrinterCallback

from llmrec import processes
from llmrec.train.progress import LogCallback
from llmrec.train.states import full_disk_told, last_state, require_room


def state_to_resume(name: str, model: Any, work: Path, *, steps: int, save_steps: int) -> Path | None:
    """The youngest complete state below `work`, the same in all processes; checks that there is room for more.

    Args:
        name: of the stage.
        steps: optimizer steps of the whole training.

    Raises:
        EnvironmentProblem: the disk has no room for states to resume from.
    """
    state = processes.from_main(lambda: last_state(work))
    require_room(name, model, work, -(-steps // save_steps))
    processes.wait()  # the main one may clear the folder next, in which another still looks
    return state


def train(trainer: Any, name: str, *, work: Path, state: Path | None, progress: LogCallback, console: Console) -> None:
    """Train to the end, from `state` on; when this returns, all processes have.

    Raises:
        EnvironmentProblem: the disk became full.
    """
    trainer.remove_callback(PrinterCallback)
    if state:
        console.print(f"{name:>4}  resuming from {state.name.replace('checkpoint-', 'step ')}", highlight=False)
    try:
        with full_disk_told(name, work):
            trainer.train(resume_from_checkpoint=str(state) if state else None)
    finally:
        progress.close()
    processes.wait()


def quiet_beside_main(console: Console | None) -> Console:
    """`console`, or a new one, that says nothing in a process other than the main one."""
    return (console or Console()) if processes.is_main() else Console(quiet=True)


def steps_of(batches: int, gradient_accumulation: int) -> int:
    """Optimizer steps over `batches`: each process takes `gradient_accumulation` of them a step."""
    return -(-batches // (gradient_accumulation * processes.count()))


def shared_out(name: str, gradient_accumulation: int, what: str) -> list[str]:
    """A line that says what a step is made of where several processes train."""
    number = processes.count()
    if number == 1:
        return []
    return [f"{name:>4}  {number} processes: a step takes {number * gradient_accumulation} {what}"]
