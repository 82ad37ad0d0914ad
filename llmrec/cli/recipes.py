"""``llmrec recipes``: list, print, copy and check recipes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, add_completion=False)

RecipeWord = Annotated[str, typer.Argument(metavar="RECIPE", help="A shipped name (`llmrec recipes ls`) or a path.")]


@app.callback()
def _group() -> None:
    """List, print, copy and check recipes."""


@app.command("ls")
def ls() -> None:
    """List the shipped recipes; the pipelines at the top are what `llmrec run` takes."""
    from rich.console import Console
    from rich.table import Table

    from llmrec.recipes import root, shipped

    table = Table(
        "recipe", "what it is", box=None, title_justify="left", caption=f"in {root()}", caption_justify="left"
    )
    for recipe in shipped():
        table.add_row(recipe.name, recipe.summary, style="bold" if recipe.is_pipeline else None)
    Console().print(table, markup=False)


@app.command()
def cat(recipe: RecipeWord) -> None:
    """Print a recipe as it is."""
    from llmrec.recipes import find

    typer.echo(find(recipe).read_text(encoding="utf-8"), nl=False)


@app.command()
def cp(
    recipe: RecipeWord,
    destination: Annotated[Path, typer.Argument(help="A new file, or a folder to put it into.")] = Path(),
) -> None:
    """Copy a recipe for editing."""
    from llmrec.recipes import copy

    typer.echo(f"copied to {copy(recipe, destination)}")


@app.command()
def validate(
    recipe: RecipeWord,
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Changed settings.")] = None,
) -> None:
    """Check a recipe without running it: every unknown key and wrong value, all together."""
    from llmrec.recipes import find

    path = find(recipe)
    kind = _check(path, overrides or [])
    typer.echo(f"{path} is fine: {kind}")


def _check(path: Path, overrides: Sequence[str]) -> str:
    """What kind of recipe the file is, told by its keys; raises ConfigError for what is wrong with one of that kind."""
    from llmrec.align.config import METHODS, AlignConfig
    from llmrec.cli.sid_fit import load_sid_recipe
    from llmrec.config import load_config, read_yaml
    from llmrec.errors import InputError
    from llmrec.pipeline import load_recipe
    from llmrec.sid_vocab.build import SIDConfig
    from llmrec.train.preference.config import PreferConfig

    values = read_yaml(path)
    keys = set(values) if isinstance(values, Mapping) else set()
    if keys & {"negatives", "scorer", "feedback"}:
        load_config(PreferConfig, path, ["checkpoint=runs/NAME", *overrides])
        return "preference data, for `llmrec prefer`"
    if keys & set(METHODS):
        load_config(AlignConfig, path, ["checkpoint=runs/NAME", *overrides])
        return "an alignment, for `llmrec align`"
    if "distributed_type" in keys:
        from accelerate.commands.config.config_args import load_config_from_file

        try:
            load_config_from_file(str(path))
        except ValueError as error:
            raise InputError(str(error)) from error
        return "settings of processes and devices, for `accelerate launch`"
    if keys and keys <= SIDConfig.model_fields.keys():
        load_sid_recipe(str(path), ["data.path=data", *overrides])
        return "SIDs, for `llmrec sid fit` or below `sid:` of a pipeline"
    load_recipe(path, overrides)
    return "a pipeline, for `llmrec run`"
