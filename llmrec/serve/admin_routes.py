"""`/health`, `/metrics` and `/admin/catalog`: for those who run the server."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from fastapi import APIRouter, Request, Response

from llmrec.serve.schemas import Health, SwapAnswer, SwapRequest
from llmrec.serve.server import Server
from llmrec.serve.works import ListSettings, ListWork


def admin_router(server: Server) -> APIRouter:
    """The routes over `server`."""
    router = APIRouter()
    swapping = asyncio.Lock()

    @router.get("/health", tags=["operate"], summary="Whether the server can answer")
    async def health(response: Response) -> Health:
        alive = server.engine.is_alive
        response.status_code = 200 if alive else 503
        return Health(
            status="ok" if alive else "stopping",
            catalog_version=server.catalog.current.id,
            pending=server.engine.num_pending,
            streams=server.engine.num_streams,
        )

    @router.get(
        "/metrics",
        tags=["operate"],
        summary="Metrics for Prometheus",
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    )
    async def metrics() -> Response:
        return Response(server.metrics.text(), media_type="text/plain; version=0.0.4")

    @router.post("/admin/catalog", tags=["operate"], summary="Recommend from a newer SID table")
    async def swap(request: Request, body: SwapRequest) -> SwapAnswer:
        start = time.perf_counter()
        async with swapping:
            previous = server.catalog.current
            version = await asyncio.to_thread(server.catalog.prepare, Path(body.table))
            await asyncio.to_thread(version.warm)
            # The first list of a version gathers what its search needs; here, and not in a client's request.
            await server.run(request, ListWork(version, ListSettings(1, "beam", None, True), 1, ()))
            server.catalog.publish(version)
        server.metrics.swaps.inc()
        return SwapAnswer(
            catalog_version=version.id,
            previous=previous.id,
            number=version.number,
            num_items=version.num_items,
            seconds=time.perf_counter() - start,
        )

    return router
