"""``llmrec serve``: a checkpoint behind HTTP: recommendations, scores, and chat for OpenAI clients."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from llmrec.serve.settings import ServeSettings

app = typer.Typer(add_completion=False)


@app.command()
def serve(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint folder.")],
    host: Annotated[str, typer.Option(help="Address to listen on; one that others reach needs a key.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65_535, help="0 takes a free one.")] = 8000,
    name: Annotated[str | None, typer.Option(help="The model's name for clients; by default the folder's.")] = None,
    api_key_file: Annotated[
        Path | None, typer.Option(help="A file with the key of clients; or set LLMREC_API_KEY.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Lists searched together.")] = 16,
    engine: Annotated[Literal["torch", "vllm"], typer.Option(help="What runs the model; chat needs torch.")] = "torch",
    prefix_cache: Annotated[
        int, typer.Option(min=0, help="MB for what was read of earlier prompts (torch); pays where users come back.")
    ] = 0,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads of the model; by default torch's.")] = None,
) -> None:
    """Serve a checkpoint; LLMREC_API_KEY and LLMREC_ADMIN_KEY hold the keys of clients and of /admin."""
    from llmrec.checkpoint_card import Card
    from llmrec.errors import InputError
    from llmrec.hub import checkpoint_folder, short_name

    require_extra()
    from llmrec.serve.run import listen, run
    from llmrec.serve.settings import ServeSettings, read_keys

    name = short_name(checkpoint) if name is None else name
    checkpoint = checkpoint_folder(checkpoint)
    Card.read(checkpoint)
    api_key, admin_key = read_keys(api_key_file)
    if not name.strip():
        raise InputError("--name is empty.", hint="leave it out for the folder's name")
    settings = ServeSettings(
        name=name, host=host, port=port, api_key=api_key, admin_key=admin_key, batch_size=batch_size
    )
    settings.require_key()
    listener, settings = listen(settings)
    with listener:
        from llmrec.cli.loading import load_recommender
        from llmrec.serve.app import create_app

        if threads is not None:
            import torch

            torch.set_num_threads(threads)
        server = create_app(load_recommender(checkpoint, engine, prefix_cache_mb=prefix_cache), settings)
        _announce(settings)
        run(server, settings, listener)
    typer.echo("stopped: everything that ran is finished", err=True)


def require_extra() -> None:
    """Raise EnvironmentProblem unless the packages of the extra ``serve`` are installed."""
    from llmrec.errors import EnvironmentProblem

    packages = ("fastapi", "uvicorn", "prometheus_client")
    if missing := [name for name in packages if importlib.util.find_spec(name) is None]:
        raise EnvironmentProblem(
            f"The server needs {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed.",
            hint="pip install 'llmrec[serve]'",
        )


def _announce(settings: ServeSettings) -> None:
    key = ' -H "Authorization: Bearer $LLMREC_API_KEY"' if settings.api_key else ""
    typer.echo(f"serving {settings.name} at {settings.url}  (Ctrl-C stops)")
    typer.echo(f"docs:    {settings.url}/docs")
    typer.echo(f"OpenAI:  base_url={settings.url}/v1 model={settings.name}")
    typer.echo(
        f"try:     curl {settings.url}/v1/recommendations{key} -H 'Content-Type: application/json' -d '{{\"k\": 5}}'"
    )
