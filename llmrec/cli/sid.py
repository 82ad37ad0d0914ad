"""``llmrec sid``: fit Semantic IDs, judge them before a model is trained, and give new items SIDs without training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from llmrec.cli.sid_assign import NewVersion

app = typer.Typer(no_args_is_help=True, add_completion=False)

_SOURCE = typer.Argument(metavar="FOLDER", help="A run, its folder sid, a checkpoint, or what `sid assign` wrote.")


@app.callback()
def _group() -> None:
    """Fit Semantic IDs, judge them, and give new items SIDs without training."""


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


@app.command()
def compare(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="RECIPE... [KEY=VALUE]...",
            help="Recipes as for `sid fit`, or files with recipe: and overrides:. A key=value holds for all of them; "
            "proxy.learning_rate=... and the like are the proxy's.",
        ),
    ],
    tokens: Annotated[int | None, typer.Option(min=1000, help="Training tokens of each proxy [2500000].")] = None,
    seeds: Annotated[str | None, typer.Option(help="Seeds of the proxies, such as 0,1,2 [0].")] = None,
    users: Annotated[int | None, typer.Option(min=1, help="Judge this many users, chosen by hash [all].")] = None,
    runs: Annotated[Path, typer.Option(help="Fits and proxies are kept in sid-compare/DATASET below it.")] = Path(
        "runs"
    ),
    output: Annotated[Path | None, typer.Option(help="Folder of the result [RUNS/sid-compare/DATASET].")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print compare.json instead of tables.")] = False,
) -> None:
    """Put tokenizers side by side: their health, and a small model trained for each alike, judged on valid.

    What is done is kept: the same command goes on where it stopped, and one more recipe costs its own part alone.
    """
    from rich.console import Console

    from llmrec.cli.sid_compare import parse_seeds, proxy_config, read_arms
    from llmrec.sid_compare.compare import compare_tokenizers
    from llmrec.sid_compare.table import print_comparison

    arms, proxy_words = read_arms(words)
    config = proxy_config(proxy_words, {"tokens": tokens, "seeds": parse_seeds(seeds), "users": users})
    progress = Console(stderr=True, soft_wrap=True, highlight=False)
    result = compare_tokenizers(arms, config, runs / "sid-compare", progress)
    path = result.save(output or runs / "sid-compare" / result.summary["dataset"])
    if as_json:
        typer.echo(path.read_text(encoding="utf-8"), nl=False)
        typer.echo(f"{path}", err=True)
        return
    out = Console()
    print_comparison(result.summary, out if out.is_terminal else Console(width=120))
    typer.echo(f"figures   {path}\nmarkdown  {path.with_name('compare.md')}")


@app.command("init-report")
def init_report(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A pipeline recipe.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Changed settings, such as cpt.epochs=2.")
    ] = None,
    steps: Annotated[int, typer.Option(help="First steps of cpt that each start is trained for.")] = 20,
    runs: Annotated[Path, typer.Option(help="Folder of all runs; SIDs are fitted there where they are not.")] = Path(
        "runs"
    ),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Compare how the rows of SID tokens may start: the first steps of a recipe's training, once for each way."""
    from rich.console import Console

    from llmrec.cli.sid_init import print_init_report, run_init_report

    progress = Console(soft_wrap=True, highlight=False, stderr=as_json)
    report = run_init_report(recipe, overrides or [], runs, steps, progress)
    if as_json:
        typer.echo(json.dumps(report.as_dict(), indent=2))
    else:
        print_init_report(report, progress)


@app.command()
def assign(
    source: Annotated[Path, _SOURCE],
    output: Annotated[Path, typer.Option(help="New folder for the next version of the table.")],
    items: Annotated[Path | None, typer.Option(help="New items: .jsonl, .csv or .parquet, columns as before.")] = None,
    retire: Annotated[Path | None, typer.Option(help="Ids never to recommend again, one a line.")] = None,
    vectors: Annotated[
        Path | None, typer.Option(help="Where SIDs come from your own vectors: those of the new items.")
    ] = None,
    ids: Annotated[Path | None, typer.Option(help="Item ids of the rows of a .npy in --vectors.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of lines.")] = False,
) -> None:
    """Give new items SIDs with frozen codebooks and retire old ones: a new table for old checkpoints."""
    from llmrec.cli.sid_assign import assign_version

    made = assign_version(source, output, items=items, retire=retire, vectors=vectors, vector_ids=ids)
    if as_json:
        typer.echo(json.dumps(made.as_dict(), indent=2, ensure_ascii=False))
    else:
        _print_version(made, output)


def _print_version(made: NewVersion, output: Path) -> None:
    told = made.assigned
    typer.echo(
        f"version {made.version}: {len(told.added):,} items added, {len(told.retired):,} retired; "
        f"{told.table.num_items:,} in all"
    )
    lines: list[tuple[Any, str]] = [
        (told.known, "were in the table already and keep their SID and status"),
        (told.already_retired, "were retired already"),
        (told.displaced, "got the next-nearest code: under their own no SID was free"),
        (told.sharing, "share their SID with another item"),
    ]
    for some, words in lines:
        if some:
            typer.echo(f"  {len(some):,} {words} ({', '.join(some[:3])}{', ...' if len(some) > 3 else ''})")
    if made.drift:
        typer.echo(
            f"  median error of the new items {made.drift.median_error:.4g}, of old ones embedded as if new "
            f"{made.drift.reference_median_error:.4g}; {made.drift.tail_share:.0%} above the old ones' 95th percentile"
        )
    for note in made.notes:
        typer.echo(f"  {note}")
    if made.refit_due:
        typer.secho("warning: the codebooks do not fit the new items any more, a refit is due", fg="yellow", err=True)
    typer.echo(f"table       {output}")
