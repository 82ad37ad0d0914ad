"""``llmrec data``: look at a data set before training on it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from llmrec.data.config import DataConfig

app = typer.Typer(no_args_is_help=True, add_completion=False)


@app.callback()
def _group() -> None:
    """Look at a data set before training on it."""


@app.command()
def stats(
    source: Annotated[str, typer.Argument(metavar="RECIPE_OR_FOLDER", help="A recipe, a data folder or asset:NAME.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON; draws only with --plot.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Where the curves go; by default runs/data/NAME.png.")] = None,
) -> None:
    """Print size, lengths, popularity, cold items and the check value of the split, and draw the curves."""
    from llmrec.data.dataset import read_data
    from llmrec.data.stats import data_stats, draw_curves

    dataset = read_data(data_config(source))
    figures = data_stats(dataset)
    if as_json:
        typer.echo(json.dumps(figures.as_dict(), indent=2))
    else:
        from rich.console import Console
        from rich.table import Table

        for line in dataset.report.lines():
            typer.echo(line)
        table = Table(box=None, show_header=False)
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for row in figures.rows():
            table.add_row(*row)
        Console().print(table, markup=False)
        plot = plot or Path("runs", "data", f"{dataset.name}.png")
    if plot:
        draw_curves(dataset, plot)
        typer.echo(f"curves: {plot}", err=as_json)


@app.command()
def preview(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe for `llmrec run`.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Changed settings.")] = None,
    stage: Annotated[str, typer.Option(help="cpt or sft.")] = "cpt",
    rows: Annotated[int, typer.Option(min=1, help="Rows of each task.")] = 2,
    runs: Annotated[Path, typer.Option(help="Folder of all runs, whose SIDs are used where they fit.")] = Path("runs"),
) -> None:
    """Show training rows as the model will see them: what carries loss, how long, what is cut."""
    import transformers
    from rich.console import Console

    from llmrec.cli.preview import print_preview
    from llmrec.pipeline_config import load_recipe
    from llmrec.preview import preview_stage

    config = load_recipe(recipe, overrides or [])
    transformers.utils.logging.disable_progress_bar()
    console = Console(highlight=False)
    print_preview(preview_stage(config, stage, runs, say=console.print), rows, console)


def data_config(source: str) -> DataConfig:
    """The data settings that `source` names: a data folder, an archive or an asset itself, else a recipe's ``data:``.

    Raises:
        InputError: no such folder or recipe, or the recipe has no ``data:``.
        ConfigError: the recipe's ``data:`` has mistakes.
    """
    from llmrec.config import build_config, parse_yaml
    from llmrec.data.config import DataConfig
    from llmrec.errors import InputError
    from llmrec.recipes import find

    if source.startswith("asset:") or Path(source).is_dir() or Path(source).suffix == ".zip":
        return DataConfig(path=source)
    path = find(source)
    recipe = parse_yaml(path.read_text(encoding="utf-8"), source=path.name)
    if not isinstance(recipe, dict) or not isinstance(recipe.get("data"), dict):
        raise InputError(f"{path} has no data: section", hint="name a recipe for `llmrec run`, or a data folder")
    return build_config(DataConfig, recipe["data"], source=f"{path.name}, data")
