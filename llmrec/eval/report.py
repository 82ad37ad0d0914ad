"""The report of a run: one HTML file without outside parts, for people who decide whether the model is any good.

Everything but the evaluation itself is optional: the train log, the health of the SID table, times, an explanation.
The page is `report.html.j2`; numbers come in as numbers, and every text of the data set is escaped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmrec.data.dataset import Dataset
from llmrec.eval.examples import example_users
from llmrec.eval.plots import model_bars, slice_lines, train_curves, usable_rows
from llmrec.eval.result import EvalResult
from llmrec.eval.table import TABLE_METRICS, best_values, decimal, notes, p_text, p_value, spread


@dataclass(frozen=True)
class StageTime:
    """How long a stage of the pipeline took.

    Attributes:
        name: the stage.
        seconds: wall time, of the run that did the work.
        skipped: whether this run took the result from before.
    """

    name: str
    seconds: float
    skipped: bool = False


@dataclass(frozen=True)
class ShownExplanation:
    """An explanation as the report prints it.

    Attributes:
        history: titles, oldest first.
        item: title of the item that is explained.
        text: the explanation in plain language.
        unknown_titles: titles that the text names and the catalogue lacks.
    """

    history: tuple[str, ...]
    item: str
    text: str
    unknown_titles: tuple[str, ...] = ()


def render_report(
    result: EvalResult,
    dataset: Dataset,
    *,
    title: str | None = None,
    facts: Mapping[str, str] | None = None,
    train_log: Sequence[Mapping[str, Any]] = (),
    sid_report: Mapping[str, Any] | None = None,
    stages: Sequence[StageTime] = (),
    explanations: Sequence[ShownExplanation] = (),
    examples: int = 5,
) -> str:
    """The page as text.

    Args:
        result: the evaluation.
        dataset: the data it was made on, for titles.
        title: heading; by default the model's name and the data set.
        facts: further lines of the header, such as ``{"base model": "SmolLM2-135M-Instruct"}``.
        train_log: rows of ``train_log.jsonl`` (``stage, step, steps, tokens, seconds, loss, valid_loss``).
        sid_report: `HealthReport.as_dict` of the SID table.
        stages: times of the pipeline.
        explanations: what `Recommender.explain` said.
        examples: users to show.
    """
    from jinja2 import PackageLoader, StrictUndefined
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from markupsafe import Markup

    environment = ImmutableSandboxedEnvironment(
        loader=PackageLoader("llmrec.eval", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"decimal": decimal, "spread": spread, "clock": clock}
    log = usable_rows(train_log)
    summary = result.summary
    return environment.get_template("report.html.j2").render(
        title=title or f"{result.models[0]} on {summary['dataset']}",
        summary=summary,
        facts=_facts(result, dataset) | dict(facts or {}),
        metrics=TABLE_METRICS,
        tables=[_table(result, mode) for mode in result.modes],
        tested=bool(summary["paired"]),
        ours=result.models[0],
        notes=notes(result),
        bars=Markup(model_bars(result)),
        slice_plot=Markup(slice_lines(result)),
        train_plot=Markup(train_curves(log)) if log else None,
        sid=sid_report,
        stages=stages,
        total_seconds=sum(stage.seconds for stage in stages),
        explanations=explanations,
        examples=example_users(result, dataset, count=examples),
    )


def write_report(path: Path, result: EvalResult, dataset: Dataset, **parts: Any) -> Path:
    """Write `render_report` (same arguments) to `path` and return it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render_report(result, dataset, **parts), encoding="utf-8")
    return path


def clock(seconds: float) -> str:
    """``48 s``, ``12 min 3 s`` or ``1 h 5 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _facts(result: EvalResult, dataset: Dataset) -> dict[str, str]:
    summary = result.summary
    split = dataset.split
    judged = (
        f"{summary['users']:,} of {summary['users_total']:,}" if summary["users"] < summary["users_total"] else "all"
    )
    return {
        "data": f"{summary['dataset']}: {len(split.users):,} users, {len(split.items):,} items, "
        f"{sum(map(len, split.sequences)):,} events",
        "judged": f"{judged} users on their {'last' if summary['split'] == 'test' else 'last but one'} event "
        f"({summary['split']})",
        "check value of the split": summary["loo_sha256"],
    }


def _table(result: EvalResult, mode: Any) -> dict[str, Any]:
    best = best_values(result, mode)
    rows = []
    for model in result.models:
        values = result.summary["modes"][mode][model]
        cells = [
            {"value": values[name]["value"], "se": values[name]["se"], "best": values[name]["value"] == best[name]}
            for name in TABLE_METRICS
        ]
        tests = [p_text(p_value(result, mode, model, metric)) for metric in ("NDCG@10", "Recall@10")]
        rows.append({"model": model, "cells": cells, "p": tests})
    return {"mode": mode, "rows": rows}
