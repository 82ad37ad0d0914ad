"""A small client of the server, on the standard library alone: what ``llmrec chat`` talks through."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from llmrec.errors import EnvironmentProblem, InputError, LLMRecError


@dataclass(frozen=True)
class Chunk:
    """A piece of an answer; one with `items` is a title."""

    content: str
    items: list[dict[str, Any]] = field(default_factory=list)


class Client:
    """Talks to one server.

    Args:
        url: such as ``http://127.0.0.1:8000``, with or without ``/v1``.
        key: for servers that need one.
        timeout: seconds without a byte after which an answer is given up.

    Raises:
        InputError: at each call, what the server says against the request.
        EnvironmentProblem: at each call, that there is no server.
    """

    def __init__(self, url: str, key: str | None = None, *, timeout: float = 120.0) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        self._headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        self._timeout = timeout

    def model(self) -> dict[str, Any]:
        """What the server serves."""
        model: dict[str, Any] = self._ask("GET", "/v1/models")["data"][0]
        return model

    def find(self, title: str) -> list[dict[str, Any]]:
        """Items by id or title, best first."""
        found: list[dict[str, Any]] = self._ask("GET", f"/v1/items?find={quote(title)}")["items"]
        return found

    def recommend(self, history: list[str], k: int, *, explain: int = 0) -> dict[str, Any]:
        """A list, its first `explain` items with reasons."""
        body = {"history": history, "k": k, "explain": explain}
        answer: dict[str, Any] = self._ask("POST", "/v1/recommendations", body)
        return answer

    def chat(self, messages: list[dict[str, Any]], **options: Any) -> Iterator[Chunk]:
        """The answer as it is written."""
        body = {"model": self.model()["id"], "messages": messages, "stream": True, **options}
        with self._open("POST", "/v1/chat/completions", body) as answer:
            for line in answer:
                text = line.decode().strip()
                if not text.startswith("data: ") or text == "data: [DONE]":
                    continue
                event = json.loads(text.removeprefix("data: "))
                if "error" in event:
                    raise _problem(event)
                for choice in event["choices"]:
                    delta = choice["delta"]
                    if delta.get("content"):
                        yield Chunk(delta["content"], delta.get("items", []))

    def _ask(self, method: str, path: str, body: Any = None) -> Any:
        with self._open(method, path, body) as answer:
            return json.load(answer)

    def _open(self, method: str, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        try:
            request = urllib.request.Request(self.url + path, data, self._headers, method=method)
            return urllib.request.urlopen(request, timeout=self._timeout)
        except urllib.error.HTTPError as error:
            with error:
                text = error.read()
            try:
                raise _problem(json.loads(text)) from None
            except (ValueError, KeyError, TypeError):
                raise InputError(f"{self.url} answers {error.code} and is no llmrec server.") from error
        except (OSError, ValueError) as error:
            raise EnvironmentProblem(
                f"No server answers at {self.url}: {error}", hint="llmrec serve CHECKPOINT starts one"
            ) from error


def _problem(body: dict[str, Any]) -> LLMRecError:
    error = body["error"]
    return InputError(error["message"], hint=error.get("hint"))
