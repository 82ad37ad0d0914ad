"""`EngineLoop`: the one thread that uses the model, and the order in which it serves what waits.

Two kinds of jobs share it. *Works* run in one go, and those with equal keys run together (micro-batches); *streams*
advance in rounds, each open one by a step, what the steps read of the model together where they can. While both wait,
whichever kind has used less of the model's time goes next, so a list never waits for a whole text, nor a text for a
queue of lists. Within a kind it is first come, first served (works) and all at once (streams): a fair queue in the
sense of Demers et al., SIGCOMM 1989, with two flows.

A job whose client went away is dropped before its next step, and its stream closed. A batch that runs is not stopped.
"""

from __future__ import annotations

import logging
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, Self, TypeVar

from llmrec.errors import LLMRecError

logger = logging.getLogger("llmrec.serve")
T = TypeVar("T")


class Work(ABC, Generic[T]):
    """A job that runs in one go, alone or together with works of an equal key."""

    @property
    @abstractmethod
    def key(self) -> Hashable:
        """Works with equal keys may run together."""

    @abstractmethod
    def run(self, together: Sequence[Self]) -> list[T]:
        """The results of `together` (self among them), in their order. Called in the engine's thread."""


class Stream(Protocol):
    """A job that advances step by step, in the engine's thread."""

    @property
    def finished(self) -> bool:
        """Whether there is nothing left to do."""

    def prepare(self, together: Sequence[Self]) -> None:
        """Called before a round on one of the streams of a class, with all: their forwards may be done as one."""

    def step(self) -> list[Any]:
        """One forward's worth of work; the events it gave."""

    def close(self) -> None:
        """Free what it holds; also called before it is finished, when its client went away."""


@dataclass
class StreamJob:
    """A stream from its submission to its end."""

    open: Callable[[], Stream]
    """Makes the stream, in the engine's thread."""
    emit: Callable[[list[Any] | Exception | None], None]
    """Takes events, at last None or why it ended early. Called in the engine's thread: it must not block."""
    deadline: float
    """`time.monotonic` after which it is ended."""
    cancelled: threading.Event = field(default_factory=threading.Event)
    stream: Stream | None = None


@dataclass(frozen=True)
class _Waiting:
    work: Work[Any]
    future: Future[Any]
    deadline: float
    since: float


class Overloaded(LLMRecError):  # noqa: N818 - a state, not a fault
    """As many jobs wait as may; `retry_after` is the seconds after which to ask again."""

    def __init__(self, retry_after: float) -> None:
        super().__init__("The server has more requests than it can answer in time.", hint="ask again a little later")
        self.retry_after = retry_after


class Stopping(LLMRecError):  # noqa: N818
    """The engine takes no new jobs any more."""


class Observer(Protocol):
    """What a metrics collector may count; called in the engine's thread."""

    def ran(self, kind: str, size: int, seconds: float) -> None:
        """A batch of `size` works (``kind`` is the work's class name), or a step of each of `size` texts."""

    def dropped(self, kind: str, reason: str) -> None:
        """A job ended without a result: ``cancelled``, ``timeout``, ``stopped`` or ``error``."""


