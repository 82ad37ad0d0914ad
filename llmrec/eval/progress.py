"""Progress of an evaluation: a bar with an ETA on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from llmrec.eval.ranker import Progress


@contextmanager
def shown(console: Console, *, every_seconds: float = 20.0) -> Iterator[Progress]:
    """Give a `Progress` that shows on `console` while the context is open.

    Args:
        console: where to show it.
        every_seconds: distance of the lines where `console` is no terminal.
    """
    if not console.is_terminal:
        yield _lines(console, every_seconds)
        return
    columns = TextColumn("{task.description:<26}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Bars(*columns, console=console) as bars:
        tasks: dict[str, TaskID] = {}

        def update(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done, total=total)

        yield update


def _lines(console: Console, every_seconds: float) -> Progress:
    started: dict[str, float] = {}
    printed = time.perf_counter()

    def update(what: str, done: int, total: int) -> None:
        nonlocal printed
        now = time.perf_counter()
        started.setdefault(what, printed)
        if done >= total or now - printed > every_seconds:
            elapsed = now - started[what]
            rest = "" if done >= total else f", about {elapsed / done * (total - done):,.0f} s left"
            if rest or elapsed > 1:
                console.print(f"eval  {what} {done:,}/{total:,} ({elapsed:,.0f} s{rest})", highlight=False)
            printed = now

    return update
