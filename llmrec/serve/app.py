"""`create_app`: the FastAPI app around a recommender.

    app = create_app(Recommender.load("runs/quickstart/sft"), ServeSettings(name="films"))

The engine's thread starts and stops with the app (ASGI lifespan); stopping finishes what runs.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI

from llmrec import __version__
from llmrec.recommender import Recommender
from llmrec.serve import problems
from llmrec.serve.admin_routes import admin_router
from llmrec.serve.chat_routes import chat_router
from llmrec.serve.guard import Guard
from llmrec.serve.list_routes import list_router
from llmrec.serve.problems import ErrorBody
from llmrec.serve.server import Server
from llmrec.serve.settings import ServeSettings

_DESCRIPTION = """Recommendations from a language model that generates the next item.

Items are named by the catalogue's ids; every answer says with which version of the catalogue it was made.
`/v1/chat/completions` and `/v1/completions` are OpenAI's; point any OpenAI client here."""

_ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorBody, "description": "The request cannot be answered as it is; the message says why."},
    401: {"model": ErrorBody, "description": "The key is missing or wrong."},
    403: {"model": ErrorBody, "description": "The server has no key, so this is closed."},
    404: {"model": ErrorBody, "description": "There is no such item, model or path."},
    408: {"model": ErrorBody, "description": "The body took too long to arrive."},
    409: {"model": ErrorBody, "description": "The table does not belong to this model."},
    413: {"model": ErrorBody, "description": "The body is too large."},
    421: {"model": ErrorBody, "description": "The server does not answer under this name."},
    429: {"model": ErrorBody, "description": "Too many requests at once; see Retry-After."},
    503: {"model": ErrorBody, "description": "The server is stopping."},
    504: {"model": ErrorBody, "description": "The answer took longer than the server allows."},
}


def create_app(recommender: Recommender, settings: ServeSettings | None = None) -> FastAPI:
    """The app; `app.state.server` is its `Server`.

    Args:
        recommender: used by this app's engine alone from now on.
        settings: by default a server on loopback without a key.

    Raises:
        InputError: the settings would let other machines in without a key.
    """
    settings = settings or ServeSettings()
    settings.require_key()
    server = Server(recommender, settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await asyncio.to_thread(server.catalog.current.warm)
        server.engine.start()
        try:
            yield
        finally:
            await asyncio.to_thread(server.engine.stop, settings.limits.shutdown_seconds)

    app = FastAPI(
        title="llmrec",
        version=__version__,
        description=_DESCRIPTION,
        lifespan=lifespan,
        redoc_url=None,
        responses=_ERRORS,
        separate_input_output_schemas=False,
    )
    app.state.server = server
    for router in (list_router(server), chat_router(server), admin_router(server)):
        app.include_router(router)
    app.add_middleware(Guard, settings=settings, metrics=server.metrics)
    problems.install(app)
    app.openapi = lambda: _openapi(app, needs_key=settings.api_key is not None)  # type: ignore[method-assign]
    return app


def _openapi(app: FastAPI, *, needs_key: bool) -> dict[str, Any]:
    """FastAPI's description without its own 422, which this server answers as 400, and with the key."""
    if app.openapi_schema is None:
        schema = FastAPI.openapi(app)
        for path, methods in schema["paths"].items():
            for operation in methods.values():
                operation["responses"].pop("422", None)
                if needs_key or path.startswith("/admin"):
                    operation["security"] = [{"key": []}]
        for name in ("HTTPValidationError", "ValidationError"):
            schema["components"]["schemas"].pop(name, None)
        schema["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    return app.openapi_schema or {}
