"""A generated text on its way to a client: tokens and items become content with item references.

The engine's stream gives `Said`, `Named` and at last `Ended`; `AnswerText` turns them into stretches of content, keeps
back what may become a stop text, and writes items as titles: ``content[start:end]`` is the title.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

import numpy as np

from llmrec.serve.catalog import CatalogVersion
from llmrec.serve.engine import Stream, StreamJob
from llmrec.serve.openai_schemas import FinishReason, ItemReference


@dataclass(frozen=True)
class TextRequest:
    """What to write, and how."""

    version: CatalogVersion
    prompt: np.ndarray
    """(length,) int64 token ids."""
    max_new_tokens: int
    temperature: float
    """0 takes the most probable token."""
    top_p: float
    seed: int
    exclude: tuple[str, ...] = ()
    """Items that may not be named."""
    repeat_items: bool = False
    """Whether an item may be named again."""


@dataclass(frozen=True)
class Said:
    """Words."""

    text: str
    num_tokens: int = 1


@dataclass(frozen=True)
class Named:
    """An item, at the end of its search."""

    item_id: str
    score: float
    """Log-probability of its SID where it stands."""
    ids: tuple[int, ...]
    """Its SID's tokens."""


@dataclass(frozen=True)
class Ended:
    """The end, by the model's own end of turn or by the budget."""

    reason: FinishReason


TextEvent = Said | Named | Ended


@dataclass(frozen=True)
class Stretch:
    """A piece of content; one with `items` is a title alone."""

    content: str
    items: tuple[ItemReference, ...] = ()
    finish_reason: FinishReason | None = None
    """Set in the last one."""


class AnswerText:
    """Builds the content of one answer.

    Args:
        version: gives titles and SIDs.
        stops: texts before which the answer ends.
    """

    def __init__(self, version: CatalogVersion, stops: Sequence[str] = ()) -> None:
        self._titles = version.recommender.titles
        self._table = version.recommender.checkpoint.table
        self._stops = tuple(stops)
        self._held = ""
        self._last = ""
        """The last character written, or "item" behind a title."""
        self._length = 0
        self.num_tokens = 0

    def add(self, event: TextEvent) -> list[Stretch]:
        """The content that `event` brings; the last stretch of an answer has a finish reason."""
        if isinstance(event, Said):
            self.num_tokens += event.num_tokens
            return self._say(event.text)
        rest = self._flush()
        if isinstance(event, Named):
            self.num_tokens += len(event.ids)
            return [*rest, *self._name(event)]
        return [*rest, Stretch("", finish_reason=event.reason)]

    def _say(self, text: str) -> list[Stretch]:
        self._held += text
        found = [place for stop in self._stops if (place := self._held.find(stop)) >= 0]
        if found:
            self._held = self._held[: min(found)]
            return [*self._flush(), Stretch("", finish_reason="stop")]
        keep = max((_overlap(self._held, stop) for stop in self._stops), default=0)
        ready, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return self._write(ready)

    def _flush(self) -> list[Stretch]:
        ready, self._held = self._held, ""
        return self._write(ready)

    def _write(self, text: str) -> list[Stretch]:
        if not text:
            return []
        # A SID needs no space around it, a title does.
        if self._last == "item" and text[0].isalnum():
            text = " " + text
        self._length += len(text)
        self._last = text[-1]
        return [Stretch(text)]

    def _name(self, event: Named) -> list[Stretch]:
        gap = ", " if self._last == "item" else " " if self._last.isalnum() or self._last in (":", ",", ".") else ""
        gap = gap if self._last else ""
        before = self._write_gap(gap)
        title = self._titles.title(event.item_id)
        start = self._length
        self._length += len(title)
        self._last = "item"
        reference = ItemReference(
            item_id=event.item_id,
            title=title,
            sid=self._table.text(event.item_id),
            score=event.score,
            start=start,
            end=self._length,
        )
        return [*before, Stretch(title, (reference,))]

    def _write_gap(self, gap: str) -> list[Stretch]:
        self._length += len(gap)
        return [Stretch(gap)] if gap else []


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    return next((size for size in range(min(len(stop) - 1, len(text)), 0, -1) if stop.startswith(text[-size:])), 0)


class TextHandle:
    """A text as its handler sees it: an asynchronous iterator of events that frees the engine when it is left."""

    def __init__(self, open_stream: Callable[[], Stream], deadline: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._updates: asyncio.Queue[list[TextEvent] | Exception | None] = asyncio.Queue()
        self.job = StreamJob(open_stream, self._emit, deadline)

    def cancel(self) -> None:
        """Have the engine drop the text before its next step; harmless when it has ended."""
        self.job.cancelled.set()

    async def events(self) -> AsyncIterator[TextEvent]:
        """Events until the end. Raises what ended the text early."""
        try:
            while (update := await self._updates.get()) is not None:
                if isinstance(update, Exception):
                    raise update
                for event in update:
                    yield event
        finally:
            self.cancel()

    def _emit(self, update: list[TextEvent] | Exception | None) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._updates.put_nowait, update)
