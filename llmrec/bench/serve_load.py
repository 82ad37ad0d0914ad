"""The clients of ``bench serve``: mixed requests at a fixed rate, some of them malformed, some cancelled."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    import httpx

Kind = Literal["lists", "scores", "items", "chats", "malformed"]
MIX: dict[Kind, float] = {"lists": 0.65, "scores": 0.10, "items": 0.10, "chats": 0.10, "malformed": 0.05}
CANCELLED = 0.04
"""Share of lists and chats whose client leaves early."""
NEW_TOKENS = 16
_MALFORMED: tuple[tuple[str, bytes], ...] = (
    ("/v1/recommendations", b'{"history": ["1"'),
    ("/v1/recommendations", b'{"history": [], "k": 0}'),
    ("/v1/recommendations", b'{"history": [], "k": 1000000000}'),
    ("/v1/recommendations", b'{"history": ["no such item"]}'),
    ("/v1/recommendations", json.dumps({"history": ["1"] * 100_000}).encode()),
    ("/v1/score", b'{"items": ["no such item"]}'),
    ("/v1/chat/completions", b'{"model": "another", "messages": [{"role": "user", "content": "x"}]}'),
    ("/v1/chat/completions", b'{"messages": 7}'),
)
_JSON = {"Content-Type": "application/json"}


@dataclass(frozen=True)
class Ask:
    """A request: `number` tells which of its kind's pool it is."""

    kind: Kind
    number: int
    path: str
    body: dict[str, Any] | None = None
    raw: bytes = b""


@dataclass(frozen=True)
class Got:
    """An answer and how long it took."""

    ask: Ask
    status: int
    seconds: float
    version: str = ""
    answer: Any = None


@dataclass
class Tally:
    """What came of all requests."""

    asked: int = 0
    cancelled: int = 0
    got: list[Got] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    """Requests without an answer, and why."""


def pools(num_items: int, seed: int = 0) -> dict[Kind, list[Ask]]:
    """The requests to choose from; few enough that each can be answered offline too."""
    rng = np.random.default_rng(seed)

    def some(low: int, high: int) -> list[str]:
        return [str(item) for item in rng.integers(0, num_items, int(rng.integers(low, high)))]

    lists = [{"history": some(1, 31), "k": int(rng.choice([5, 10, 20])), "exclude": some(0, 3)} for _ in range(150)]
    scores = [{"history": some(1, 31), "items": some(10, 50)} for _ in range(30)]
    chats = [
        {
            "model": "served",
            "stream": True,
            "max_tokens": NEW_TOKENS,
            "temperature": 1.0,
            "seed": number,
            "messages": [
                {"role": "user", "content": [{"type": "item", "item_id": item} for item in some(3, 4)]},
                {"role": "assistant", "content": "I see."},
                {"role": "user", "content": "What comes next?"},
            ],
        }
        for number in range(20)
    ]
    return {
        "lists": [Ask("lists", n, "/v1/recommendations", body) for n, body in enumerate(lists)],
        "scores": [Ask("scores", n, "/v1/score", body) for n, body in enumerate(scores)],
        "items": [Ask("items", n, f"/v1/items/{n * 7}") for n in range(100)],
        "chats": [Ask("chats", n, "/v1/chat/completions", body) for n, body in enumerate(chats)],
        "malformed": [Ask("malformed", n, path, raw=raw) for n, (path, raw) in enumerate(_MALFORMED)],
    }


def draw(pool: dict[Kind, list[Ask]], count: int, seed: int) -> list[Ask]:
    """`count` requests in the proportions of `MIX`."""
    rng = np.random.default_rng(seed)
    kinds = rng.choice(len(MIX), count, p=list(MIX.values()))
    chosen = [pool[list(MIX)[kind]] for kind in kinds.tolist()]
    return [asks[int(rng.integers(len(asks)))] for asks in chosen]


async def send(http: httpx.AsyncClient, ask: Ask, due: float) -> Got:
    """Ask once; `due` is when (`time.perf_counter`) the request was to be sent."""
    if ask.kind == "chats":
        return await _stream(http, ask, due)
    if ask.kind == "items":
        answer = await http.get(ask.path)
    elif ask.kind == "malformed":
        answer = await http.post(ask.path, content=ask.raw, headers=_JSON)
    else:
        answer = await http.post(ask.path, json=ask.body)
    seconds = time.perf_counter() - due
    body = answer.json()
    return Got(ask, answer.status_code, seconds, body.get("catalog_version", ""), body)


async def _stream(http: httpx.AsyncClient, ask: Ask, due: float) -> Got:
    content, version, done = "", "", False
    async with http.stream("POST", ask.path, json=ask.body) as answer:
        async for line in answer.aiter_lines():
            if line == "data: [DONE]":
                done = True
            elif line.startswith("data: "):
                event = json.loads(line[6:])
                version = event.get("catalog_version", "")
                content += "".join(choice["delta"].get("content", "") for choice in event.get("choices", []))
    # A stream that breaks off, or ends in an error event, is no answer.
    return Got(ask, answer.status_code if done else 599, time.perf_counter() - due, version, content)


async def closed_loop(http: httpx.AsyncClient, asks: Sequence[Ask], clients: int, seconds: float) -> float:
    """Requests a second when `clients` clients ask again as soon as they are answered."""
    start = time.perf_counter()
    done = 0

    async def client(number: int) -> None:
        nonlocal done
        place = number
        while time.perf_counter() - start < seconds:
            await send(http, asks[place % len(asks)], time.perf_counter())
            done += 1
            place += clients

    await asyncio.gather(*(client(number) for number in range(clients)))
    return done / (time.perf_counter() - start)


async def fixed_rate(
    http: httpx.AsyncClient, asks: Sequence[Ask], rate: float, every: Callable[[], None], seed: int = 0
) -> Tally:
    """Send `asks` at `rate` a second whatever the answers take; `every` is called once a second.

    Latencies count from the moment a request was due, so that a server that stalls is charged for those who waited.
    """
    rng = np.random.default_rng(seed)
    tally = Tally()
    tasks: set[asyncio.Task[None]] = set()

    async def one(ask: Ask, due: float, leave: float | None) -> None:
        try:
            async with asyncio.timeout(leave):
                tally.got.append(await send(http, ask, due))
        except TimeoutError:
            tally.cancelled += 1
        except Exception as error:  # noqa: BLE001 - whatever it was, the request is lost, and counted as that
            tally.lost.append(f"{ask.kind}: {type(error).__name__}: {error}")

    start = time.perf_counter()
    ticks = 0
    for number, ask in enumerate(asks):
        due = start + number / rate
        while (now := time.perf_counter()) < due:
            await asyncio.sleep(due - now)
        if now - start > ticks:
            ticks += 1
            every()
        leaves = ask.kind in ("lists", "chats") and rng.random() < CANCELLED
        tally.asked += 1
        task = asyncio.create_task(one(ask, due, float(rng.uniform(0, 0.05)) if leaves else None))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    await asyncio.gather(*tasks)
    return tally
