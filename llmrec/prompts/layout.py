"""From a template and typed values to segments and ids: the part of rendering that knows tokenizers and templates.

A row is laid out once per task, phrasing and pattern of present values (`RowBuilder.layout`), then filled per example.
Literals are instructions; values are text or SIDs; what a chat template adds by itself are role markers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from llmrec.errors import InputError
from llmrec.prompts.chat import chat_skeleton
from llmrec.prompts.codec import SegmentCodec
from llmrec.prompts.segments import Rendered, Segment, SegmentKind
from llmrec.prompts.task import Prefix, Value
from llmrec.prompts.templates import Phrasing, Piece, TemplateSet, compile_text
from llmrec.sid_vocab.table import SIDTable

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Slot:
    """A piece of a row before its values are known; `of_answer` pieces carry loss and are left out of prompts."""

    piece: Piece
    kind: SegmentKind
    of_answer: bool


class RowBuilder:
    """Lays out and fills rows with one tokenizer, one SID table and one set of templates.

    Attributes:
        codec: text and role markers to ids.
        sids: (n_items, num_levels) int64 token ids of every item's SID.
        rows: item id to row of the table.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, table: SIDTable, templates: TemplateSet) -> None:
        self.sids = table.sid_token_ids()
        self.rows: Mapping[str, int] = {item_id: row for row, item_id in enumerate(table.item_ids)}
        self.codec = SegmentCodec(tokenizer, _check_token_ids(tokenizer, table))
        self._tokenizer = tokenizer
        self._table = table
        self._token_ids = table.token_ids or ()
        self._templates = templates
        self._layouts: dict[tuple[str, int, frozenset[str]], tuple[Slot, ...]] = {}

    def layout(self, task: str, choice: int, present: frozenset[str]) -> tuple[Slot, ...]:
        """The pieces of a task's phrasing number `choice`; `present` names the variables with a value."""
        key = (task, choice, present)
        if key not in self._layouts:
            template = self._templates.tasks[task]
            kind = self._templates.kinds[task]
            found = {name: name in present for name in kind.prompt_variables | kind.answer_variables}
            phrasing = template.phrasings[choice]
            if kind.thinks:
                self._layouts[key] = tuple(self._thought_layout(phrasing, template.closing or "", found))
            elif template.form == "chat":
                self._layouts[key] = tuple(self._chat_layout(phrasing, found))
            else:
                end = [] if kind.sid_answer else [self._end()]  # SIDs have a fixed length and need no end
                prompt = self._pieces(phrasing.prompt, found, False)
                self._layouts[key] = (*prompt, *self._pieces(phrasing.answer, found, True), *end)
        return self._layouts[key]

    def _thought_layout(self, phrasing: Phrasing, closing: str, present: Mapping[str, bool]) -> list[Slot]:
        """The serving form, and behind it what a thought adds; markers are pieces, and so segments, of their own."""
        header = self._templates.tasks["behaviour"].phrasings[0].prompt
        return [
            *self._pieces(header, {}, False),
            Slot(Piece(variable="history"), SegmentKind.INSTRUCTION, False),
            *self._pieces(phrasing.prompt, present, False),
            *self._pieces(phrasing.answer, present, True),
            Slot(Piece(literal=closing), SegmentKind.INSTRUCTION, True),
            Slot(Piece(variable="item"), SegmentKind.INSTRUCTION, True),
        ]

    def _chat_layout(self, phrasing: Phrasing, present: Mapping[str, bool]) -> list[Slot]:
        fallback = None if self._tokenizer.chat_template else self._templates.chat_fallback
        skeleton = chat_skeleton(self._tokenizer, with_system=phrasing.system is not None, fallback=fallback)
        slots: list[Slot] = []
        contents = {"system": phrasing.system or "", "user": phrasing.prompt}
        for piece in skeleton.before:
            if piece.variable:
                slots += self._pieces(contents[piece.variable], present, False)
            else:
                slots.append(Slot(piece, SegmentKind.ROLE, False))
        slots += self._pieces(phrasing.answer, present, True)
        if (end := self.codec.split_after_marker(skeleton.after)) is None:
            return [*slots, self._end()]
        return [*slots, Slot(Piece(literal=end[0]), SegmentKind.ROLE, True)]

    def _end(self) -> Slot:
        if not self.codec.eos_token:
            raise InputError(
                "The tokenizer has no EOS token, and an answer of words needs an end.", hint="set tokenizer.eos_token"
            )
        return Slot(Piece(literal=self.codec.eos_token), SegmentKind.ROLE, True)

    def _pieces(self, source: str, present: Mapping[str, bool], of_answer: bool) -> list[Slot]:
        pieces = compile_text(source, present)
        return [Slot(piece, SegmentKind.INSTRUCTION, of_answer) for piece in pieces]

    def fill(
        self,
        slots: Sequence[Slot],
        values: Mapping[str, Value],
        prefixes: Mapping[str, Prefix] = MappingProxyType({}),
        *,
        with_answer: bool,
    ) -> list[Segment]:
        """Segments of a row: BOS where needed, values in their places, spaces where tokens hold them."""
        segments: list[Segment] = []
        for slot in slots:
            if slot.of_answer and not with_answer:
                break
            if not slot.piece.variable:
                segments.append(Segment(slot.kind, slot.piece.literal, target=slot.of_answer))
                continue
            if slot.piece.variable in prefixes:
                segments.append(self._prefix_segment(prefixes[slot.piece.variable], slot.of_answer))
                continue
            value = values[slot.piece.variable]
            if isinstance(value, tuple):
                if missing := [item_id for item_id in value if item_id not in self.rows]:
                    raise InputError(f"The item {missing[0]!r} has no SID in this table.")
                segments.append(self.sid_segment(value, slot.of_answer))
            else:
                segments.append(Segment(SegmentKind.TEXT, value, target=slot.of_answer))
        segments = _move_spaces([segment for segment in segments if segment.text])
        chat_bos = bool(self._tokenizer.chat_template) and segments and segments[0].kind is SegmentKind.ROLE
        if segments and segments[0].kind in (SegmentKind.INSTRUCTION, SegmentKind.TEXT):
            segments[0] = replace(segments[0], text=self.codec.prefix + segments[0].text)
        if self.codec.bos_ids and not chat_bos:
            segments.insert(0, Segment(SegmentKind.ROLE, self._bos_text()))
        return segments

    def encode(self, segment: Segment) -> Sequence[int]:
        """A segment's ids by the rules of its kind."""
        if segment.codes:
            return [int(self._token_ids[level][code]) for level, code in enumerate(segment.codes)]
        if segment.kind is SegmentKind.SID:
            rows = [self.rows[item_id] for item_id in segment.item_ids]
            return [int(token_id) for token_id in self.sids[rows].ravel()]
        return self.codec.role(segment.text) if segment.kind is SegmentKind.ROLE else self.codec.text(segment.text)

    def assemble(
        self, segments: Sequence[Segment], encoded: Sequence[Sequence[int]], truncated: int, skipped: int
    ) -> Rendered:
        """One row from segments and the ids of each."""
        lengths = [len(ids) for ids in encoded]
        levels = [
            np.arange(length) % self._table.num_levels if segment.kind is SegmentKind.SID else np.full(length, -1)
            for segment, length in zip(segments, lengths, strict=True)
        ]
        return Rendered(
            input_ids=np.array([token_id for ids in encoded for token_id in ids], np.int64),
            target=np.repeat(np.array([segment.target for segment in segments], bool), lengths),
            sid_level=np.concatenate([np.zeros(0), *levels]).astype(np.int8),
            segments=tuple(segments),
            truncated_items=truncated,
            skipped_items=skipped,
        )

    def sid_segment(self, item_ids: tuple[str, ...], target: bool) -> Segment:
        """A segment of items, all of which have a SID."""
        text = "".join(self._table.text(item_id) for item_id in item_ids)
        return Segment(SegmentKind.SID, text, item_ids, target)

    def _prefix_segment(self, prefix: Prefix, target: bool) -> Segment:
        if prefix.item_id not in self.rows:
            raise InputError(f"The item {prefix.item_id!r} has no SID in this table.")
        if not 1 <= prefix.depth < self._table.num_levels:
            raise InputError(
                f"A prefix of {prefix.depth} levels was asked for; SIDs have {self._table.num_levels}, and a prefix "
                "at least one and not all of them.",
                hint="set the task's prefix_depth accordingly",
            )
        codes = tuple(self._table.codes[self.rows[prefix.item_id], : prefix.depth].tolist())
        text = "".join(self._table.token(level, code) for level, code in enumerate(codes))
        return Segment(SegmentKind.SID, text, target=target, codes=codes)

    def _bos_text(self) -> str:
        return "".join(self._tokenizer.convert_ids_to_tokens(list(self.codec.bos_ids)))


