"""``llmrec version``: what to put into a bug report."""

from __future__ import annotations

import typer

app = typer.Typer(add_completion=False)

_PACKAGES = (
    "torch",
    "transformers",
    "trl",
    "peft",
    "accelerate",
    "datasets",
    "sentence-transformers",
    "faiss-cpu",
    "polars",
)


@app.command()
def version() -> None:
    """Versions of llmrec and of what it stands on."""
    import platform
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as version_of

    from llmrec import __version__

    typer.echo(f"llmrec {__version__}\npython {platform.python_version()}")
    for package in _PACKAGES:
        try:
            typer.echo(f"{package} {version_of(package)}")
        except PackageNotFoundError:
            typer.echo(f"{package} (not installed)")
