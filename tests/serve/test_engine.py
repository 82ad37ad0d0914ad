"""The engine's thread: batching, fairness, cancellation, deadlines, bounds and shutdown, without a model."""

import threading
import time
from concurrent.futures import CancelledError
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest

from llmrec.errors import InputError
from llmrec.serve.engine import EngineLoop, Overloaded, Stopping, StreamJob, Work


class Log:
    """An observer and the order of what ran."""

    def __init__(self):
        self.order, self.batches, self.lost = [], [], []

    def ran(self, kind, size, seconds):
        self.order.append(kind)
        if kind != "step":
            self.batches.append(size)

    def dropped(self, kind, reason):
        self.lost.append((kind, reason))


@dataclass(frozen=True, eq=False)
class Echo(Work[int]):
    value: int
    name: str = "a"
    gate: threading.Event | None = None
    started: threading.Event = field(default_factory=threading.Event)

    @property
    def key(self):
        return self.name

    def run(self, together):
        self.started.set()
        if self.gate is not None:
            assert self.gate.wait(10)
        if any(work.value < 0 for work in together):
            raise InputError("negative")
        if any(work.value == 99 for work in together):
            raise RuntimeError("a bug")
        return [work.value * 10 for work in together]


class Counting:
    def __init__(self, steps, seconds=0.0, gate=None):
        self.left, self.seconds, self.closed, self.gate = steps, seconds, 0, gate

    @property
    def finished(self):
        return self.left == 0

    def prepare(self, together):
        assert len(together) > 1

    def step(self):
        if self.gate is not None:
            assert self.gate.wait(10)
        time.sleep(self.seconds)
        self.left -= 1
        return [self.left]

    def close(self):
        self.closed += 1


class Collected:
    """A stream job and what it emitted."""

    def __init__(self, stream, deadline=float("inf")):
        self.events, self.last, self.done = [], None, threading.Event()
        self.job = StreamJob(lambda: stream, self.take, deadline)

    def take(self, events):
        if isinstance(events, list):
            self.events += events
        else:
            self.last = events
            self.done.set()


@pytest.fixture
def engine():
    made = []

    def make(**changes):
        log = Log()
        options = {"batch_size": 4, "batch_wait": 0.0, "max_pending": 100, "max_streams": 3, **changes}
        loop = EngineLoop(observer=log, **options)
        loop.start()
        made.append(loop)
        return loop, log

    yield make
    for loop in made:
        loop.stop(5)


def blocked(loop):
    """Occupies the engine until the returned gate is set."""
    gate = threading.Event()
    work = Echo(0, "gate", gate)
    future = loop.submit(work)
    assert work.started.wait(10)
    return gate, future


def test_works_of_equal_key_share_a_batch_and_others_keep_their_turn(engine):
    loop, log = engine()
    gate, _ = blocked(loop)
    futures = [loop.submit(Echo(i, "ab"[i % 2])) for i in range(10)]
    gate.set()
    assert [future.result(10) for future in futures] == [10 * i for i in range(10)]
    assert log.batches == [1, 4, 4, 1, 1]


def test_a_work_that_fails_takes_no_other_along_and_the_thread_lives_on(engine):
    loop, log = engine()
    gate, _ = blocked(loop)
    futures = [loop.submit(Echo(i)) for i in (1, -1, 99, 2)]
    gate.set()
    assert (futures[0].result(10), futures[3].result(10)) == (10, 20)
    with pytest.raises(InputError, match="negative"):
        futures[1].result(10)
    with pytest.raises(RuntimeError, match="a bug"):
        futures[2].result(10)
    assert loop.submit(Echo(5)).result(10) == 50
    assert sorted(log.lost) == [("Echo", "error")] * 2


def test_cancelled_and_late_works_are_dropped_unrun(engine):
    loop, log = engine()
    gate, _ = blocked(loop)
    gone, late, kept = loop.submit(Echo(1)), loop.submit(Echo(2), deadline=time.monotonic()), loop.submit(Echo(3))
    assert gone.cancel()
    gate.set()
    assert kept.result(10) == 30
    with pytest.raises(TimeoutError):
        late.result(10)
    with pytest.raises(CancelledError):
        gone.result(10)
    assert log.lost == [("Echo", "cancelled"), ("Echo", "timeout")]
    assert log.batches == [1, 1]


