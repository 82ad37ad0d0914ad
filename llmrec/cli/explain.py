"""``llmrec explain``: why an item fits a history, in the model's words, checked against the catalogue."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False)


@app.command()
def explain(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint folder.")],
    item: Annotated[str, typer.Argument(metavar="ITEM_OR_TITLE", help="The item to explain.")],
    history: Annotated[
        list[str], typer.Option("--history", metavar="ITEM_OR_TITLE", help="A history item, oldest first; repeat it.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Explain why an item fits a history; names that the catalogue lacks are counted and shown."""
    import dataclasses

    from llmrec.cli.loading import history_table, load_recommender

    recommender = load_recommender(checkpoint)
    wanted, *matches = recommender.titles.resolve([item, *history])
    found = recommender.explain([match.item_id for match in matches], wanted.item_id)
    if as_json:
        report = {
            "item": dataclasses.asdict(wanted),
            "history": [dataclasses.asdict(match) for match in matches],
            "explanation": dataclasses.asdict(found),
        }
        typer.echo(json.dumps(report, indent=2, ensure_ascii=False))
        return
    from rich.console import Console
    from rich.panel import Panel
    from rich.text import Text

    console = Console()
    console.print(history_table(matches))
    title = Text(f"why {wanted.title} ({wanted.item_id})", style="bold")
    console.print(Panel(Text(found.text + ("" if found.finished else " …")), title=title, title_align="left"))
    invented = found.named_titles_unknown
    shown = f": {', '.join(invented)}" if invented else ""
    console.print(Text(f"titles named that the catalogue lacks: {len(invented)}{shown}"))
    if found.named_outside_history:
        named = ", ".join(recommender.titles.title(one) for one in found.named_outside_history)
        console.print(Text(f"items named that are not in the history: {len(found.named_outside_history)}: {named}"))
    if found.untrue_attributes:
        claims = ", ".join(found.untrue_attributes)
        console.print(Text(f"attributes named that the catalogue does not bear out: {claims}"))
    if found.unknown_sids:
        console.print(Text(f"SIDs named that no item has: {len(found.unknown_sids)}: {', '.join(found.unknown_sids)}"))
    if not found.finished:
        console.print(Text("note: the answer was cut off, the model did not end it", style="yellow"))
