"""Servers over a tiny checkpoint, in process: ASGI calls, no sockets."""

import asyncio
from contextlib import asynccontextmanager

import httpx
import pytest

from llmrec.recommender import Recommender
from llmrec.serve.app import create_app
from llmrec.serve.settings import ServeSettings
from llmrec.testing.checkpoints import tiny_parts


@pytest.fixture(scope="session")
def served_parts():
    return tiny_parts()


@pytest.fixture(scope="session")
def served_checkpoint(served_parts, tmp_path_factory):
    recipe = {"seed": 0, "cpt": {"tasks": {"behaviour": {}, "think": {}}}}  # or /docs shows an example that fails
    return served_parts.write(tmp_path_factory.mktemp("served") / "tiny", recipe=recipe)


@pytest.fixture(scope="session")
def recommender(served_checkpoint):
    return Recommender.load(served_checkpoint.folder, dtype="float32")


@asynccontextmanager
async def running(recommender, settings=None, **client):
    """A client of a started app; `client.app` is the app, `client.server` its parts."""
    app = create_app(recommender, settings or ServeSettings())
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", **client) as http:
            http.app, http.server = app, app.state.server
            yield http


@pytest.fixture
def serve(recommender):
    """``serve(test, settings)`` runs the coroutine ``test(client)`` against a server."""

    def run(test, settings=None, **client):
        async def whole():
            async with running(recommender, settings, **client) as http:
                return await test(http)

        return asyncio.run(whole())

    return run
