"""The plots of the report, as inline SVG that scales with the page and takes its fonts from it."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from llmrec.eval.result import EvalResult
from llmrec.eval.table import decimal

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OURS, OTHERS, GRID, TEXT = "#2563a6", "#9aa5b1", "#e6e9ed", "#3d4852"
_LINES = (OURS, "#b8501e", "#3d8a5f", "#7a5ea8", "#a08020", "#58687a", "#c2527a")
_MARKERS = "osD^vPX"


def model_bars(result: EvalResult, metric: str = "NDCG@10") -> str:
    """A bar per model with its standard error, in the main mode."""
    summary = result.summary["modes"][result.modes[0]]
    models = result.models[::-1]  # matplotlib draws from below
    values = [summary[model][metric]["value"] for model in models]
    errors = [summary[model][metric]["se"] or 0.0 for model in models]
    most = max(value + error for value, error in zip(values, errors, strict=True)) or 1.0

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        colours = [OURS if model == result.models[0] else OTHERS for model in models]
        axes.barh(models, values, height=0.62, color=colours)
        axes.errorbar(values, range(len(models)), xerr=errors, fmt="none", ecolor=TEXT, elinewidth=1.2, capsize=3)
        for place, (value, error) in enumerate(zip(values, errors, strict=True)):
            axes.annotate(
                decimal(value), (value + error, place), xytext=(6, 0), textcoords="offset points", va="center",
                fontsize=10, fontweight="bold" if models[place] == result.models[0] else "normal", color=TEXT,
            )  # fmt: skip
        axes.set(xlim=(0, most * 1.14), xlabel=f"{metric}, {result.modes[0]}, with standard error")
        axes.spines[["left"]].set_visible(False)
        axes.tick_params(axis="y", length=0, labelsize=10)
        axes.grid(axis="x", color=GRID)

    return _svg(draw, (7.2, 0.9 + 0.42 * len(models)), "bars")


def slice_lines(result: EvalResult, metric: str = "NDCG@10") -> str:
    """The metric by popularity of the target and by length of the history, a line per model."""
    slices = result.summary["slices"]
    shown = [title for title in slices if title != "cold and warm targets"]

    def draw(figure: Figure) -> None:
        grid = figure.subplots(1, len(shown), sharey=True, squeeze=False)
        for axes, title in zip(grid[0], shown, strict=True):
            rows = [row for row in slices[title] if row["users"]]
            for place, model in enumerate(result.models):
                means = [row["models"][model][metric]["value"] for row in rows]
                errors = [row["models"][model][metric]["se"] or 0.0 for row in rows]
                shift = 0.05 * (place - (len(result.models) - 1) / 2)
                axes.errorbar(
                    [x + shift for x in range(len(rows))], means, yerr=errors, label=model,
                    color=_LINES[place % len(_LINES)], marker=_MARKERS[place % len(_MARKERS)], markersize=5,
                    linewidth=2.2 if place == 0 else 1.2, elinewidth=1, zorder=3 if place == 0 else 2,
                )  # fmt: skip
            names = [row["name"].replace(" (", "\n(").replace(" train events", "") for row in rows]
            axes.set_xticks(
                range(len(rows)), [f"{n}\n{row['users']:,} users" for n, row in zip(names, rows, strict=True)]
            )
            axes.set_title(title, fontsize=11, color=TEXT, loc="left")
            axes.set_xlim(-0.35, len(rows) - 0.65)
            axes.set_ylim(bottom=0)
            axes.grid(axis="y", color=GRID)
        grid[0][0].set_ylabel(f"{metric}, {result.modes[0]}")
        handles, labels = grid[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(6, len(labels)), frameon=False)

    return _svg(draw, (10, 4), "slices")


def train_curves(rows: Sequence[Mapping[str, Any]]) -> str:
    """Train and valid loss over the tokens seen, a panel per stage. Rows as `train_log.jsonl` holds them."""
    stages = list(dict.fromkeys(str(row["stage"]) for row in rows))

    def draw(figure: Figure) -> None:
        grid = figure.subplots(1, len(stages), squeeze=False)
        for axes, stage in zip(grid[0], stages, strict=True):
            mine = [row for row in rows if row["stage"] == stage]
            for key, label, style in (("loss", "train", {"linewidth": 1.4}), ("valid_loss", "valid", {"marker": "o"})):
                points = [(row["tokens"] / 1e6, row[key]) for row in mine if row.get(key) is not None]
                if points:
                    colour = OTHERS if key == "loss" else OURS
                    axes.plot(*zip(*points, strict=True), label=label, color=colour, markersize=4.5, **style)
            axes.set_title(stage, fontsize=11, color=TEXT, loc="left")
            axes.set_xlabel("million tokens seen")
            axes.grid(color=GRID)
            axes.legend(frameon=False)
        grid[0][0].set_ylabel("loss, nats a token")

    return _svg(draw, (10 if len(stages) > 1 else 7.2, 3.4), "train")


def _svg(draw: Callable[[Figure], None], size: tuple[float, float], name: str) -> str:
    """Draw on a figure of `size` inches and return an ``<svg>`` element without fixed width and height."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    style = {
        "svg.fonttype": "none", "svg.hashsalt": name, "font.size": 9.5, "axes.edgecolor": "#b5bec8",
        "axes.labelcolor": TEXT, "xtick.color": TEXT, "ytick.color": TEXT, "legend.labelcolor": TEXT,
        "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True, "grid.linewidth": 0.7,
    }  # fmt: skip
    with matplotlib.rc_context(style):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    head, _, rest = svg.partition(">")
    head = re.sub(r' (width|height)="[^"]*"', "", head)
    # Groups are numbered anew in every figure, and nothing refers to them; clip paths carry the salted hash.
    rest = re.sub(r'<g id="[^"]*"', "<g", rest)
    return f'{head} role="img">{rest}'


def usable_rows(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Rows of a train log that a curve can be drawn from: with stage, tokens and a loss."""
    return [
        row
        for row in rows
        if "stage" in row and "tokens" in row and (row.get("loss") is not None or row.get("valid_loss") is not None)
    ]
