"""The health of a SID table as one HTML page without outside parts: what `report` and `health` measured, with plots."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from llmrec.sid_vocab.table import LEVEL_LETTERS, SIDTable

_LINES = ("#2563a6", "#b8501e", "#3d8a5f", "#7a5ea8", "#a08020", "#58687a", "#c2527a")
_GRID, _TEXT = "#e6e9ed", "#3d4852"


def render_page(table: SIDTable, health: Mapping[str, Any], meaning: Mapping[str, Any], *, title: str) -> str:
    """The page as text; every text of the data set is escaped.

    Args:
        table: whose code use is drawn.
        health: `HealthReport.as_dict`.
        meaning: `Meanings` as plain values (`llmrec.sid_vocab.report.as_plain`).
        title: heading.
    """
    from jinja2 import PackageLoader, StrictUndefined
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from markupsafe import Markup

    environment = ImmutableSandboxedEnvironment(
        loader=PackageLoader("llmrec.sid_vocab", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"share": share, "times": times}
    errors = _errors(health)
    return environment.get_template("page.html.j2").render(
        title=title,
        health=health,
        meaning=meaning,
        error_left=errors[-1] if errors else None,
        plot=Markup(health_plot(table, health, meaning)),
    )


def share(value: float | None) -> str:
    """``12.3%``, or a dash for None."""
    return "–" if value is None else f"{value:.1%}"


def times(value: float | None) -> str:
    """``3.2×``, or a dash for None."""
    return "–" if value is None else f"{value:.3g}×"


def health_plot(table: SIDTable, health: Mapping[str, Any], meaning: Mapping[str, Any]) -> str:
    """An ``<svg>``: items per code by rank, prefix lift by level, and (where vectors were) the error left by level."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    errors = _errors(health)
    style = {
        "svg.fonttype": "none", "svg.hashsalt": "sid", "font.size": 9.5, "axes.edgecolor": "#b5bec8",
        "axes.labelcolor": _TEXT, "xtick.color": _TEXT, "ytick.color": _TEXT, "legend.labelcolor": _TEXT,
        "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True, "grid.linewidth": 0.7,
    }  # fmt: skip
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(10, 3.4), layout="constrained")
        FigureCanvasSVG(figure)
        panels = figure.subplots(1, 3 if errors else 2)
        _draw_use(panels[0], table)
        _draw_bars(panels[1], meaning["prefix_lift"])
        if errors:
            letters = list(LEVEL_LETTERS[: len(errors)])
            panels[2].plot(letters, errors, marker="o", color=_LINES[0])
            panels[2].set(xlabel="after level", ylim=(0, max(1.0, *errors)))
            panels[2].set_title("error left, share of the variance", fontsize=10.5, color=_TEXT, loc="left")
            panels[2].grid(axis="y", color=_GRID)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = file.getvalue()
    head, _, rest = svg[svg.index("<svg") :].partition(">")
    return re.sub(r' (width|height)="[^"]*"', "", head) + f' role="img">{rest}'


def _draw_use(axes: Any, table: SIDTable) -> None:
    """Items per code, the most frequent first: a flat line uses its codebook, a steep one few codes of it."""
    for level, size in enumerate(table.codebook_sizes[: table.num_levels - table.has_suffix]):
        counts = np.sort(np.bincount(table.codes[:, level], minlength=size))[::-1]
        axes.plot(
            np.arange(1, size + 1) / size, counts / (table.num_items / size), color=_LINES[level % len(_LINES)],
            label=f"level {LEVEL_LETTERS[level]}", linewidth=1.6,
        )  # fmt: skip
    axes.axhline(1, color=_TEXT, linewidth=0.8, linestyle=":")
    axes.set(xlabel="share of the codes, most frequent first", xlim=(0, 1), ylim=(0, None))
    axes.set_title("items per code (1 = even)", fontsize=10.5, color=_TEXT, loc="left")
    axes.grid(color=_GRID)
    axes.legend(frameon=False)


def _draw_bars(axes: Any, lifts: list[Mapping[str, Any]]) -> None:
    shown = [lift for lift in lifts if lift["lift"] is not None]
    axes.bar([lift["what"] for lift in shown], [lift["lift"] for lift in shown], width=0.55, color=_LINES[0])
    axes.axhline(1, color=_TEXT, linewidth=0.8, linestyle=":")
    for place, lift in enumerate(shown):
        axes.annotate(
            times(lift["lift"]), (place, lift["lift"]), xytext=(0, 3), textcoords="offset points", ha="center",
            color=_TEXT,
        )  # fmt: skip
    axes.set(xlabel="levels of the prefix", xlim=(-0.6, max(2, len(shown)) - 0.4))
    axes.margins(y=0.15)
    axes.set_title("prefix lift (1 = chance)", fontsize=10.5, color=_TEXT, loc="left")
    axes.grid(axis="y", color=_GRID)


def _errors(health: Mapping[str, Any]) -> list[float]:
    found = [level["reconstruction_error"] for level in health["levels"]]
    return [error for error in found if error is not None]