def _move_spaces(segments: list[Segment]) -> list[Segment]:
    """Give the space between words and a value to the value: "called" + " The River", as tokens hold leading spaces."""
    for left, right in zip(range(len(segments)), range(1, len(segments)), strict=False):
        words, value = segments[left], segments[right]
        if words.target == value.target and (words.kind, value.kind) == (SegmentKind.INSTRUCTION, SegmentKind.TEXT):
            bare = words.text.removesuffix(" ")
            segments[left] = replace(words, text=bare)
            segments[right] = replace(value, text=words.text[len(bare) :] + value.text)
    return [segment for segment in segments if segment.text]


def _check_token_ids(tokenizer: PreTrainedTokenizerBase, table: SIDTable) -> list[str]:
    """The SID tokens' spellings, after checking that the tokenizer has them where the table says."""
    names = [table.token(level, code) for level, size in enumerate(table.codebook_sizes) for code in range(size)]
    expected = [int(token_id) for ids in table.token_ids or () for token_id in ids]
    vocabulary = tokenizer.get_added_vocab()
    for name, token_id in zip(names, expected, strict=True):
        if vocabulary.get(name) != token_id:
            raise InputError(
                f"The tokenizer has {name} as {vocabulary.get(name)}, the SID table as {token_id}.",
                hint="use the tokenizer and the table of one checkpoint, or extend the tokenizer again",
            )
    return names
