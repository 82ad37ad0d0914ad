"""From an exception to one clean screen on stderr and an exit code."""

from __future__ import annotations

import dataclasses
import errno
import os
import sys
import traceback

from llmrec import processes
from llmrec.errors import LLMRecError

_INPUT_ERRNOS = (errno.ENOENT, errno.EACCES, errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.EPERM)
_DISK_FULL = "No space left on device"  # polars, pyarrow and safetensors wrap the OSError and keep its text
# torch raises RuntimeError on CPU ("DefaultCPUAllocator: can't allocate memory") and OutOfMemoryError on a GPU
_NO_MEMORY = ("can't allocate memory", "out of memory")


@dataclasses.dataclass(frozen=True)
class Screen:
    """What the user sees of an error."""

    title: str
    message: str
    hint: str | None
    exit_code: int


def explain(error: BaseException) -> Screen:
    """Put `error` into words; anything unforeseen is reported as a bug of llmrec."""
    text = str(error)
    if isinstance(error, LLMRecError):
        return Screen("error", error.message, error.hint, error.exit_code)
    if isinstance(error, KeyboardInterrupt):
        return Screen("stopped", "interrupted by Ctrl-C", "the same command goes on from the last finished step", 130)
    if _DISK_FULL in text or (isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)):
        where = f" while writing {error.filename}" if isinstance(error, OSError) and error.filename else ""
        return Screen("error", f"the disk is full{where}", "free some space, or write to another disk", 3)
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(s in text for s in _NO_MEMORY)):
        hint = "use a smaller batch size, a shorter max_length or a smaller base model (`llmrec doctor` shows memory)"
        return Screen("error", f"out of memory{': ' + text.splitlines()[0] if text else ''}", hint, 3)
    if isinstance(error, OSError):
        if error.errno in _INPUT_ERRNOS and error.filename is not None:
            return Screen("error", f"{error.filename}: {(error.strerror or text).lower()}", None, 2)
        return Screen("error", text or type(error).__name__, None, 3)
    hint = "please report it; LLMREC_DEBUG=1 shows where it happened"
    return Screen("error", f"llmrec failed in an unforeseen way: {type(error).__name__}: {text}", hint, 70)


def leave(error: BaseException) -> int:
    """Print the screen for `error` (with ``LLMREC_DEBUG=1`` the traceback before it) and return the exit code."""
    screen = explain(error)
    if os.environ.get("LLMREC_DEBUG") == "1":
        traceback.print_exception(error, file=sys.stderr)
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    colour = "yellow" if screen.exit_code == 130 else "bold red"
    where = "" if processes.is_main() else f" in process {processes.index()}"
    console.print(Text.assemble((f"{screen.title}{where}: ", colour), screen.message))
    if screen.hint:
        console.print(Text.assemble(("hint: ", "cyan"), screen.hint))
    return screen.exit_code
