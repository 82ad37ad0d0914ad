"""``llmrec align``: a finished checkpoint learns on from preferences or rewards, and is judged beside its start."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmrec import processes
from llmrec.cli.running import running

if TYPE_CHECKING:
    from rich.console import Console

    from llmrec.align.run import AlignResult

app = typer.Typer(add_completion=False)


@app.command()
def align(
    recipe: Annotated[
        str, typer.Argument(help="A recipe of train/align (dpo, s-dpo, grpo-hit, continued, ...) or a YAML file.")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Settings to change, such as checkpoint=runs/ml-100k-small."),
    ] = None,
    runs: Annotated[Path, typer.Option(help="Folder of all runs.")] = Path("runs"),
) -> None:
    """Align a checkpoint; finished stages are skipped, an interrupted training is resumed."""
    from rich.console import Console

    from llmrec.align.config import load_align_recipe
    from llmrec.align.run import run_align

    console = Console(soft_wrap=True, quiet=not processes.is_main())
    config = load_align_recipe(recipe, overrides or [])
    folder = runs / config.name
    with running(config.name, folder, console):
        result = run_align(config, folder, console)
    _print_result(result, console)


def _print_result(result: AlignResult, console: Console) -> None:
    from llmrec.eval.report import clock
    from llmrec.eval.table import print_table

    print_table(result.evaluation, console)
    training = result.training
    took = ", ".join(f"{run.name} {clock(run.wall_s)}{'' if run.ran else ' (before)'}" for run in result.stages)
    console.print(f"\ntrained     {training['steps']:,} steps, {training['tokens']:,} tokens; {took}", highlight=False)
    for alarm in training.get("alarms", []):
        console.print(f"alarm       step {alarm['step']}: {alarm['name']}", highlight=False, markup=False)
    console.print(f"report      {result.report}\ncheckpoint  {result.checkpoint}", highlight=False)
