"""Benchmark ``serve``: a real server process under mixed load, judged answer by answer.

A small random model is served on one thread. Its capacity is measured with clients that ask as fast as they are
answered; then requests come at 60 % of it for ten minutes (``--quick``: 40 seconds): lists, scores, items and streaming
chats, five per cent malformed, some clients leaving early, and every 20 seconds another version of the catalogue. Then:

- every answer equals the one that the same checkpoint gives offline with the table version that the answer names
  (scores to 1e-3, ranks up to ties; texts to the letter), and none is lost;
- the server's memory is what it was after warm-up, and nothing is left behind by those who left;
- per endpoint the slowest per cent takes at most four times the median.

What the runner calls ours and theirs are two figures of this one run. Run it on a machine that does nothing else.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from llmrec.bench.runner import Case
from llmrec.bench.serve_load import Got, Kind, Tally, closed_loop, draw, fixed_rate, pools
from llmrec.errors import EnvironmentProblem

if TYPE_CHECKING:
    import httpx

    from llmrec.bench.serve_world import World
    from llmrec.serve.catalog import CatalogVersion

LOAD = 0.6
"""Share of the capacity at which latencies are measured."""
CLIENTS = 32
ENDPOINTS: tuple[Kind, ...] = ("lists", "scores", "items", "chats")
_KEY = "bench-serve-admin-key"


@dataclass(frozen=True)
class Plan:
    """How long each part takes, in seconds."""

    capacity: float
    load: float
    swap_every: float


FULL, QUICK = Plan(capacity=20, load=600, swap_every=20), Plan(capacity=5, load=40, swap_every=8)


@dataclass(frozen=True)
class Measured:
    """One run."""

    serial: float
    """Requests a second with one client."""
    capacity: float
    """Requests a second with `CLIENTS` clients."""
    tally: Tally
    rss: list[float]
    """Of the server, in MB, once a second."""
    left_behind: float
    """Jobs and texts in the engine once every client has left."""
    swaps: int
    equal: int
    """Answers that equal the offline ones."""
    compared: int


def cases(quick: bool) -> list[Case]:
    """All of them judge one run."""
    needed = ("fastapi", "uvicorn", "prometheus_client", "httpx")
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    skip = f"{', '.join(missing)} missing: pip install 'llmrec[serve]' httpx" if missing else ""
    plan = QUICK if quick else FULL

    def case(name: str, unit: str, ours: Callable[[Measured], float], theirs: Callable[[Measured], float]) -> Case:
        return Case(name, unit, lambda: ours(run(plan)), lambda: theirs(run(plan)), skip)

    def latency(kind: Kind, share: float) -> Callable[[Measured], float]:
        return lambda found: 1000 * float(np.quantile(_seconds(found.tally, kind), share))

    return [
        case("capacity", "requests/s", lambda found: found.capacity, lambda found: found.serial),
        case("answered", "requests", _answered, lambda found: found.tally.asked - found.tally.cancelled),
        case("equal to offline", "answers", lambda found: found.equal, lambda found: found.compared),
        case("malformed", "4xx", _refused, lambda found: len(_of(found.tally, "malformed"))),
        case("memory", "MB", lambda found: _third(found.rss, -1), lambda found: _third(found.rss, 0)),
        case("left behind", "jobs + 1", lambda found: found.left_behind + 1, lambda found: 1.0),
        *(case(f"{kind}, p99 / p50", "ms", latency(kind, 0.99), latency(kind, 0.5)) for kind in ENDPOINTS),
    ]


@cache
def run(plan: Plan) -> Measured:
    """Serve, load, stop, and compare."""
    from llmrec.bench.serve_world import make_world

    with tempfile.TemporaryDirectory(prefix="llmrec-bench-") as folder:
        world = make_world(Path(folder))
        process, url = _start(world.checkpoint)
        with process:  # waits for its end, closes its output
            try:
                found = asyncio.run(_load(plan, world, url, process.pid))
            finally:
                process.terminate()
        equal, compared = _compare(found.tally, world)
    return Measured(**{**vars(found), "equal": equal, "compared": compared})


def _start(checkpoint: Path) -> tuple[subprocess.Popen[str], str]:
    environment = {**os.environ, "LLMREC_ADMIN_KEY": _KEY, "OMP_NUM_THREADS": "1"}
    words = ["-m", "llmrec", "serve", str(checkpoint), "--port", "0", "--threads", "1"]
    process = subprocess.Popen([sys.executable, *words], stdout=subprocess.PIPE, text=True, env=environment)
    line = process.stdout.readline() if process.stdout else ""
    if " at http" not in line:
        process.kill()
        process.wait()
        raise EnvironmentProblem("The server did not start.", hint="its error stands above")
    return process, line.split(" at ")[1].split()[0]


async def _load(plan: Plan, world: World, url: str, pid: int) -> Measured:
    import httpx
    import psutil

    from llmrec.bench.serve_world import NUM_ITEMS

    pool = pools(NUM_ITEMS)
    server = psutil.Process(pid)
    rss: list[float] = []
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=200)
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as http:
        asks = draw(pool, 5000, seed=1)
        await closed_loop(http, asks, CLIENTS, plan.capacity / 2)  # first uses: allocations, caches
        serial = await closed_loop(http, asks, 1, plan.capacity / 2)
        capacity = await closed_loop(http, asks, CLIENTS, plan.capacity)
        rate = LOAD * capacity
        swapper = asyncio.create_task(_swap(http, world, plan.swap_every))
        try:
            tally = await fixed_rate(
                http,
                draw(pool, int(rate * plan.load), seed=2),
                rate,
                lambda: rss.append(server.memory_info().rss / 1e6),
            )
        finally:
            swapper.cancel()
        swaps = int(await _metric(http, "llmrec_catalog_swaps_total"))
        left = await _left_behind(http)
    return Measured(serial, capacity, tally, rss, left, swaps, 0, 0)


async def _swap(http: httpx.AsyncClient, world: World, every: float) -> None:
    turn = 0
    while True:
        await asyncio.sleep(every)
        table = (world.newer, world.checkpoint)[turn % 2]
        answer = await http.post(
            "/admin/catalog", json={"table": str(table)}, headers={"Authorization": f"Bearer {_KEY}"}
        )
        answer.raise_for_status()
        turn += 1


async def _left_behind(http: httpx.AsyncClient) -> float:
    """Jobs and texts that stay; those of clients that left a moment ago have a second to go."""
    until = time.perf_counter() + 1
    while True:
        left = await _metric(http, "llmrec_jobs_pending") + await _metric(http, "llmrec_streams")
        if not left or time.perf_counter() > until:
            return left
        await asyncio.sleep(0.1)


async def _metric(http: httpx.AsyncClient, name: str) -> float:
    lines = (await http.get("/metrics")).text.splitlines()
    return next(float(line.split()[-1]) for line in lines if line.split()[0] == name)


# -- judging -----------------------------------------------------------------------------------------------------


def _of(tally: Tally, kind: Kind) -> list[Got]:
    return [got for got in tally.got if got.ask.kind == kind]


def _seconds(tally: Tally, kind: Kind) -> list[float]:
    return [got.seconds for got in _of(tally, kind)] or [float("nan")]


def _answered(found: Measured) -> float:
    return sum(got.status == 200 or (got.ask.kind == "malformed" and got.status < 500) for got in found.tally.got)


def _refused(found: Measured) -> float:
    return sum(400 <= got.status < 500 for got in _of(found.tally, "malformed"))


def _third(values: list[float], which: int) -> float:
    """The median of the first or last third behind a warm-up of a tenth."""
    warm = values[len(values) // 10 :]
    size = max(1, len(warm) // 3)
    return median(warm[:size] if which == 0 else warm[-size:])


def _compare(tally: Tally, world: World) -> tuple[int, int]:
    """How many answers equal the offline ones, and how many were compared: all but the malformed."""
    from llmrec.recommender import Recommender
    from llmrec.serve.catalog import CatalogVersion, ServedCatalog

    first = CatalogVersion(1, Recommender.load(world.checkpoint), 0.0)
    newer = ServedCatalog(first.recommender).prepare(world.newer)
    versions = {version.id: version for version in (first, newer)}
    expected: dict[tuple[Kind, int, str], Any] = {}
    equal = compared = 0
    for got in tally.got:
        if got.ask.kind == "malformed" or got.status != 200:
            continue
        compared += 1
        key = (got.ask.kind, got.ask.number, got.version)
        if key not in expected:
            expected[key] = _offline(versions[got.version], got)
        equal += _same(got, expected[key])
    return equal, compared


def _offline(version: CatalogVersion, got: Got) -> Any:
    recommender = version.recommender
    body = got.ask.body or {}
    if got.ask.kind == "lists":
        found = recommender.recommend(body["history"], body["k"], exclude=body["exclude"])
        return [(item.item_id, item.score) for item in found]
    if got.ask.kind == "scores":
        return recommender.score(body["history"], body["items"])
    if got.ask.kind == "items":
        return recommender.titles.title(got.answer["item_id"])
    return offline_chat(version, body)


def offline_chat(version: CatalogVersion, body: dict[str, Any]) -> str:
    """The content that a chat request gets without a server."""
    from llmrec.serve.conversation import chat_prompt
    from llmrec.serve.openai_schemas import ChatRequest
    from llmrec.serve.text import AnswerText, TextRequest
    from llmrec.serve.text_stream import open_text

    request = ChatRequest(**body)
    checkpoint = version.recommender.checkpoint
    prompt = chat_prompt(checkpoint.renderer, checkpoint.tokenizer, [message.turn() for message in request.messages])
    stream = open_text(
        TextRequest(version, prompt, request.max_tokens or 1, request.temperature, request.top_p, request.seed or 0)
    )
    text, content = AnswerText(version), ""
    while not stream.finished:
        content += "".join(stretch.content for event in stream.step() for stretch in text.add(event))
    return content


def _same(got: Got, expected: Any) -> bool:
    if got.ask.kind == "lists":
        found = [(item["item_id"], item["score"]) for item in got.answer["items"]]
        if len(found) != len(expected):
            return False
        near = np.allclose([score for _, score in found], [score for _, score in expected], atol=1e-3)
        scores = dict(expected)
        ties = [
            mine == theirs or abs(scores.get(mine, score) - score) < 1e-4
            for (mine, _), (theirs, score) in zip(found, expected, strict=True)
        ]
        return bool(near and all(ties))
    if got.ask.kind == "scores":
        return bool(np.allclose([one["score"] for one in got.answer["scores"]], expected, atol=1e-3))
    if got.ask.kind == "items":
        return bool(got.answer["title"] == expected)
    return bool(got.answer == expected)
