"""Collects what is wrong with a data set, so that one run shows all of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from llmrec.errors import DataError

SHOWN = 20  # a screen holds about this many lines of each kind; the rest is counted


class Problems:
    """Problems by kind, in the order in which the kinds turned up; `raise_any` makes one `DataError` of them."""

    def __init__(self) -> None:
        self._lines: dict[str, list[str]] = {}
        self._totals: dict[str, int] = {}

    def add(self, kind: str, line: str) -> None:
        """Record one problem; `line` starts with its file and line."""
        self.add_many(kind, [line], 1)

    def add_many(self, kind: str, lines: Iterable[str], total: int) -> None:
        """Record `total` problems of which `lines` describes the first ones (`SHOWN` are enough)."""
        if total:
            known = self._lines.setdefault(kind, [])
            for line in lines:
                if len(known) == SHOWN:
                    break
                known.append(line)
            self._totals[kind] = self._totals.get(kind, 0) + total

    def __bool__(self) -> bool:
        return bool(self._totals)

    @property
    def total(self) -> int:
        """Number of problems, those beyond the shown lines included."""
        return sum(self._totals.values())

    def lines(self) -> list[str]:
        """At most `SHOWN` lines of each kind, and how many more there are."""
        result = []
        for kind, lines in self._lines.items():
            result += lines
            if (more := self._totals[kind] - len(lines)) > 0:
                result.append(f"and {more:,} more: {kind}")
        return result

    def raise_any(self, source: str, *, hint: str | None = None) -> None:
        """Raise what was collected, if anything.

        Raises:
            DataError: there are problems; all kinds are in it.
        """
        if self:
            plural = "s" if self.total > 1 else ""
            raise DataError(f"{source} has {self.total:,} problem{plural}:", self.lines(), hint=hint)


def counted(number: int, noun: str) -> str:
    """``1 item``, ``2,000 items``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def listed(names: Sequence[str], limit: int = 12) -> str:
    """Names for a message: ``a, b, c`` with a count of those beyond `limit`."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more if names else "nothing"
