"""``llmrec bench``: measure llmrec beside its peers and check the targets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False)


@app.command()
def bench(
    name: Annotated[str | None, typer.Argument(help="Which benchmark; without it, list them.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Smaller sizes and fewer repeats: about a minute.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    output: Annotated[Path | None, typer.Option(help="Also write the JSON to this file.")] = None,
) -> None:
    """Measure llmrec beside its peers in one run; exit code 1 if a target is missed."""
    from llmrec.bench import BENCHES
    from llmrec.bench.runner import as_report, run_bench
    from llmrec.errors import TargetMissed

    if name is None:
        typer.echo("\n".join(BENCHES))
        return
    outcomes = run_bench(name, quick=quick, progress=lambda line: typer.echo(line, err=True))
    text = json.dumps(as_report(name, outcomes, quick=quick), indent=2)
    if output:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(text + "\n", encoding="utf-8")
    if as_json:
        typer.echo(text)
    else:
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Table

        table = Table("case", "peer", "ours", "theirs", "ratio", "target", "holds", box=None)
        for outcome in outcomes:
            figures = [
                f"{each:.4g} {outcome.unit}" if each is not None else "" for each in (outcome.ours, outcome.theirs)
            ]
            table.add_row(
                outcome.case,
                escape(outcome.peer),
                *figures,
                f"{outcome.ratio:.2f}" if outcome.ratio is not None else "",
                outcome.target,
                "skipped" if outcome.skipped else "[green]yes[/]" if outcome.holds else "[bold red]no[/]",
            )
        Console().print(table)
        for outcome in outcomes:
            if outcome.skipped:
                typer.echo(f"skipped: {outcome.case}: {outcome.skipped}")
    missed = [outcome for outcome in outcomes if outcome.holds is False]
    if missed:
        raise TargetMissed(
            f"{len(missed)} of {len(outcomes)} targets missed: {', '.join(outcome.case for outcome in missed)}"
        )
