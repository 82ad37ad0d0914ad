"""`Server`: what the routes share, and how a handler waits for the engine without outliving its client."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from starlette.requests import Request

from llmrec.recommender import Recommender
from llmrec.serve.catalog import ServedCatalog
from llmrec.serve.engine import EngineLoop, Stream, StreamJob, Work
from llmrec.serve.metrics import Metrics
from llmrec.serve.problems import ApiProblem
from llmrec.serve.settings import ServeSettings

T = TypeVar("T")


class Server:
    """One model, its catalogue, its engine and its metrics."""

    def __init__(self, recommender: Recommender, settings: ServeSettings) -> None:
        self.settings = settings
        self.limits = settings.limits
        self.metrics = Metrics()
        self.catalog = ServedCatalog(recommender)
        self.engine = EngineLoop(
            batch_size=settings.batch_size,
            batch_wait=settings.batch_wait_ms / 1000,
            max_pending=settings.limits.pending,
            max_streams=settings.limits.streams,
            observer=self.metrics,
        )
        self.metrics.gauge("llmrec_jobs_pending", "Jobs that wait for the model", lambda: self.engine.num_pending)
        self.metrics.gauge("llmrec_streams", "Texts being written", lambda: self.engine.num_streams)
        self.metrics.gauge("llmrec_catalog_items", "Items that may be recommended", self._num_items)
        self.metrics.gauge("llmrec_catalog_versions", "Versions in use", lambda: self.catalog.num_versions)

    def deadline(self) -> float:
        """When a request that came now must have its answer, as `time.monotonic`."""
        return time.monotonic() + self.limits.request_seconds

    async def run(self, request: Request, work: Work[T]) -> T:
        """Have the engine do `work`; drop it when the client leaves or the time is over.

        Raises:
            ApiProblem: the client left.
            TimeoutError: the time is over.
            LLMRecError: as the work raises, or as `EngineLoop.submit` does.
        """
        future = self.engine.submit(work, deadline=self.deadline())
        return await while_connected(request, asyncio.wrap_future(future), self.limits.request_seconds)

    async def follow(self, request: Request, opened: Sequence[Callable[[], Stream]]) -> list[Any]:
        """Have the engine run streams of one event each, step by step beside everything else; their events in order.

        All of them are dropped when the client leaves or the time is over.

        Args:
            request: who waits.
            opened: make the streams, in the engine's thread.

        Raises:
            ApiProblem: the client left.
            TimeoutError: the time is over.
            LLMRecError: as a stream raises, or as `EngineLoop.submit_stream` does.
        """
        jobs = []
        try:
            answers = []
            for one in opened:
                job, answer = _awaited(one, self.deadline())
                self.engine.submit_stream(job)
                jobs.append(job)
                answers.append(answer)
            return await while_connected(request, asyncio.gather(*answers), self.limits.request_seconds)
        finally:
            for job in jobs:
                job.cancelled.set()

    def require_at_most(self, name: str, given: int, limit: int) -> None:
        """Refuse more than the server allows of something that costs time or memory."""
        if given > limit:
            raise ApiProblem(400, f"{name}: {given} is more than this server's limit of {limit}.", param=name)

    def require_lengths(self, **given: Sequence[str] | None) -> None:
        """The same for lists of items, whose limit is the history's or that of other lists."""
        for name, items in given.items():
            limit = self.limits.history if name == "history" else self.limits.items
            if items is not None and len(items) > limit:
                raise ApiProblem(
                    400, f"{name}: {len(items)} items are more than this server's limit of {limit}.", param=name
                )

    def _num_items(self) -> float:
        return self.catalog.current.num_items


def _awaited(opened: Callable[[], Stream], deadline: float) -> tuple[StreamJob, asyncio.Future[Any]]:
    """A stream's job, and what its first event or its fault will settle."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[Any] = loop.create_future()

    def settle(update: list[Any] | Exception | None) -> None:
        if answer.done():
            return
        if isinstance(update, list):
            answer.set_result(update[0])
        elif update is not None:
            answer.set_exception(update)

    def emit(update: list[Any] | Exception | None) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, update)

    return StreamJob(opened, emit, deadline), answer


async def while_connected(request: Request, awaited: Awaitable[T], seconds: float) -> T:
    """What `awaited` gives. It is cancelled once the client is gone (ApiProblem) or the time over (TimeoutError)."""
    work = asyncio.ensure_future(awaited)
    gone = asyncio.ensure_future(_disconnected(request))
    both: list[asyncio.Future[Any]] = [work, gone]
    try:
        done, _ = await asyncio.wait(both, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if work in done:
            return work.result()
        if gone in done:
            raise ApiProblem(499, "The client left before its answer.")
        raise TimeoutError
    finally:
        gone.cancel()
        work.cancel()  # harmless where it is done; else the engine drops it


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
