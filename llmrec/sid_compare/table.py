"""A comparison for people: two tables and what has to be said with them, on a terminal or in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from llmrec.eval.table import decimal, spread
from llmrec.sid_vocab.page import share, times

if TYPE_CHECKING:
    from rich.console import Console

Rows = list[list[str]]
_HEALTH = (
    "tokenizer", "codes", "tokens", "collide", "used", "perplexity", "hourglass", "error left", "lift (z)", "fit s"
)  # fmt: skip
_OVERFIT = 1.02  # last valid loss beside the lowest one
_NARROW = 0.9  # share of exact search's first items that a beam should find


def print_comparison(summary: Mapping[str, Any], console: Console) -> None:
    """Print both tables and the notes; the best proxy is bold."""
    from rich.table import Table
    from rich.text import Text

    title = (
        f"{summary['dataset']} · {summary['users']:,} of {summary['users_total']:,} users, {summary['items']:,} items"
    )
    for name, (head, rows) in (("SIDs", health_rows(summary)), ("proxy", proxy_rows(summary))):
        table = Table(title=f"{name} · {title}", title_justify="left", title_style="bold", box=None, pad_edge=False)
        for number, column in enumerate(head):
            table.add_column(column, justify="left" if number < 1 else "right", header_style="dim")
        best = _best(summary) if name == "proxy" else None
        for row in rows:
            table.add_row(*(Text(cell, style="bold" if row[0] == best else "") for cell in row))
        console.print(table)
        console.print()
    for line in notes(summary):
        console.print(f"· {line}", highlight=False, markup=False, soft_wrap=True)


def markdown(summary: Mapping[str, Any]) -> str:
    """The same as a Markdown text."""
    lines = [f"# Tokenizers on {summary['dataset']}", ""]
    best = _best(summary)
    for head, rows in (health_rows(summary), proxy_rows(summary)):
        lines += [_line(head), _line(["---"] + ["---:"] * (len(head) - 1))]
        for row in rows:
            bold = head[0] == "proxy of" and row[0] == best
            lines.append(_line([f"**{cell}**" if bold and cell else cell for cell in row]))
        lines.append("")
    return "\n".join([*lines, *(f"- {line}" for line in notes(summary))]) + "\n"


def health_rows(summary: Mapping[str, Any]) -> tuple[Sequence[str], Rows]:
    """Head and rows: what the SIDs look like."""
    rows = []
    for name, one in summary["tokenizers"].items():
        health = one["health"]
        sizes = [str(size) for size in one["codebook_sizes"]]
        levels = health["levels"][: len(sizes) - one["has_suffix"]]
        used = sum(level["used"] for level in levels) / sum(level["codebook_size"] for level in levels)
        errors = [level["reconstruction_error"] for level in levels if level["reconstruction_error"] is not None]
        lift = one["prefix_lift"][0]
        rows.append(
            [
                name,
                "x".join(sizes[: len(levels)]) + (f"+{sizes[-1]}" if one["has_suffix"] else ""),
                str(one["tokens_per_item"]),
                share(health["collision_rate"]),
                share(used),
                "/".join(f"{level['perplexity']:.0f}" for level in levels),
                "–" if health["hourglass"] is None else f"{health['hourglass']:.2f}",
                share(errors[-1] if errors else None),
                f"{times(lift['lift'])} ({'–' if lift['z'] is None else format(lift['z'], '.0f')})",
                f"{one['fit_s']:.1f}",
            ]
        )
    return _HEALTH, rows


def proxy_rows(summary: Mapping[str, Any]) -> tuple[Sequence[str], Rows]:
    """Head and rows: how the proxies and the baselines rank valid."""
    names = list(summary["tokenizers"])
    several = len(summary["proxy"]["seeds"]) > 1
    head = ["proxy of", "epochs", "items seen", "R@10 ± se", "N@10 ± se"]
    head += [*(["N@10 by seed"] if several else []), f"N@10 - {names[0]}", "p", "beam", "train s", "eval s"]
    tests = {test["against"]: test for test in summary["paired"] if test["metric"] == "NDCG@10"}
    rows = []
    for name, one in summary["tokenizers"].items():
        runs, test = one["runs"], tests.get(name)
        rows.append(
            [
                name,
                f"{runs[0]['epochs']:.1f}",
                f"{runs[0]['items']:,}",
                *(_value(one["metrics"][metric]) for metric in ("Recall@10", "NDCG@10")),
                *([" ".join(decimal(run["NDCG@10"]) for run in runs)] if several else []),
                "" if test is None else _signed(-test["difference"]),
                "" if test is None else _p(test["p_holm"]),
                share(_beam(one)),
                f"{sum(run['seconds'] for run in runs):,.0f}",
                f"{sum(run['eval_s'] for run in runs):,.0f}",
            ]
        )
    for name, metrics in summary["baselines"].items():
        figures = [_value(metrics[metric]) for metric in ("Recall@10", "NDCG@10")]
        rows.append([f"({name})", "", "", *figures, *[""] * (len(head) - 5)])
    return head, rows


def notes(summary: Mapping[str, Any]) -> list[str]:
    """What the figures are and what they are not."""
    proxy, tokenizers = summary["proxy"], summary["tokenizers"]
    first = next(iter(tokenizers))
    runs = [run for one in tokenizers.values() for run in one["runs"]]
    tokens = sorted(run["tokens"] for run in runs)
    steps = sorted(run["steps"] for run in runs)
    parameters = sorted(run["parameters"] for run in runs)
    lines = [
        "collide: before any suffix or move; used, perplexity: without the suffix; hourglass: above 0, an inner level "
        "is narrower than the outer ones; error left: share of the vectors' variance; lift: how much more often than "
        "by chance the next item has the same first code; fit s: without encoding the texts",
        f"proxy: {proxy['base']['config']['model_type']} from scratch, {_range(parameters)} parameters, "
        f"{_range(tokens)} training tokens in {_range(steps)} steps each, seeds {', '.join(map(str, proxy['seeds']))}",
        "equal compute, not equal epochs: shorter SIDs see more items for their tokens",
        f"judged on valid, history out of the ranking, whole catalogue, by item; serving form (last "
        f"{proxy['window']} items as SIDs), constrained beam of {proxy['num_beams']}, scores normalised over: "
        f"{proxy['normalise']}; split check value {summary['loo_sha256'][:12]}",
        "beam: how much of exact search's first 10 items it finds (some users)",
        f"p: sign flips on NDCG@10 against {first}, users paired, mean over seeds; Holm over all tests of the table",
        "se and p are over users and hold for these trainings"
        + (": with one seed, the luck of a training is not in them" if len(proxy["seeds"]) == 1 else ""),
        "the best of several tokenizers on valid is too good there: confirm it once on test",
    ]
    if summary["cold_share"]:
        lines.append(f"valid targets never seen in train: {summary['cold_share']:.1%}")
    return lines + _warnings(tokenizers, summary["baselines"]["popularity"]["NDCG@10"]["value"])


def _warnings(tokenizers: Mapping[str, Any], popularity: float) -> list[str]:
    lines = []
    for name, one in tokenizers.items():
        if one["metrics"]["NDCG@10"]["value"] < popularity:
            lines.append(f"warning: the proxy of {name} is below popularity, it says little; raise --tokens")
        rising = [run["seed"] for run in one["runs"] if _overfits(run["valid_losses"])]
        if rising:
            lines.append(f"warning: the proxy of {name} overfits (its valid loss rises again), seeds {rising}")
        if (_beam(one) or 1) < _NARROW:
            lines.append(f"warning: the beam is narrow for {name}: see what proxy.num_beams=50 gives")
        if one["runs"][0]["epochs"] < 1:
            lines.append(f"warning: {name} has not seen all of train; raise --tokens")
        if missing := one["runs"][0]["targets_without_sid"]:
            lines.append(f"{name}: {missing:,} targets have no SID: misses")
    return lines


def _beam(one: Mapping[str, Any]) -> float | None:
    """Share of exact search's first 10 items that the beam found, mean over seeds; None where it was not measured."""
    found = [run["beam_recall_of_exact"]["@10"] for run in one["runs"] if run["beam_recall_of_exact"]]
    return sum(found) / len(found) if found else None


def _overfits(losses: Sequence[Sequence[float]]) -> bool:
    return losses[-1][1] > _OVERFIT * min(loss for _, loss in losses)


def _best(summary: Mapping[str, Any]) -> str:
    tokenizers: dict[str, Any] = summary["tokenizers"]
    return max(tokenizers, key=lambda name: float(tokenizers[name]["metrics"]["NDCG@10"]["value"]))


def _value(metric: Mapping[str, Any]) -> str:
    return f"{decimal(metric['value'])} {spread(metric['se'])}".strip()


def _signed(value: float) -> str:
    return f"{'+' if value >= 0 else '-'}{decimal(abs(value))}"


def _p(value: float) -> str:
    return "<.001" if value < 0.001 else decimal(value, 3)


def _range(values: Sequence[int]) -> str:
    return f"{values[0]:,}" if values[0] == values[-1] else f"{values[0]:,} to {values[-1]:,}"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
