"""What commands say around a long run into a folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


@contextmanager
def running(name: str, folder: Path, console: Console) -> Iterator[None]:
    """Say what runs and where; on Ctrl-C, that nothing finished is lost. The interruption is passed on."""
    console.print(f"[bold]{name}[/bold] in {folder}", highlight=False)
    try:
        yield
    except KeyboardInterrupt:
        console.print(
            f"Stopped. What is finished stays in {folder}; the same command goes on from there.", highlight=False
        )
        raise
