"""``llmrec inspect``: what a checkpoint folder is and where it comes from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from llmrec.checkpoint_card import Card
    from llmrec.sid_vocab.table import SIDTable

app = typer.Typer(add_completion=False)


@app.command()
def inspect(
    checkpoint: Annotated[Path, typer.Argument(metavar="FOLDER", help="A checkpoint folder, or hub:OWNER/NAME.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Show what a checkpoint is and where it comes from; its files are checked, the base of an adapter is not."""
    from llmrec.checkpoint_card import Card, fingerprint, verify_files
    from llmrec.hub import checkpoint_folder
    from llmrec.sid_vocab.table import SIDTable

    checkpoint = checkpoint_folder(checkpoint)
    card = Card.read(checkpoint)
    verify_files(checkpoint, card)
    table = SIDTable.load(checkpoint)
    if as_json:
        values = card.model_dump(mode="json")
        report = {"fingerprint": fingerprint(checkpoint), "stage": card.stage, **values, "table": _table(table)}
        typer.echo(json.dumps(report, indent=2, ensure_ascii=False))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    grid.add_column(style="cyan", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in _rows(checkpoint, card, table, fingerprint(checkpoint)):
        grid.add_row(name, Text(value))
    Console().print(grid)


def _rows(folder: Path, card: Card, table: SIDTable, fingerprint: str) -> list[tuple[str, str]]:
    what = "a full SID-extended model" if card.kind == "model" else "an adapter (PEFT) on the base below"
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    base = f"{card.base.reference}\nweights {card.base.weights_sha256[:16]}…" if card.base else "made from a config"
    steps = [
        f"{entry.stage}"
        + (f", settings {entry.config_hash[:12]}" if entry.config_hash else "")
        + (f", from {entry.parent[:12]}" if entry.parent else "")
        for entry in card.lineage
    ]
    summary = _table(table)
    levels = " × ".join(map(str, summary["codebook_sizes"])) + (" (the last tells collisions apart)" * table.has_suffix)
    retired = f", {summary['retired']:,} of them retired" if summary["retired"] else ""
    serving = card.serving
    return [
        ("checkpoint", f"{folder}"),
        ("is", f"{what}, flow {card.flow}; {size / 1e6:,.1f} MB in {len(card.files) + 1} files, all as written"),
        ("fingerprint", fingerprint),
        ("written by", f"stage {card.stage}, llmrec {card.llmrec_version}"),
        ("lineage", "\n".join(steps)),
        ("base", base),
        (
            "data",
            f"{card.data.name}, split {(card.data.loo_sha256 or 'none')[:16]}, read as {card.data.fingerprint[:16]}",
        ),
        ("SID table", f"{summary['items']:,} items{retired}; {table.num_levels} levels, {levels}"),
        ("vocabulary", f"{table.num_tokens:,} SID tokens; {card.fingerprints.vocabulary}"),
        ("rows", card.fingerprints.rows),
        ("templates", card.templates_sha256),
        (
            "serving",
            f"window {serving.window} items, max_length {serving.max_length}, {serving.num_beams} beams, "
            f"normalise {serving.normalise}",
        ),
    ]


def _table(table: SIDTable) -> dict[str, Any]:
    from llmrec.sid_vocab.table import RETIRED

    return {
        "items": table.num_items,
        "retired": int((table.status == RETIRED).sum()),
        "num_levels": table.num_levels,
        "codebook_sizes": list(table.codebook_sizes),
        "has_suffix": table.has_suffix,
        "num_tokens": table.num_tokens,
        "parent": table.parent,
    }
