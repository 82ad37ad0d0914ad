"""``llmrec assets``: packaged models and data for machines that reach no hub."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, add_completion=False)


@app.callback()
def _group() -> None:
    """Packaged models and data for machines that reach no hub."""


@app.command("ls")
def ls() -> None:
    """List the packaged assets, their licences, and which are in the cache."""
    from rich.console import Console
    from rich.table import Table

    from llmrec.data.assets import ASSETS, PREFIX, cache_folder, cached

    table = Table("asset", "kind", "cached", "licence and origin", caption=f"cache: {cache_folder()}", show_lines=True)
    for asset in ASSETS.values():
        table.add_row(PREFIX + asset.name, asset.kind, "yes" if cached(asset) else "no", asset.note)
    Console().print(table, markup=False)


@app.command()
def fetch(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Names from `llmrec assets ls`, or `all`.")],
) -> None:
    """Download assets with pip into the cache, hash-checked; those already there are kept."""
    from llmrec.data import assets

    chosen = list(assets.ASSETS.values()) if names == ["all"] else [assets.find_asset(name) for name in names]
    for asset in chosen:
        typer.echo(f"{assets.PREFIX}{asset.name}: {assets.fetch(asset)}")


@app.command()
def path(name: Annotated[str, typer.Argument(metavar="NAME")]) -> None:
    """Print the folder of a fetched asset."""
    from llmrec.data.assets import cached, find_asset
    from llmrec.errors import InputError

    asset = find_asset(name)
    folder = cached(asset)
    if folder is None:
        raise InputError(f"asset {asset.name!r} is not in the cache", hint=f"run `llmrec assets fetch {asset.name}`")
    typer.echo(folder)
