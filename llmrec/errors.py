"""The exceptions of llmrec: each says what was given, why it cannot work and what to change.

Every error carries the exit code that the command line returns for it:
``1`` a target was missed, ``2`` the user's input, ``3`` the environment (disk, memory, a missing extra).
"""

from __future__ import annotations

from collections.abc import Sequence


class LLMRecError(Exception):
    """Base class. ``str(error)`` is the whole message, the hint on its own last line."""

    exit_code: int = 2

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\nhint: {self.hint}" if self.hint else self.message


class InputError(LLMRecError):
    """What the user gave cannot be used (exit code 2)."""


class ProblemsError(InputError):
    """Several problems of one input, reported together instead of one per attempt.

    Attributes:
        problems: one line each, in the order in which they were found.
    """

    def __init__(self, message: str, problems: Sequence[str], *, hint: str | None = None) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join([message, *(f"  - {line}" for line in self.problems)]), hint=hint)


class ConfigError(ProblemsError):
    """A recipe has unknown keys or wrong values; all of them are listed."""


class DataError(ProblemsError):
    """A data set cannot be used; every problem is listed with its file and line."""


class MismatchError(InputError):
    """Two things that must belong together do not (a checkpoint and a SID table, an adapter and its base)."""


class EnvironmentProblem(LLMRecError):  # noqa: N818 - the machine, not the program, is at fault
    """The machine lacks something: disk space, memory, a network, an optional package (exit code 3)."""

    exit_code = 3


class TargetMissed(LLMRecError):  # noqa: N818 - a result, not a fault
    """A benchmark or a check ran well and its target was not reached (exit code 1)."""

    exit_code = 1
