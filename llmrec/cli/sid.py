"""``llmrec sid``: fit Semantic IDs and judge them before a model is trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, add_completion=False)

_SOURCE = typer.Argument(metavar="FOLDER", help="A run, its folder sid, a checkpoint, or what `sid assign` wrote.")


@app.callback()
def _group() -> None:
    """Fit Semantic IDs and judge them."""


@app.command()
def fit(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A pipeline recipe, or data: and sid: alone.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Changed settings, such as name=trial.")
    ] = None,
    runs: Annotated[Path, typer.Option(help="Folder of all runs.")] = Path("runs"),
) -> None:
    """Fit the SIDs of a recipe into runs/NAME/sid and nothing else; a later `llmrec run` goes on from there."""
    from rich.console import Console

    from llmrec.cli.sid_fit import fit_sids, load_sid_recipe

    console = Console(soft_wrap=True, highlight=False)
    config = load_sid_recipe(recipe, overrides or [])
    folder = fit_sids(config, runs, console)
    health = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    console.print(
        f"{health['num_items']:,} items, codebooks {' x '.join(map(str, health['codebook_sizes']))}; "
        f"{health['collision_rate']:.1%} collide before any suffix or move"
    )
    for line in health["notes"]:
        console.print(f"  {line}", markup=False)
    console.print(f"SIDs    {folder}\nlook    llmrec sid report {folder}")


@app.command()
def report(
    folder: Annotated[Path, _SOURCE],
    prefix: Annotated[
        list[str] | None, typer.Option(help="Explain this prefix, such as '<a_17>' or '<a_17><b_3>'; may be repeated.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="The HTML page; by default sid_report.html in the folder's run.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON; a page only with --output.")] = False,
) -> None:
    """Measure collisions, code use, and what the codes mean: JSON, or a page and a table."""
    from llmrec.cli.sid_report import judge, print_report, write_page

    judged = judge(folder, prefix or [])
    if as_json:
        typer.echo(json.dumps({"health": judged.health, **judged.meaning}, indent=2, ensure_ascii=False))
    else:
        print_report(judged)
        output = output or judged.fit.parent / "sid_report.html"
    if output:
        write_page(judged, output)
        typer.echo(f"page: {output}", err=as_json)
