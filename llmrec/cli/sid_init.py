"""What `llmrec sid init-report` prints."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from llmrec.init_report import InitReport


def run_init_report(recipe: str, overrides: Sequence[str], runs: Path, steps: int, progress: Console) -> InitReport:
    """Fit the recipe's SIDs into ``runs/NAME/sid`` where that is not done, and compare the starts of their rows.

    Raises:
        InputError: what would stop a run of the recipe, or steps that do not suit it.
    """
    from llmrec.cli.sid_fit import fit_sids
    from llmrec.data.dataset import read_data
    from llmrec.init_report import init_report
    from llmrec.models import model_folder
    from llmrec.pipeline_config import load_recipe
    from llmrec.sid_vocab.table import SIDTable

    config = load_recipe(recipe, overrides)
    if config.base.model:
        model_folder(config.base.model)  # a base that is not there shall not come out after minutes of work
    dataset = read_data(config.data)
    folder = fit_sids(config, runs, progress, dataset)
    report = init_report(config, dataset, SIDTable.load(folder), steps=steps, console=progress)
    (folder.parent / "init_report.json").write_text(json.dumps(report.as_dict(), indent=2) + "\n", encoding="utf-8")
    return report


def print_init_report(report: InitReport, console: Console) -> None:
    """The table, best start first, and which one to use."""
    late = len(report.trials[0].late)
    table = Table(
        "start", "step 1", f"last {late} steps", "valid before", "valid after", "seconds",
        title=f"{report.recipe}: {report.steps} of {report.of_steps:,} steps of cpt, nats per target",
        title_justify="left",
    )  # fmt: skip
    for trial in report.trials:
        figures = (trial.losses[0], float(trial.late.mean()), trial.valid_before, trial.valid_after)
        table.add_row(trial.init, *(f"{figure:.3f}" for figure in figures), f"{trial.seconds:.0f}")
    console.print(table)
    for line in report.left_out:
        console.print(f"left out  {line}", markup=False)
    console.print(f"use       init={report.use}: {report.why}", markup=False)
    on_valid = min(report.trials, key=lambda trial: trial.valid_after)
    if on_valid.init != report.use:
        console.print(f"note      on valid targets {on_valid.init} is lowest; more --steps tell more", markup=False)
