"""``llmrec think``: data for thoughts, and the gate that says whether to serve them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table

app = typer.Typer(no_args_is_help=True, add_completion=False)
_CHECKPOINT = typer.Argument(metavar="CHECKPOINT", help="A checkpoint folder.")
_OVERRIDES = typer.Argument(metavar="[KEY=VALUE]...", help="Changed settings.")


@app.callback()
def _group() -> None:
    """Think-then-recommend: true thoughts to train on, and whether thinking earns its place."""


@app.command()
def data(
    checkpoint: Annotated[Path, _CHECKPOINT],
    overrides: Annotated[list[str] | None, _OVERRIDES] = None,
    output: Annotated[Path, typer.Option(help="File of thoughts, JSON lines.")] = Path("runs/think/think.jsonl"),
) -> None:
    """Make thoughts about train events, with the SIDs and templates of a checkpoint; every statement is checked."""
    from llmrec.align.start import data_of
    from llmrec.checkpoint import Checkpoint
    from llmrec.config import apply_overrides, build_config
    from llmrec.errors import InputError
    from llmrec.hub import checkpoint_folder
    from llmrec.prompts.grounding import grounding_rates
    from llmrec.prompts.think import write_rows
    from llmrec.train.think.build import check_thoughts, make_thoughts
    from llmrec.train.think.config import ThinkDataConfig

    config = build_config(ThinkDataConfig, apply_overrides({}, overrides or []), source="llmrec think data")
    if output.exists():
        raise InputError(f"{output} exists already and is not overwritten", hint="remove it, or give --output")
    opened = Checkpoint.load(checkpoint_folder(checkpoint))
    dataset = data_of(opened.card, None)
    made = make_thoughts(dataset, opened.table, config)
    checked = check_thoughts(made.rows, opened.renderer, dataset, config)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_rows(output, made.rows)
    rates = grounding_rates(checked)
    users = len({row.user for row in made.rows})
    typer.echo(f"{len(made.rows):,} thoughts about train events of {users:,} users of {dataset.name}")
    for reason, count in made.dropped.items():
        typer.echo(f"{count:,} left out: {reason}")
    said = sum(int(value) for name, value in rates.items() if name.endswith("_statements"))
    typer.echo(f"{said:,} statements checked in {int(rates['texts']):,} texts, all true")
    typer.echo(f"train   tasks: {{think: {{settings: {{rows: {output}, window: {config.window}}}}}}}")


@app.command()
def gate(
    checkpoint: Annotated[Path, _CHECKPOINT],
    overrides: Annotated[list[str] | None, _OVERRIDES] = None,
    output: Annotated[Path | None, typer.Option(help="Folder for the figures; by default runs/think/NAME.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print think_gate.json instead of a table.")] = False,
) -> None:
    """Think and no-think on the same users with the same candidates: which to serve, and what each costs."""
    from rich.console import Console

    from llmrec.align.start import data_of
    from llmrec.checkpoint_card import Card
    from llmrec.cli.loading import load_recommender
    from llmrec.config import apply_overrides, build_config
    from llmrec.eval.progress import shown
    from llmrec.eval.think_gate import ThinkGateConfig, think_gate
    from llmrec.hub import checkpoint_folder, short_name

    config = build_config(ThinkGateConfig, apply_overrides({}, overrides or []), source="llmrec think gate")
    place = checkpoint_folder(checkpoint)
    dataset = data_of(Card.read(place), None)
    recommender = load_recommender(place)
    with shown(Console(stderr=True)) as progress:
        result = think_gate(recommender, dataset, config, progress)
    path = result.save(output or Path("runs", "think", short_name(checkpoint)))
    if as_json:
        typer.echo(json.dumps(result.summary, indent=2, ensure_ascii=False))
        typer.echo(str(path), err=True)
        return
    console = Console()
    console.print(_table(result.summary))
    console.print(f"[bold]serve {result.summary['serve']}[/bold]: {result.summary['reason']}", highlight=False)
    console.print(f"figures  {path}", highlight=False, soft_wrap=True)


def _table(summary: dict[str, Any]) -> Table:
    from rich.table import Table

    metric = summary["config"]["metric"]
    table = Table(title=f"{summary['dataset']}, {summary['users']:,} users, {summary['config']['part']}", box=None)
    for column in ("", metric, "to plain", "p (Holm)", "tokens", "forwards", "CPU s", "thought", "true"):
        table.add_column(column, justify="right" if column else "left")
    for name, arm in summary["arms"].items():
        value, cost = arm["metrics"][metric], arm["compute_per_user"]
        test, thoughts = summary["tests"].get(name), arm.get("thoughts")
        table.add_row(
            name,
            f"{value['value']:.4f} ± {value['se']:.4f}",
            f"{test['difference']:+.4f}" if test else "",
            f"{test['p_holm']:.4f}" if test else "",
            f"{cost['tokens']:.0f}",
            f"{cost['forwards']:.1f}",
            f"{cost['cpu_s']:.3f}",
            f"{thoughts['tokens']:.0f}" if thoughts else "",
            f"{thoughts['grounding']['grounded']:.0%}" if thoughts else "",
        )
    return table
