"""Folders that are there as a whole or not at all: written beside their place and renamed.

An interrupted or failed write leaves nothing; what was at the place before stays until the new folder is complete.
"""

from __future__ import annotations

import errno
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llmrec.errors import EnvironmentProblem, InputError

_DISK_FULL = ("No space left on device", "Disk quota exceeded", "os error 28", "os error 122")


@contextmanager
def written_beside(folder: Path, *, needed_bytes: int = 0, overwrite: bool = False) -> Iterator[Path]:
    """Give an empty folder beside `folder` to write into, and rename it to `folder` at the end.

    Args:
        folder: where the result belongs; parents are made.
        needed_bytes: a lower bound of what will be written, checked beforehand.
        overwrite: replace an existing `folder`; otherwise it is an error.

    Raises:
        InputError: `folder` exists already.
        EnvironmentProblem: too little disk space, before or while writing.
    """
    if folder.exists() and not overwrite:
        raise InputError(f"{folder} exists already and is not overwritten", hint="remove it or give another name")
    folder.parent.mkdir(parents=True, exist_ok=True)
    if (free := shutil.disk_usage(folder.parent).free) < needed_bytes:
        raise _disk_full(folder, needed_bytes, free)
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        made = work / "made"
        made.mkdir()
        yield made
        _put(made, folder, work / "replaced")
    except Exception as error:
        # tokenizers raises a bare Exception for a full disk, safetensors and polars errors of their own
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if full or any(text in str(error) for text in _DISK_FULL):
            raise _disk_full(folder, needed_bytes, shutil.disk_usage(folder.parent).free) from error
        raise
    finally:
        shutil.rmtree(work)


def _put(made: Path, folder: Path, aside: Path) -> None:
    if not folder.exists():
        made.rename(folder)
        return
    folder.rename(aside)
    try:
        made.rename(folder)
    except OSError:
        aside.rename(folder)
        raise


def _disk_full(folder: Path, needed: int, free: int) -> EnvironmentProblem:
    return EnvironmentProblem(
        f"the disk has no room for {folder}: at least {needed:,} bytes are needed, {free:,} are free",
        hint="free some space or write to another disk; nothing was left behind",
    )
