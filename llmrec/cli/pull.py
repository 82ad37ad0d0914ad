"""``llmrec pull``: a checkpoint from the Hugging Face Hub, verified."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False)


@app.command()
def pull(
    checkpoint: Annotated[str, typer.Argument(metavar="hub:OWNER/NAME[@REVISION]", help="What to download.")],
    output: Annotated[Path | None, typer.Option(help="Copy it into this folder, too; it must not exist.")] = None,
) -> None:
    """Download a checkpoint and its base, verify both, and say where they are; other commands take hub:… as it is."""
    from llmrec.checkpoint import Checkpoint
    from llmrec.folders import written_beside
    from llmrec.hub import HubReference
    from llmrec.hub import pull as pulled

    folder = pulled(HubReference.parse(checkpoint))
    commit = folder.name
    if output is not None:
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        with written_beside(output, needed_bytes=size) as work:
            shutil.copytree(folder, work, dirs_exist_ok=True)  # contents, not the cache's links
        folder = output
    opened = Checkpoint.load(folder)
    typer.echo(f"checkpoint  {folder}")
    typer.echo(f"commit      {commit}")
    typer.echo(f"verified    {len(opened.card.files) + 1} files, fingerprint {opened.fingerprint}")
    if opened.base_folder is not None:
        typer.echo(f"base        {opened.base_folder}, weights as the adapter knows them")