class EngineLoop:
    """Runs jobs in a thread of its own.

    Args:
        batch_size: works run together at most.
        batch_wait: seconds for which an otherwise idle engine waits for more works of a batch.
        max_pending: jobs that may wait.
        max_streams: streams that are open at once.
        observer: is told what ran.
    """

    def __init__(
        self, *, batch_size: int, batch_wait: float, max_pending: int, max_streams: int, observer: Observer
    ) -> None:
        self._batch_size, self._batch_wait = batch_size, batch_wait
        self._max_pending, self._max_streams = max_pending, max_streams
        self._observer = observer
        self._works: deque[_Waiting] = deque()
        self._new_streams: deque[StreamJob] = deque()
        self._streams: deque[StreamJob] = deque()
        self._wake = threading.Condition()
        self._stopping = False
        self._drain_until = float("inf")
        self._ahead = 0.0
        """Model seconds that works have had more than streams since both last waited."""
        self._mean_seconds = 0.05
        """Recent model seconds per job, for `Overloaded.retry_after`."""
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread; also again after `stop`."""
        self._stopping, self._drain_until = False, float("inf")
        self._thread = threading.Thread(target=self._loop, name="llmrec-engine", daemon=True)
        self._thread.start()

    def stop(self, seconds: float) -> None:
        """Take no new jobs, finish what is there within `seconds`, end the rest, and stop the thread."""
        with self._wake:
            self._stopping = True
            self._drain_until = time.monotonic() + seconds
            self._wake.notify()
        if self._thread is not None:
            self._thread.join(seconds + 5)

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs and takes jobs."""
        return self._thread is not None and self._thread.is_alive() and not self._stopping

    @property
    def num_pending(self) -> int:
        """Jobs that wait for their first turn."""
        return len(self._works) + len(self._new_streams)

    @property
    def num_streams(self) -> int:
        """Streams that are open."""
        return len(self._streams)

    def submit(self, work: Work[T], *, deadline: float = float("inf")) -> Future[T]:
        """Queue a work. Cancelling the future drops it, unless it runs already.

        Raises:
            Overloaded: too many jobs wait.
            Stopping: the engine is shutting down.
        """
        future: Future[T] = Future()
        with self._wake:
            self._admit()
            self._works.append(_Waiting(work, future, deadline, time.monotonic()))
            self._wake.notify()
        return future

    def submit_stream(self, job: StreamJob) -> None:
        """Queue a stream. Setting ``job.cancelled`` drops it before its next step. Raises as `submit` does."""
        with self._wake:
            self._admit()
            self._new_streams.append(job)
            self._wake.notify()

    def _admit(self) -> None:
        if self._stopping:
            raise Stopping("The server is shutting down.", hint="ask again when it is back")
        if self.num_pending >= self._max_pending:
            raise Overloaded(min(60.0, max(1.0, self.num_pending * self._mean_seconds)))

    # -- the thread ----------------------------------------------------------------------------------------------

    def _loop(self) -> None:
        while True:
            batch = self._next_batch()
            if batch:
                self._run(batch)
            elif self._streams:
                self._round()
            elif self._stopping:
                return

    def _next_batch(self) -> list[_Waiting]:
        """Wait for something to do; the works to run next, or none where it is a stream's turn (or the end)."""
        with self._wake:
            while not (self._works or self._streams or self._new_streams or self._stopping):
                self._wake.wait()
            if time.monotonic() > self._drain_until:
                self._give_up()
            while self._new_streams and len(self._streams) < self._max_streams:
                self._streams.append(self._new_streams.popleft())
            if not (self._works and self._streams):
                self._ahead = 0.0  # what one kind used while the other had nothing to do is no debt
            if not self._works or (self._streams and self._ahead > 0):
                return []
            self._await_company()
            return self._take()

    def _await_company(self) -> None:
        """With nothing else to do, give requests that arrive together the time to meet in one batch."""
        if self._streams:
            return
        until = self._works[0].since + self._batch_wait
        while not self._stopping and len(self._works) < self._batch_size and (left := until - time.monotonic()) > 0:
            self._wake.wait(left)

    def _take(self) -> list[_Waiting]:
        """The oldest work and those that may run with it; the others keep their order."""
        batch: list[_Waiting] = []
        others: deque[_Waiting] = deque()
        for waiting in self._works:
            if len(batch) < self._batch_size and (not batch or waiting.work.key == batch[0].work.key):
                if self._is_wanted(waiting):
                    batch.append(waiting)
            else:
                others.append(waiting)
        self._works = others
        return batch

    def _is_wanted(self, waiting: _Waiting) -> bool:
        kind = type(waiting.work).__name__
        if not waiting.future.set_running_or_notify_cancel():
            self._observer.dropped(kind, "cancelled")
            return False
        if time.monotonic() > waiting.deadline:
            waiting.future.set_exception(TimeoutError())
            self._observer.dropped(kind, "timeout")
            return False
        return True

    def _run(self, batch: list[_Waiting]) -> None:
        works = [waiting.work for waiting in batch]
        start = time.perf_counter()
        try:
            results = works[0].run(works)
        except Exception as error:
            if len(batch) > 1:  # one of them spoiled it: each on its own, so that only that one fails
                for waiting in batch:
                    self._run([waiting])
                return
            if not isinstance(error, LLMRecError):
                logger.exception("a %s failed", type(works[0]).__name__)
            self._observer.dropped(type(works[0]).__name__, "error")
            batch[0].future.set_exception(error)
            return
        seconds = time.perf_counter() - start
        self._ahead += seconds
        self._mean_seconds += 0.1 * (seconds / len(batch) - self._mean_seconds)
        self._observer.ran(type(works[0]).__name__, len(batch), seconds)
        for waiting, result in zip(batch, results, strict=True):
            waiting.future.set_result(result)

    def _round(self) -> None:
        """One step of every open stream."""
        start = time.perf_counter()
        jobs = [job for job in self._streams if self._goes_on(job)]
        self._streams = deque(job for job in jobs if self._try(job, self._open))
        self._prepare([job.stream for job in self._streams if job.stream is not None])
        self._streams = deque(job for job in self._streams if self._try(job, self._step))
        seconds = time.perf_counter() - start
        self._ahead -= seconds
        if jobs:
            self._observer.ran("step", len(jobs), seconds)

    def _prepare(self, streams: Sequence[Stream]) -> None:
        for kind in {type(stream) for stream in streams}:
            alike = [stream for stream in streams if type(stream) is kind]
            if len(alike) > 1:
                try:
                    alike[0].prepare(alike)
                except Exception:
                    logger.exception("%d texts could not be read together", len(alike))  # each then reads alone

    def _goes_on(self, job: StreamJob) -> bool:
        """Whether the client is still there and in time."""
        if job.cancelled.is_set():
            self._end(job, None, "cancelled")
        elif time.monotonic() > job.deadline:
            self._end(job, TimeoutError(), "timeout")
        else:
            return True
        return False

    def _open(self, job: StreamJob) -> bool:
        if job.stream is None:
            job.stream = job.open()
        return True

    def _step(self, job: StreamJob) -> bool:
        """Whether there is more to come."""
        assert job.stream is not None
        events = job.stream.step()
        if events:
            job.emit(events)
        if job.stream.finished:
            self._end(job, None, "")
            return False
        return True

    def _try(self, job: StreamJob, part: Callable[[StreamJob], bool]) -> bool:
        """Do a part of a job; a job that fails is ended, and it alone."""
        try:
            return part(job)
        except Exception as error:
            if not isinstance(error, LLMRecError):
                logger.exception("a text failed")
            self._end(job, error, "error")
            return False

    def _end(self, job: StreamJob, last: Exception | None, reason: str) -> None:
        if job.stream is not None:
            job.stream.close()
            job.stream = None
        if reason:
            self._observer.dropped("text", reason)
        job.emit(last)

    def _give_up(self) -> None:
        """The time to finish is over: end everything that is left. Called with the lock held."""
        ended = Stopping("The server was shut down before this was done.", hint="ask again when it is back")
        for waiting in self._works:
            if waiting.future.set_running_or_notify_cancel():
                waiting.future.set_exception(ended)
                self._observer.dropped(type(waiting.work).__name__, "stopped")
        for job in (*self._streams, *self._new_streams):
            self._end(job, ended, "stopped")
        self._works.clear()
        self._streams.clear()
        self._new_streams.clear()
