"""From the search's text streams to the engine's: tokens become words once their characters are whole, rows ids."""

from __future__ import annotations

from collections.abc import Sequence

from llmrec.decode import text as decode_text
from llmrec.decode.joint_read import read_together
from llmrec.prompts.codec import SegmentCodec
from llmrec.serve.engine import Stream
from llmrec.serve.text import Ended, Named, Said, TextEvent, TextRequest

_LONGEST_CHARACTER = 8
"""Byte-level tokens that may wait for the rest of a character; what is still no character then never will be."""


class WordReader:
    """Turns token ids into text without cutting a character in two."""

    def __init__(self, codec: SegmentCodec) -> None:
        self._codec = codec
        self._waiting: list[int] = []

    def read(self, ids: tuple[int, ...]) -> Said | None:
        """The words that `ids` complete; None where a character is not whole yet."""
        self._waiting += ids
        if self._codec.decode(self._waiting).endswith("\ufffd") and len(self._waiting) < _LONGEST_CHARACTER:
            return None
        return self.rest()

    def rest(self) -> Said | None:
        """What still waits, whole or not."""
        if not self._waiting:
            return None
        said = Said(self._codec.decode(self._waiting), len(self._waiting))
        self._waiting = []
        return said


class ServedText:
    """A `decode.text.TextStream` as the engine runs it (a `Stream`)."""

    def __init__(self, request: TextRequest) -> None:
        recommender = request.version.recommender
        self._table = recommender.checkpoint.table
        searcher = recommender.searcher(recommender.checkpoint.card.serving.normalise)
        rows = [self._table.row(item_id) for item_id in request.exclude if recommender.knows_any([item_id])]
        tokenizer = recommender.checkpoint.tokenizer
        self._words = WordReader(recommender.renderer.codec)
        self._stream = decode_text.TextStream(
            searcher,
            request.prompt,
            stop_ids=tokenizer.all_special_ids,
            settings=decode_text.TextSettings(
                max_new_tokens=request.max_new_tokens,
                temperature=request.temperature,
                top_p=request.top_p,
                seed=request.seed,
                repeat_items=request.repeat_items,
            ),
            allowed=searcher.trie.exclusion(rows) if rows else None,
        )

    @property
    def finished(self) -> bool:
        """Whether the text is at its end."""
        return self._stream.finished

    def prepare(self, together: Sequence[ServedText]) -> None:
        """Read the words of all of them in one forward."""
        read_together([text._stream for text in together])

    def step(self) -> list[TextEvent]:
        """Go on by at most one forward."""
        events: list[TextEvent] = []
        for event in self._stream.step():
            if isinstance(event, decode_text.TextToken):
                said = self._words.read(event.ids)
                events += [said] if said else []
                continue
            rest = self._words.rest()
            events += [rest] if rest else []
            if isinstance(event, decode_text.NamedItem):
                events.append(Named(self._table.item_ids[event.row], event.score, event.ids))
            else:
                events.append(Ended("stop" if event.reason == "stop" else "length"))
        return events

    def close(self) -> None:
        """Free keys and values."""
        self._stream.close()


def open_text(request: TextRequest) -> Stream:
    """Read the prompt; called in the engine's thread."""
    return ServedText(request)
