"""What every request passes before the app sees it: address, key, number, size; and what is counted of it.

Pure ASGI, so that a client's disconnection reaches the handlers. The body is read here, up to its limit and within its
time, and handed on in one piece: nothing that is too large is ever parsed.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from llmrec.serve.metrics import Metrics
from llmrec.serve.problems import ApiProblem
from llmrec.serve.settings import ServeSettings, is_loopback

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN_PATHS = frozenset({"/health", "/docs", "/openapi.json"})
"""Answered without a key: they tell nothing about items or users."""


class Guard:
    """Middleware that refuses what must not reach the app, and counts what does."""

    def __init__(self, app: App, settings: ServeSettings, metrics: Metrics) -> None:
        self._app = app
        self._settings = settings
        self._metrics = metrics
        self._inside = 0
        metrics.gauge("llmrec_requests_inside", "Requests being answered", lambda: self._inside)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one ASGI call."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start = time.perf_counter()
        status = 499  # what is counted where the client left before any answer

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        self._inside += 1
        try:
            try:
                headers = {name.lower(): value for name, value in scope["headers"]}
                self._check(scope["path"], headers)
                body = await self._read(headers, receive)
            except ApiProblem as problem:
                # The rest of an unread body would be taken for the next request.
                await problem.response()(scope, receive, counted)
                return
            if body is not None:
                await self._app(scope, _replay(body, receive), counted)
        finally:
            self._inside -= 1
            route = scope.get("route")
            endpoint = "other" if route is None else str(route.path)
            self._metrics.request(endpoint, status, time.perf_counter() - start)

    def _check(self, path: str, headers: dict[bytes, bytes]) -> None:
        settings = self._settings
        if settings.api_key is None and is_loopback(settings.host):
            # A web page may point a name of its own at 127.0.0.1 and so ask from the user's browser (DNS rebinding).
            host = headers.get(b"host", b"").decode("latin-1").lower()
            if not is_loopback(re.sub(r":\d*$", "", host).strip("[]")):
                raise ApiProblem(421, f"This server answers at {settings.url} only.", code="wrong_host")
        if path in OPEN_PATHS:
            return
        if self._inside > settings.limits.connections:
            raise ApiProblem(
                429,
                f"More than {settings.limits.connections} requests at once.",
                hint="ask again a little later",
                code="overloaded",
                headers={"Retry-After": "1"},
            )
        if path.startswith("/admin"):
            key = settings.admin_key or settings.api_key
            if key is None:
                raise ApiProblem(
                    403, "The server was started without a key, so /admin is closed.", hint="set LLMREC_ADMIN_KEY"
                )
        else:
            key = settings.api_key
        if key is not None:
            _require(key.get_secret_value(), headers.get(b"authorization", b""))

    async def _read(self, headers: dict[bytes, bytes], receive: Receive) -> bytes | None:
        """The body; None where the client left."""
        limits = self._settings.limits
        length = headers.get(b"content-length", b"0")
        too_large = ApiProblem(
            413, f"The body is larger than {limits.body_bytes:,} bytes.", code="body_too_large", headers=_CLOSE
        )
        if not length.isdigit() or int(length[:20]) > limits.body_bytes:
            raise too_large
        body = bytearray()
        try:
            async with asyncio.timeout(limits.read_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    body += message.get("body", b"")
                    if len(body) > limits.body_bytes:
                        raise too_large
                    if not message.get("more_body", False):
                        return bytes(body)
        except TimeoutError:
            raise ApiProblem(
                408, f"The body did not arrive within {limits.read_seconds:g} s.", headers=_CLOSE
            ) from None


_CLOSE = {"Connection": "close"}


def _require(key: str, authorization: bytes) -> None:
    scheme, _, given = authorization.partition(b" ")
    # The comparison takes the same time wherever the two differ, so it does not tell how much was right.
    if scheme.lower() != b"bearer" or not secrets.compare_digest(given.strip(), key.encode()):
        raise ApiProblem(
            401,
            "The key is missing or wrong.",
            hint="send the header Authorization: Bearer KEY",
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )


def _replay(body: bytes, receive: Receive) -> Receive:
    """Gives the body once, then what the server says (a disconnection)."""
    given = False

    async def replayed() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replayed
