"""What a comparison found: health and proxy figures per tokenizer, paired tests, and every user's result.

Each user counts with the mean over the seeds (`llmrec.metrics.mean_over_seeds`), so more seeds never look like more
users. The first tokenizer is tested against every other by sign flips on those means; Holm's adjustment runs over all
tests of the table (`llmrec.eval.paired`). Standard errors are over users: what another seed would have given is not in
them, which is why the figures of each seed stand beside the mean.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import polars as pl

from llmrec.data.dataset import Dataset
from llmrec.eval.evaluate import PROTOCOL
from llmrec.eval.paired import paired_tests
from llmrec.eval.result import EvalResult, plain
from llmrec.metrics import mean_over_seeds, summarise
from llmrec.sid_compare.config import Arm, ProxyConfig
from llmrec.sid_compare.fits import Fit
from llmrec.sid_compare.proxy import NAME, ProxyRun
from llmrec.sid_compare.table import markdown

_SHOWN = ("Recall@10", "NDCG@10")


@dataclass(frozen=True)
class Compared:
    """One tokenizer with all that was made of it."""

    arm: Arm
    fit: Fit
    runs: list[ProxyRun]
    """One a seed."""


@dataclass(frozen=True, eq=False)
class Comparison:
    """The result.

    Attributes:
        summary: the content of ``compare.json``.
        per_user: a row per tokenizer, seed and user: ``tokenizer, seed, user_id, target, history_length, first, size``
            and a column per metric (`llmrec.eval.result.EvalResult.per_user`).
    """

    summary: dict[str, Any]
    per_user: pl.DataFrame

    def value(self, tokenizer: str, metric: str = "NDCG@10") -> float:
        """A mean over users and seeds."""
        return float(self.summary["tokenizers"][tokenizer]["metrics"][metric]["value"])

    def save(self, folder: Path) -> Path:
        """Write ``compare.md``, ``per_user.parquet`` and, last, ``compare.json``, whose path is returned."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "compare.md").write_text(markdown(self.summary), encoding="utf-8")
        self.per_user.write_parquet(folder / "per_user.parquet")
        path = folder / "compare.json"
        path.write_text(
            json.dumps(self.summary, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8"
        )
        return path


def make_comparison(
    compared: Sequence[Compared], baselines: EvalResult, config: ProxyConfig, dataset: Dataset
) -> Comparison:
    """Put fits and proxies into one result; the first tokenizer is tested against the others."""
    means = {
        one.arm.name: mean_over_seeds([run.evaluation.values(NAME, "filtered") for run in one.runs]) for one in compared
    }
    judged = compared[0].runs[0].evaluation.summary
    summary = {
        "protocol": PROTOCOL,
        "dataset": dataset.name,
        "loo_sha256": dataset.split.loo_sha256,
        "split": "valid",
        "mode": "filtered",
        **{name: judged[name] for name in ("users", "users_total", "items", "cold_share", "repeat_share")},
        "proxy": config.model_dump(mode="json"),
        "tokenizers": {
            one.arm.name: {**_facts(one), "metrics": summarise(means[one.arm.name])} for one in compared
        },
        "paired": paired_tests({"filtered": means}, seed=0),
        "baselines": baselines.summary["modes"]["filtered"],
    }  # fmt: skip
    per_user = pl.concat(
        run.evaluation.per_user.select(
            pl.lit(one.arm.name).alias("tokenizer"),
            pl.lit(run.training.seed).alias("seed"),
            pl.exclude("mode", "model"),
        )
        for one in compared
        for run in one.runs
    )
    return Comparison(plain(summary), per_user)


def _facts(one: Compared) -> dict[str, Any]:
    table = one.fit.table
    return {
        "sid": one.arm.sid.model_dump(mode="json"),
        "folder": str(one.fit.folder),
        "codebook_sizes": table.codebook_sizes,
        "has_suffix": table.has_suffix,
        "tokens_per_item": table.num_levels,
        **one.fit.measured,
        "health": dict(one.fit.health),
        "runs": [_run(run) for run in one.runs],
    }


def _run(run: ProxyRun) -> dict[str, Any]:
    summary = run.evaluation.summary
    values = summary["modes"]["filtered"][NAME]
    return {
        "folder": str(run.folder),
        **asdict(run.training),
        **{metric: values[metric]["value"] for metric in _SHOWN},
        "eval_s": summary["wall_s"],
        "beam_recall_of_exact": summary["beam_recall_of_exact"],
        "sid_level": summary["sid_level"],
        "invalid": summary["invalid"],
        "targets_without_sid": summary["details"][NAME]["targets_without_sid"],
        "history_items_without_sid": summary["details"][NAME]["history_items_without_sid"],
    }
