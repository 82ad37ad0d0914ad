"""The evaluation on a terminal: every model in both modes, best in bold, with standard errors and paired p-values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from llmrec.eval.config import Mode
from llmrec.eval.examples import ExampleUser
from llmrec.eval.result import EvalResult

TABLE_METRICS = ("Recall@1", "Recall@5", "Recall@10", "Recall@20", "NDCG@5", "NDCG@10", "NDCG@20", "MRR@20")
_PRINTED = ("Recall@5", "Recall@10", "NDCG@10", "NDCG@20", "MRR@20")
_IMPORTANT = ("NDCG@10", "Recall@10", "MRR@20", "Recall@5", "NDCG@20")
_SHORT = {"Recall": "R", "NDCG": "N", "MRR": "MRR"}


def print_table(result: EvalResult, console: Console | None = None) -> None:
    """Print one table per mode and what is to be known about the figures; a narrow console gets fewer metrics."""
    console = console or Console()
    for mode in result.modes:
        console.print(mode_table(result, mode, width=console.width))
        console.print()
    if result.summary["paired"]:
        console.print(
            "· p: sign-flip test on NDCG@10, paired, Holm-adjusted; ▲ the first model is better", highlight=False
        )
    for line in notes(result):
        console.print(f"· {line}", highlight=False, markup=False)


def mode_table(result: EvalResult, mode: Mode, *, width: int = 100) -> Table:
    """The table of one mode, with as many metrics as `width` columns hold (NDCG@10 and Recall@10 always)."""
    room = max(2, (width - 34) // 13)  # a model's name and a p-value, then 13 columns a metric
    printed = [metric for metric in _PRINTED if metric in sorted(_PRINTED, key=_IMPORTANT.index)[:room]]
    summary = result.summary
    what = "history taken out of the ranking" if mode == "filtered" else "history stays in the ranking"
    title = f"{summary['dataset']} · {summary['split']} · {summary['users']:,} users · {mode} ({what})"
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, header_style="dim")
    table.add_column("model", no_wrap=True)
    for metric in printed:
        name, cutoff = metric.split("@")
        table.add_column(f"{_SHORT[name]}@{cutoff} ± se", justify="right", no_wrap=True)
    tested = bool(summary["paired"])
    if tested:
        table.add_column("p", justify="right", no_wrap=True)
    best = best_values(result, mode)
    for model in result.models:
        cells: list[Text | str] = [Text(_cut(model, 20), style="bold cyan" if model == result.models[0] else "")]
        for metric in printed:
            one = summary["modes"][mode][model][metric]
            value = (decimal(one["value"]), "bold" if one["value"] == best[metric] else "")
            cells.append(Text.assemble(value, (f" {spread(one['se'])}", "dim")))
        if tested:
            cells.append(p_text(p_value(result, mode, model)))
        table.add_row(*cells)
    return table


def print_examples(examples: Sequence[ExampleUser], console: Console | None = None) -> None:
    """Print example users: history, recommendations, and what they took next."""
    console = console or Console()
    for example in examples:
        grid = Table.grid(padding=(0, 2, 0, 0))
        grid.add_column(justify="right", style="dim", no_wrap=True)
        grid.add_column(overflow="fold")
        earlier = "… → " if example.history_length > len(example.history) else ""
        grid.add_row("had", Text(earlier + " → ".join(item.title for item in example.history)))
        for place, item in enumerate(example.recommended, start=1):
            hit = [(item.title, "bold green"), ("  ← taken next", "green")] if item.is_target else [item.title]
            grid.add_row(str(place), Text.assemble(*hit))
        where = f"place {example.place}" if example.place else "not in the list"
        grid.add_row("took", Text(f"{example.target.title} ({where})"))
        console.print(
            Text.assemble((f"user {example.user_id}", "bold"), f" · {example.history_length:,} events before")
        )
        console.print(Padding(grid, (0, 0, 1, 2)))


def notes(result: EvalResult) -> list[str]:
    """What has to be said with the figures: users, search, checks, times."""
    summary = result.summary
    lines = [f"warning: {line}" for line in summary["warnings"]]
    if summary["users"] < summary["users_total"]:
        lines.append(
            f"{summary['users']:,} of {summary['users_total']:,} users, the ones with the lowest SHA-256 of their id"
        )
    main = summary["details"][result.models[0]]
    if main["kind"] == "generator":
        search = f"beam search of width {main['num_beams']}" if main["search"] == "beam" else "exact search"
        lines.append(f"{search}, scores normalised over: {main['normalise']}; history window {main['window']} items")
        if recall := summary["beam_recall_of_exact"]:
            lines.append(
                f"the beam finds {recall['@10']:.1%} of exact search's first 10 items ({recall['users']} users)"
            )
        without = main["targets_without_sid"] + main["targets_not_active"]
        if without:
            lines.append(f"{without:,} targets have no active SID: misses")
    if summary["checked"]:
        lines.append(
            f"invalid items: {summary['invalid']:,} of {summary['checked']:,} checked; duplicates: "
            f"{summary['duplicates']:,}; history items in filtered lists: {summary['excluded_violations']:,}"
        )
    lines += [_predictions_note(name, one) for name, one in summary["details"].items() if one["kind"] == "predictions"]
    lines.append(
        f"targets never seen in train: {summary['cold_share']:.1%}; targets that repeat the history: "
        f"{summary['repeat_share']:.1%}"
    )
    if left_out := summary["baselines_left_out"]:
        lines.append(f"not judged here: {', '.join(left_out)}")
    lines.append(
        f"checkpoint chosen by: {summary['selection']}; seeds {summary['seeds'] or '–'}; split check value "
        f"{summary['loo_sha256'][:12]}…; {summary['wall_s']:,.0f} s wall, {summary['cpu_s']:,.0f} s CPU"
    )
    return lines


def best_values(result: EvalResult, mode: Mode) -> dict[str, float]:
    """The best mean of each metric."""
    models = result.summary["modes"][mode].values()
    return {metric: max(one[metric]["value"] for one in models) for metric in TABLE_METRICS}


def p_value(result: EvalResult, mode: Mode, model: str, metric: str = "NDCG@10") -> dict[str, Any] | None:
    """The row of the paired tests for `model`, None for the first model."""
    rows = result.summary["paired"]
    match = (r for r in rows if r["mode"] == mode and r["against"] == model and r["metric"] == metric)
    return next(match, None)


def p_text(row: dict[str, Any] | None) -> str:
    """Direction and adjusted p-value: ``▲ .012`` where the first model is better."""
    if row is None:
        return ""
    arrow = "▲" if row["difference"] > 0 else "▼" if row["difference"] < 0 else "="
    return f"{arrow} {'<.001' if row['p_holm'] < 0.001 else decimal(row['p_holm'], 3)}"


def decimal(value: float, digits: int = 4) -> str:
    """``.0449``: metrics lie between 0 and 1, the leading zero says nothing."""
    text = f"{value:.{digits}f}"
    return text[1:] if text.startswith("0.") else text


def spread(se: float | None) -> str:
    """The standard error after its sign; a single user has none."""
    return "" if se is None else f"±{decimal(se)}"


def _predictions_note(name: str, one: dict[str, Any]) -> str:
    return (
        f"{name} ({one['source']}): {one['users_without_list']:,} judged users without a list (misses), "
        f"{one['unknown_users']:,} unknown users, {one['unknown_items']:,} unknown items, {one['duplicates']:,} "
        f"duplicates, {one['items_outside_evaluation']:,} items outside the evaluation catalogue, "
        f"{one['history_items']:,} items of the history, {one['short_lists']:,} short lists"
    )


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
