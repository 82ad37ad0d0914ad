"""`/v1/chat/completions` and `/v1/completions`: OpenAI's endpoints, with items as titles and references."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack
from typing import Any, Literal

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from llmrec.serve.catalog import CatalogVersion
from llmrec.serve.conversation import Words, chat_prompt, text_prompt
from llmrec.serve.openai_schemas import (
    ChatAnswer,
    ChatAnswerMessage,
    ChatChoice,
    ChatRequest,
    CompletionAnswer,
    CompletionChoice,
    CompletionRequest,
    Generation,
    Usage,
)
from llmrec.serve.problems import ApiProblem, problem_of
from llmrec.serve.server import Server, while_connected
from llmrec.serve.text import AnswerText, Stretch, TextHandle, TextRequest
from llmrec.serve.text_stream import open_text

Kind = Literal["chat.completion", "text_completion"]
_DEFAULT_NEW_TOKENS = 256
_STREAMED: dict[int | str, dict[str, Any]] = {
    200: {
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
        "description": "The answer, or with `stream` its chunks as server-sent events",
    }
}


def chat_router(server: Server) -> APIRouter:
    """The routes over `server`."""
    router = APIRouter(prefix="/v1", tags=["OpenAI"])

    @router.post("/chat/completions", summary="Chat", response_model=ChatAnswer, responses=_STREAMED)
    async def chat(request: Request, body: ChatRequest) -> Any:
        with ExitStack() as held:
            version = held.enter_context(server.catalog.use())
            checkpoint = version.recommender.checkpoint
            turns = [message.turn() for message in body.messages]
            prompt = chat_prompt(checkpoint.renderer, checkpoint.tokenizer, turns)
            wanted = body.max_completion_tokens or body.max_tokens
            return await _answer(server, request, body, "chat.completion", version, prompt, wanted, held)

    @router.post("/completions", summary="Go on from a text", response_model=CompletionAnswer, responses=_STREAMED)
    async def complete(request: Request, body: CompletionRequest) -> Any:
        with ExitStack() as held:
            version = held.enter_context(server.catalog.use())
            prompt = text_prompt(version.recommender.checkpoint.renderer, [Words(body.prompt)])
            return await _answer(server, request, body, "text_completion", version, prompt, body.max_tokens, held)

    return router


async def _answer(
    server: Server,
    request: Request,
    body: Generation,
    kind: Kind,
    version: CatalogVersion,
    prompt: np.ndarray,
    wanted: int | None,
    held: ExitStack,
) -> Any:
    """The answer; a streamed one takes over what is `held` until its end."""
    if body.model != server.settings.name:
        raise ApiProblem(
            404,
            f"There is no model {body.model!r} here.",
            hint=f"this server has {server.settings.name!r}",
            param="model",
            code="model_not_found",
        )
    server.require_lengths(exclude=body.exclude)
    text = TextRequest(
        version=version,
        prompt=prompt,
        max_new_tokens=_budget(server, version, len(prompt), wanted),
        temperature=body.temperature,
        top_p=body.top_p,
        seed=secrets.randbits(63) if body.seed is None else body.seed,
        exclude=tuple(body.exclude),
    )
    handle = TextHandle(lambda: open_text(text), server.deadline())
    server.engine.submit_stream(handle.job)
    writer = _Writer(server, body, kind, version, len(prompt))
    stretches = writer.stretches(handle)
    if body.stream:
        return _Chunks(writer.chunks(stretches), handle, held.pop_all())
    try:
        return await while_connected(request, writer.whole(stretches), server.limits.request_seconds)
    finally:
        handle.cancel()


class _Chunks(StreamingResponse):
    """Server-sent events that free the engine and the catalogue's version however they end."""

    def __init__(self, chunks: AsyncIterator[str], handle: TextHandle, held: ExitStack) -> None:
        super().__init__(chunks, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self._handle, self._held = handle, held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send them; a client that leaves cancels this call."""
        with self._held:
            try:
                await super().__call__(scope, receive, send)
            finally:
                self._handle.cancel()


def _budget(server: Server, version: CatalogVersion, prompt_tokens: int, wanted: int | None) -> int:
    """Tokens that may be written."""
    if wanted is not None:
        server.require_at_most("max_tokens", wanted, server.limits.new_tokens)
    context = int(version.recommender.model.config.get_text_config().max_position_embeddings)
    room = context - prompt_tokens
    if room < (wanted or 1):
        raise ApiProblem(
            400,
            f"The model reads {context} tokens; the prompt has {prompt_tokens} and {wanted or 1} are to be written.",
            hint="send fewer or shorter messages, or lower max_tokens",
            code="context_length_exceeded",
        )
    return min(room, server.limits.new_tokens, _DEFAULT_NEW_TOKENS) if wanted is None else wanted


class _Writer:
    """Writes one answer, whole or in chunks."""

    def __init__(self, server: Server, body: Generation, kind: Kind, version: CatalogVersion, prompt: int) -> None:
        self._server, self._body, self._kind, self._version = server, body, kind, version
        self._text = AnswerText(version, body.stops)
        self._prompt_tokens = prompt
        self._head: dict[str, Any] = {
            "id": ("chatcmpl-" if kind == "chat.completion" else "cmpl-") + secrets.token_hex(12),
            "created": int(time.time()),
            "model": body.model,
            "catalog_version": version.id,
        }

    async def stretches(self, handle: TextHandle) -> AsyncIterator[Stretch]:
        """Content as it comes; the last stretch has a finish reason."""
        try:
            async for event in handle.events():
                for stretch in self._text.add(event):
                    yield stretch
                    if stretch.finish_reason:
                        return
        finally:
            handle.cancel()
            self._server.metrics.tokens.inc(self._text.num_tokens)

    async def whole(self, stretches: AsyncIterator[Stretch]) -> ChatAnswer | CompletionAnswer:
        """The answer at once."""
        found = [stretch async for stretch in stretches]
        content = "".join(stretch.content for stretch in found)
        items = [item for stretch in found for item in stretch.items]
        reason = found[-1].finish_reason or "stop"
        self._server.metrics.items.inc(len(items))
        if self._kind == "chat.completion":
            choice = ChatChoice(message=ChatAnswerMessage(content=content, items=items), finish_reason=reason)
            return ChatAnswer(**self._head, choices=[choice], usage=self._usage())
        done = CompletionChoice(text=content, items=items, finish_reason=reason)
        return CompletionAnswer(**self._head, choices=[done], usage=self._usage())

    async def chunks(self, stretches: AsyncIterator[Stretch]) -> AsyncIterator[str]:
        """Server-sent events. What goes wrong once they have begun is the last of them."""
        try:
            if self._kind == "chat.completion":
                yield self._event([{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}])
            async for stretch in stretches:
                self._server.metrics.items.inc(len(stretch.items))
                yield self._event([self._choice(stretch)])
            if self._body.stream_options and self._body.stream_options.include_usage:
                yield self._event([], usage=self._usage().model_dump())
            yield "data: [DONE]\n\n"
        except Exception as error:  # noqa: BLE001 - the status is sent: the error can only be told in the stream
            yield f"data: {json.dumps(problem_of(error).body)}\n\n"

    def _choice(self, stretch: Stretch) -> dict[str, Any]:
        items = {"items": [item.model_dump() for item in stretch.items]} if stretch.items else {}
        if self._kind == "text_completion":
            return {"index": 0, "text": stretch.content, **items, "finish_reason": stretch.finish_reason}
        delta = {"content": stretch.content, **items} if stretch.content else {}
        return {"index": 0, "delta": delta, "finish_reason": stretch.finish_reason}

    def _event(self, choices: list[dict[str, Any]], **more: Any) -> str:
        kind = "chat.completion.chunk" if self._kind == "chat.completion" else self._kind
        return f"data: {json.dumps({**self._head, 'object': kind, 'choices': choices, **more}, ensure_ascii=False)}\n\n"

    def _usage(self) -> Usage:
        written = self._text.num_tokens
        return Usage(
            prompt_tokens=self._prompt_tokens,
            completion_tokens=written,
            total_tokens=self._prompt_tokens + written,
        )
