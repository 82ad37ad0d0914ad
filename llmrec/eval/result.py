"""`EvalResult`: an evaluation as it is written to disk and read back; reports and comparisons take nothing else.

``eval.json`` holds the figures, ``per_user.parquet`` each user's place and metrics per model and mode (so that runs can
be compared later, user by user), ``recommendations.parquet`` the lists.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import polars as pl

from llmrec.errors import InputError
from llmrec.eval.config import Mode
from llmrec.metrics import METRICS, PerUser

EVAL_FILE, PER_USER_FILE, LISTS_FILE = "eval.json", "per_user.parquet", "recommendations.parquet"


@dataclass(frozen=True, eq=False)
class EvalResult:
    """What `llmrec.eval.evaluate.evaluate` found.

    Attributes:
        summary: the content of ``eval.json``.
        per_user: one row per mode, model and user: ``mode, model, user_id, target, history_length, first, size`` and a
            column per metric; `first` 0 is a miss.
        lists: one row per mode, model and user: ``mode, model, user_id, items`` (ids, best first).
    """

    summary: dict[str, Any]
    per_user: pl.DataFrame
    lists: pl.DataFrame

    @property
    def modes(self) -> tuple[Mode, ...]:
        """The main mode first."""
        return tuple(cast("list[Mode]", list(self.summary["modes"])))

    @property
    def models(self) -> tuple[str, ...]:
        """In the order in which they were judged; the first one is what the evaluation is about."""
        return tuple(self.summary["modes"][self.modes[0]])

    def value(self, model: str, metric: str = "NDCG@10", mode: Mode | None = None) -> float:
        """A mean, in the main mode by default."""
        return float(self.summary["modes"][mode or self.modes[0]][model][metric]["value"])

    def values(self, model: str, mode: Mode) -> PerUser:
        """Per-user metrics of a model, users in the order of `user_ids`."""
        frame = self._rows(self.per_user, model, mode)
        return {name: frame[name].to_numpy() for name in METRICS}

    def user_ids(self) -> list[str]:
        """The judged users."""
        return self._rows(self.per_user, self.models[0], self.modes[0])["user_id"].to_list()

    def recommendations(self, model: str, mode: Mode) -> list[list[str]]:
        """Item ids per user, best first."""
        return self._rows(self.lists, model, mode)["items"].to_list()

    def save(self, folder: Path) -> Path:
        """Write the three files, ``eval.json`` last, and return its path."""
        folder.mkdir(parents=True, exist_ok=True)
        self.per_user.write_parquet(folder / PER_USER_FILE)
        self.lists.write_parquet(folder / LISTS_FILE)
        path = folder / EVAL_FILE
        path.write_text(
            json.dumps(self.summary, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8"
        )
        return path

    @classmethod
    def load(cls, folder: Path) -> EvalResult:
        """Read what `save` wrote.

        Raises:
            InputError: a file is missing or cannot be read.
        """
        try:
            summary = json.loads((folder / EVAL_FILE).read_text(encoding="utf-8"))
            return cls(summary, pl.read_parquet(folder / PER_USER_FILE), pl.read_parquet(folder / LISTS_FILE))
        except (OSError, ValueError, pl.exceptions.PolarsError) as error:
            raise InputError(
                f"{folder} holds no evaluation that can be read: {error}", hint="`llmrec eval` writes one"
            ) from error

    @staticmethod
    def _rows(frame: pl.DataFrame, model: str, mode: Mode) -> pl.DataFrame:
        return frame.filter((pl.col("model") == model) & (pl.col("mode") == mode))


def plain(value: Any) -> Any:
    """Plain JSON values: numpy scalars become numbers, what is not finite becomes None."""
    if isinstance(value, dict):
        return {str(key): plain(child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [plain(child) for child in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not np.isfinite(value) else value
