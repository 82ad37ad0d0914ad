"""``llmrec doctor``: what this machine can run, and what to do about what is missing."""

from __future__ import annotations

import dataclasses
import json
from typing import Annotated

import typer

app = typer.Typer(add_completion=False)

_MARKS = {"ok": "[green]ok[/]", "note": "[yellow]note[/]", "problem": "[bold red]problem[/]"}


@app.command()
def doctor(
    network: Annotated[bool, typer.Option("--network", help="Also ask whether the model hub answers.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """What this machine can run, and what to do about what is missing (exit code 3 if something must be mended)."""
    from llmrec.doctor import examine
    from llmrec.errors import EnvironmentProblem

    findings = examine(network=network)
    if as_json:
        typer.echo(json.dumps([dataclasses.asdict(finding) for finding in findings], indent=2))
    else:
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Table

        table = Table(box=None, show_header=False)
        table.add_column(no_wrap=True)
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for finding in findings:
            advice = f"\n[cyan]→ {escape(finding.advice)}[/]" if finding.advice else ""
            table.add_row(_MARKS[finding.state], finding.subject, escape(finding.found) + advice)
        Console().print(table)
    problems = [finding for finding in findings if finding.state == "problem"]
    if problems:
        raise EnvironmentProblem(
            f"to be mended: {', '.join(finding.subject for finding in problems)}", hint=problems[0].advice
        )
