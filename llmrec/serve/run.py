"""A server as a process: a listening socket first, then the app on it until a signal, then what runs is finished."""

from __future__ import annotations

import errno
import gc
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import uvicorn
from fastapi import FastAPI

from llmrec.errors import EnvironmentProblem, InputError
from llmrec.serve.settings import ServeSettings


def listen(settings: ServeSettings) -> tuple[socket.socket, ServeSettings]:
    """Take the port before a model is loaded for it; the settings come back with the port that was taken.

    Raises:
        InputError: there is no such address on this machine.
        EnvironmentProblem: the port is in use, or reserved.
    """
    host, port = settings.host, settings.port
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind)
    except OSError as error:
        raise InputError(f"{host} is no address: {error.strerror}", hint="--host 127.0.0.1 is this machine") from error
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a restart must not wait for old connections
    try:
        listener.bind(address)
        listener.listen(2048)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise EnvironmentProblem(
                f"Port {port} of {host} is in use.", hint="--port 0 takes a free one, or stop what listens there"
            ) from error
        if error.errno == errno.EACCES:
            raise EnvironmentProblem(
                f"Port {port} needs more rights than this user has.", hint="take one above 1023"
            ) from error
        raise InputError(
            f"This machine cannot listen on {host}: {error.strerror}", hint="--host names one of its own addresses"
        ) from error
    return listener, settings.model_copy(update={"port": listener.getsockname()[1]})


def run(app: FastAPI, settings: ServeSettings, listener: socket.socket) -> None:
    """Serve until SIGTERM or Ctrl-C, then finish what runs, in `Limits.shutdown_seconds` at most."""
    # What stands when serving begins (modules, model, catalogue) stays: a full collection that walked through it held
    # every thread for a third of a second.
    gc.collect()
    gc.freeze()
    with _own_signals():
        uvicorn.Server(_config(app, settings)).run(sockets=[listener])


@contextmanager
def in_thread(app: FastAPI, settings: ServeSettings, listener: socket.socket) -> Iterator[None]:
    """Serve from a thread of this process until the block ends."""
    server = uvicorn.Server(_config(app, settings))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="llmrec-http", daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.should_exit = True
        thread.join(settings.limits.shutdown_seconds)


def _config(app: FastAPI, settings: ServeSettings) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,  # /metrics counts; a line per request would cost more than it tells
        server_header=False,
        ws="none",
        lifespan="on",
        timeout_graceful_shutdown=round(settings.limits.shutdown_seconds),
    )


@contextmanager
def _own_signals() -> Iterator[None]:
    """uvicorn raises a signal again once it has stopped; a server that stopped as asked is no failure."""

    def done(signum: int, frame: FrameType | None) -> None:
        pass

    before = {number: signal.signal(number, done) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
