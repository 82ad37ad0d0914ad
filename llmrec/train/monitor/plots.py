"""The record of a run as one figure: reward beside held-out metric, then what tells why they part.

save_plots(TrainingLog(path, "grpo").rows(), folder / "grpo.svg")
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmrec.train.monitor.alarms import Row
from llmrec.train.monitor.record import Monitor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_REWARD, _HELD_OUT, _ALARM = "#9aa5b1", "#2563a6", "#b8501e"
_PANELS = (
    ("zero_variance", "groups without variance"),
    ("effective_items", "effective items, all prompts"),
    ("popularity", "popularity percentile drawn"),
    ("entropy", "entropy, nats a token"),
    ("kl", "KL to the reference, nats a token"),
    ("clip_share", "tokens beyond the clipping range"),
    ("legal_mass", "probability of legal items"),
)
"""Field and title of the small panels; those that a run did not measure are left out."""


def draw(figure: Figure, rows: Sequence[Row]) -> None:
    """Draw a run into `figure` (about 10 by 6 inches).

    Args:
        rows: of one run, by step.
    """
    shown = [(field, title) for field, title in _PANELS if any(row.get(field) is not None for row in rows)]
    columns = 4
    lines = -(-len(shown) // columns)
    grid = figure.add_gridspec(1 + lines, columns, height_ratios=[1.6] + [1.0] * lines)
    _reward_beside_held_out(figure.add_subplot(grid[0, :]), rows)
    for place, (field, title) in enumerate(shown):
        axes = figure.add_subplot(grid[1 + place // columns, place % columns])
        axes.plot(*_points(rows, field), color=_HELD_OUT, linewidth=1.2)
        axes.set_title(title, fontsize=9, loc="left")
        axes.grid(color="#e6e9ed")


def save_plots(rows: Sequence[Row], path: Path) -> None:
    """Write the figure as a file of the kind that the name's end says (svg, png, pdf)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 6), layout="constrained")
    FigureCanvasAgg(figure)
    draw(figure, rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _reward_beside_held_out(axes: Any, rows: Sequence[Row]) -> None:
    axes.plot(*_points(rows, "reward"), color=_REWARD, linewidth=1.2, label="reward")
    axes.set(xlabel="step", ylabel="reward")
    other = axes.twinx()
    steps, values = _points(rows, "held_out")
    errors = [row["held_out_se"] for row in rows if row.get("held_out") is not None]
    metric = next((str(row["held_out_metric"]) for row in rows if "held_out_metric" in row), "held-out metric")
    other.errorbar(steps, values, yerr=errors, color=_HELD_OUT, marker="o", markersize=4, label=f"valid {metric}")
    other.set_ylabel(f"valid {metric}")
    for alarm in Monitor.replay(rows).alarms:
        axes.axvline(alarm.step, color=_ALARM, linewidth=1, linestyle=":")
        axes.annotate(
            alarm.name.replace("_", " "), (alarm.step, 1), xycoords=("data", "axes fraction"), rotation=90,
            xytext=(2, -3), textcoords="offset points", va="top", fontsize=8, color=_ALARM,
        )  # fmt: skip
    handles = [*axes.get_legend_handles_labels()[0], *other.get_legend_handles_labels()[0]]
    axes.legend(handles=handles, loc="lower right", frameon=False)


def _points(rows: Sequence[Row], field: str) -> tuple[list[float], list[float]]:
    there = [row for row in rows if row.get(field) is not None]
    return [float(row["step"]) for row in there], [float(row[field]) for row in there]