def test_lists_and_texts_take_turns_by_the_time_they_use(engine, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(
        "llmrec.serve.engine.time", SimpleNamespace(perf_counter=lambda: clock[0], monotonic=time.monotonic)
    )
    loop, log = engine(batch_size=1)

    class Step(Counting):
        def step(self):
            clock[0] += 2
            return super().step()

    @dataclass(frozen=True, eq=False)
    class List(Echo):
        def run(self, together):
            clock[0] += 10
            return [0]

    gate, _ = blocked(loop)
    texts = [Collected(Step(30)) for _ in range(2)]
    for text in texts:
        loop.submit_stream(text.job)
    works = [loop.submit(List(i)) for i in range(6)]
    gate.set()
    for future in works:
        future.result(10)
    for text in texts:
        assert text.done.wait(10)
        assert text.events == list(range(29, -1, -1))
        assert text.last is None
    # Ten units of a list to four of a round of both texts: two or three rounds between lists (twelve units against ten,
    # what is too much counts for the next turn); never a whole text, never none.
    order = "".join("L" if kind == "List" else "s" for kind in log.order if kind != "Echo")
    assert order == "L" + "sssLssL" * 2 + "sssL" + "s" * 17


def test_open_texts_are_prepared_together_and_go_on_alone_where_that_fails(engine):
    loop, log = engine()
    sizes = []

    class Joint(Counting):
        def prepare(self, together):
            sizes.append(len(together))
            raise RuntimeError("no memory")

    gate, _ = blocked(loop)
    texts = [Collected(Joint(left)) for left in (2, 4, 4)]
    for text in texts:
        loop.submit_stream(text.job)
    gate.set()
    assert all(text.done.wait(10) for text in texts)
    assert [text.last for text in texts] == [None] * 3
    assert [text.events[-1] for text in texts] == [0, 0, 0]
    assert sizes == [3, 3, 2, 2]
    assert log.lost == []


def test_a_cancelled_text_is_closed_before_its_next_step(engine):
    loop, log = engine()
    gate = threading.Event()
    stream = Counting(1000, gate=gate)
    text = Collected(stream)
    loop.submit_stream(text.job)
    text.job.cancelled.set()
    gate.set()
    assert text.done.wait(10)
    assert stream.left >= 999
    assert stream.closed == 1 or stream.left == 1000
    assert loop.num_streams == 0
    assert log.lost == [("text", "cancelled")]


def test_texts_end_at_their_deadline_and_by_their_own_faults_alone(engine):
    loop, log = engine()
    late = Collected(Counting(10_000, seconds=0.001), deadline=time.monotonic() + 0.05)

    class Broken(Counting):
        def step(self):
            raise RuntimeError("a bug")

    broken = Collected(Broken(3))
    fine = Collected(Counting(3))
    for text in (late, broken, fine):
        loop.submit_stream(text.job)
    assert all(text.done.wait(10) for text in (late, broken, fine))
    assert isinstance(late.last, TimeoutError)
    assert isinstance(broken.last, RuntimeError)
    assert fine.last is None
    assert sorted(log.lost) == [("text", "error"), ("text", "timeout")]


def test_more_texts_than_may_be_open_wait_their_turn(engine):
    loop, _ = engine(max_streams=2)
    most = []

    class Watched(Counting):
        def step(self):
            most.append(loop.num_streams)
            return super().step()

    texts = [Collected(Watched(5)) for _ in range(6)]
    for text in texts:
        loop.submit_stream(text.job)
    assert all(text.done.wait(10) for text in texts)
    assert max(most) <= 2


def test_a_full_queue_says_when_to_come_back(engine):
    loop, _ = engine(max_pending=3)
    gate, _ = blocked(loop)
    futures = [loop.submit(Echo(i)) for i in range(3)]
    with pytest.raises(Overloaded) as refused:
        loop.submit(Echo(4))
    assert 1 <= refused.value.retry_after <= 60
    with pytest.raises(Overloaded):
        loop.submit_stream(Collected(Counting(1)).job)
    gate.set()
    assert [future.result(10) for future in futures] == [0, 10, 20]


def test_stopping_finishes_what_is_there_and_takes_nothing_new(engine):
    loop, _ = engine()
    gate, first = blocked(loop)
    second, text = loop.submit(Echo(2)), Collected(Counting(50, seconds=0.001))
    loop.submit_stream(text.job)
    stopper = threading.Thread(target=loop.stop, args=(10,))
    stopper.start()
    while loop.is_alive:
        time.sleep(0.001)
    with pytest.raises(Stopping):
        loop.submit(Echo(3))
    gate.set()
    stopper.join(10)
    assert (first.result(0), second.result(0)) == (0, 20)
    assert text.done.is_set()
    assert text.last is None
    assert len(text.events) == 50


def test_what_cannot_finish_in_time_is_told_so(engine):
    loop, log = engine()
    stream = Counting(10**6, seconds=0.001)
    text = Collected(stream)
    loop.submit_stream(text.job)
    loop.stop(0.05)
    assert text.done.is_set()
    assert isinstance(text.last, Stopping)
    assert stream.closed == 1
    assert log.lost == [("text", "stopped")]
