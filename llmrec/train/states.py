"""States to resume from: which one is the youngest, whether the disk has room for them, and what a full disk means.

A state (HF Trainer's ``checkpoint-N``) counts as complete when its ``trainer_state.json``, the last file to be written,
can be read; anything younger is thrown away. States are for resuming on this machine and are deleted when the stage is
done: what a stage hands on is a `llmrec.checkpoint.Checkpoint`, without pickle.
"""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llmrec.errors import EnvironmentProblem

KEPT = 2
"""States kept at a time; a third one is there while it is written."""
# torch.save tells nothing but a wrong position in its zip file; safetensors and tokenizers wrap the OSError's text
_DISK_FULL = ("No space left on device", "Disk quota exceeded", "inline_container.cc")


def last_state(work: Path) -> Path | None:
    """The youngest complete state below `work`; states that a kill has left half-written are removed."""
    for path in reversed(_states(work)):
        try:
            json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
            return path
        except (FileNotFoundError, json.JSONDecodeError):
            shutil.rmtree(path)
    return None


def state_bytes(model: Any) -> int:
    """A lower bound of a state's size: what is saved of the weights, and AdamW's two moments of what learns."""
    from peft import PeftModel

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    saved = trained if isinstance(model, PeftModel) else list(model.parameters())
    return sum(_bytes(tensor) for tensor in saved) + 2 * sum(_bytes(tensor) for tensor in trained)


def require_room(name: str, model: Any, work: Path, count: int) -> None:
    """Check before a training that the disk has room for its states.

    Args:
        name: of the stage.
        count: states that the training will write.

    Raises:
        EnvironmentProblem: it has not.
    """
    work.mkdir(parents=True, exist_ok=True)
    needed = max(0, min(count, KEPT + 1) - len(_states(work))) * state_bytes(model)
    free = shutil.disk_usage(work).free
    if free < needed:
        raise EnvironmentProblem(
            f"the disk has no room for the states to resume {name} from: {_mb(needed)} are needed in {work}, "
            f"{_mb(free)} are free",
            hint="free some space, or put the run on another disk with --runs FOLDER",
        )


@contextmanager
def full_disk_told(name: str, work: Path) -> Iterator[None]:
    """Turn what libraries raise on a full disk into one clear error, and give the room of the broken state back.

    Raises:
        EnvironmentProblem: the disk was full.
    """
    try:
        yield
    except Exception as error:
        # tokenizers raises a bare Exception for a full disk, safetensors and torch errors of their own
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if not full and not any(text in str(error) for text in _DISK_FULL):
            raise
        state = last_state(work)
        kept = f"goes on from {state.name.replace('checkpoint-', 'step ')}" if state else f"starts {name} again"
        raise EnvironmentProblem(
            f"the disk became full while {name} was training, {_mb(shutil.disk_usage(work).free)} are free in {work}",
            hint=f"free some space; the same command then {kept}",
        ) from error


def _states(work: Path) -> list[Path]:
    return sorted(work.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))


def _bytes(tensor: Any) -> int:
    return int(tensor.numel() * tensor.element_size())


def _mb(count: int) -> str:
    return f"{count / 1e6:,.0f} MB"
