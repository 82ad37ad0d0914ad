"""``llmrec run``: a pipeline recipe from raw logs to a checkpoint, an evaluation and a report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmrec import processes
from llmrec.cli.running import running

if TYPE_CHECKING:
    from rich.console import Console

    from llmrec.pipeline import RunResult
    from llmrec.pipeline_config import PipelineConfig

app = typer.Typer(add_completion=False)


@app.command()
def run(
    recipe: Annotated[str, typer.Argument(help="A shipped recipe's name (llmrec recipes ls) or a YAML file.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings to change, such as cpt.epochs=2.")
    ] = None,
    runs: Annotated[Path, typer.Option(help="Folder of all runs.")] = Path("runs"),
    plan: Annotated[
        bool, typer.Option("--plan", help="Only say what it will take: tokens, time, memory, disk.")
    ] = False,
) -> None:
    """Run a pipeline; finished stages are skipped, an interrupted training is resumed."""
    from rich.console import Console

    from llmrec.pipeline import load_recipe, run_folder, run_pipeline

    console = Console(soft_wrap=True, quiet=not processes.is_main())
    config = load_recipe(recipe, overrides or [])
    if plan:
        _print_plan(config, runs, console)
        return
    folder = run_folder(config, runs)
    with running(config.name, folder, console):
        result = run_pipeline(config, folder, console)
    _print_result(config, result, console)


def _print_plan(config: PipelineConfig, runs: Path, console: Console) -> None:
    from rich.table import Table

    from llmrec.plan import make_plan

    made = make_plan(config, runs)
    table = Table("stage", "rows", "tokens", "minutes", "memory", title=f"Plan of {config.name}", title_justify="left")
    for stage in made.stages:
        table.add_row(
            stage.name, f"{stage.rows:,}", f"{stage.tokens:,}", f"{stage.minutes:.1f}", f"{stage.memory_gb:.1f} GB"
        )
    console.print(table)
    for line in made.lines:
        console.print(line, highlight=False, markup=False)


def _print_result(config: PipelineConfig, result: RunResult, console: Console) -> None:
    from llmrec.eval.examples import example_users
    from llmrec.eval.table import print_examples, print_table

    print_table(result.evaluation, console)
    users = example_users(result.evaluation, result.dataset)
    print_examples(users, console)
    for told in result.explanations:
        console.print(f"\n[bold]Why {told['item']}, for user {told['user_id']}?[/bold]", highlight=False)
        console.print(told["text"] or "  (the model said nothing)", highlight=False, markup=False)
        if told["unknown"]:
            console.print(f"  names {len(told['unknown'])} titles the catalogue lacks: {', '.join(told['unknown'])}")
    valid = _valid_losses(config, result)
    if valid:
        console.print(f"\nvalid loss: {valid}", highlight=False)
    console.print(f"report      {result.report}\ncheckpoint  {result.final}", highlight=False)
    if users:
        history = " ".join(item.item_id for item in users[0].history)
        console.print(f"try         llmrec recommend {result.final} {history} -k 5", highlight=False)


def _valid_losses(config: PipelineConfig, result: RunResult) -> str:
    from llmrec.train.log import TrainingLog

    told = []
    for name in config.stages:
        rows = TrainingLog(result.folder / "logs" / f"{name}.jsonl", name).rows()
        losses = [row["valid_loss"] for row in rows if "valid_loss" in row]
        if losses:
            told.append(f"{name} {' > '.join(f'{loss:.2f}' for loss in losses)}")
    return ", ".join(told)
