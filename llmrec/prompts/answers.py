"""Reading answers: token ids or text become items and words.

An answer of ids is exact. An answer of text is what people and chat clients send; there ``<a_12><b_7>`` names an item.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from llmrec.sid_vocab.table import SIDTable

if TYPE_CHECKING:
    from llmrec.prompts.codec import SegmentCodec

Answer = str | Sequence[int] | np.ndarray
"""Token ids as generated (cut at the first special token), or text."""


@dataclass(frozen=True)
class Part:
    """A stretch of an answer: words, or one SID."""

    text: str
    is_sid: bool = False
    item_ids: tuple[str, ...] = ()
    """Of a SID: its items, in table order. Empty for a SID that no item has and for an incomplete one."""


class AnswerReader:
    """Reads answers against one SID table."""

    def __init__(self, codec: SegmentCodec, table: SIDTable) -> None:
        self._codec = codec
        self._table = table
        self._code_of = {
            int(token_id): (level, code)
            for level, ids in enumerate(table.token_ids or ())
            for code, token_id in enumerate(ids)
        }

    def parts(self, answer: Answer) -> tuple[Part, ...]:
        """The answer's words and SIDs in order."""
        return self._parts_of_text(answer) if isinstance(answer, str) else self._parts_of_ids(answer)

    def items(self, answer: Answer) -> tuple[tuple[str, ...], ...]:
        """For each SID of the answer the items that have it: several where items share one, none where none has it."""
        return tuple(part.item_ids for part in self.parts(answer) if part.is_sid)

    def first_items(self, answer: Answer) -> tuple[str, ...]:
        """The items of the answer's first SID; ``()`` without one."""
        found = self.items(answer)
        return found[0] if found else ()

    def text(self, answer: Answer) -> str:
        """The answer as people read it, SIDs by their token names, without space around it."""
        return "".join(part.text for part in self.parts(answer)).strip()

    def _parts_of_ids(self, answer: Sequence[int] | np.ndarray) -> tuple[Part, ...]:
        ids = self._codec.until_stop([int(token_id) for token_id in answer])
        parts = []
        start = 0
        while start < len(ids):
            end = start + 1
            if ids[start] in self._code_of:
                while end < len(ids) and end - start < self._table.num_levels and self._continues(ids, start, end):
                    end += 1
                parts.append(self._sid(tuple(self._code_of[token_id] for token_id in ids[start:end])))
            else:
                while end < len(ids) and ids[end] not in self._code_of:
                    end += 1
                parts.append(Part(self._codec.decode(ids[start:end])))
            start = end
        return tuple(parts)

    def _continues(self, ids: list[int], start: int, end: int) -> bool:
        level, _ = self._code_of.get(ids[end], (-1, -1))
        return level == self._code_of[ids[start]][0] + end - start

    def _sid(self, codes: tuple[tuple[int, int], ...]) -> Part:
        text = "".join(self._table.token(level, code) for level, code in codes)
        complete = len(codes) == self._table.num_levels
        rows = self._table.buckets().get(tuple(code for _, code in codes), ()) if complete else ()
        return Part(text, True, tuple(self._table.item_ids[row] for row in rows))

    def _parts_of_text(self, answer: str) -> tuple[Part, ...]:
        parts = []
        rest = answer
        for codes in self._table.parse(answer):
            sid = self._sid(tuple(enumerate(codes)))
            before, found, after = rest.partition(sid.text)
            if not found:  # written with a space between its tokens
                spaced = sid.text.replace("><", "> <")
                before, found, after = rest.partition(spaced)
            if before:
                parts.append(Part(before))
            parts.append(sid)
            rest = after
        return (*parts, Part(rest)) if rest else tuple(parts)
