"""The log file of a training stage, which the report plots. Reading it needs no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llmrec import processes


class TrainingLog:
    """A JSON-lines file of one stage: ``stage, step, steps, seconds, tokens`` and what was measured there.

    A resumed run cuts the file back to the step it resumes from, so that no step is in it twice. Of several processes
    the main one writes.
    """

    def __init__(self, path: Path, stage: str) -> None:
        self.path = path
        self.stage = stage

    def rows(self) -> list[dict[str, Any]]:
        """All rows so far; the half-written last line of a killed run is not one."""
        if not self.path.exists():
            return []
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def cut(self, step: int) -> float:
        """Forget rows beyond `step`; returns the seconds that the rest took."""
        if not processes.is_main():
            return 0.0
        rows = [row for row in self.rows() if row["step"] <= step] if step else []
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return max((float(row["seconds"]) for row in rows), default=0.0)

    def add(self, row: dict[str, Any]) -> None:
        """Append one row."""
        if not processes.is_main():
            return
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"stage": self.stage, **row}) + "\n")
