"""The one renderer: tasks, templates and items become token ids with a loss mask.

Every training row, rollout, evaluation and served prompt comes from `Renderer`, so one history gives the same ids
everywhere. Values are placed as typed segments (`SegmentKind`), each tokenised on its own: SIDs are ids of the table
and never pass through strings, and item or user text cannot become a control token.

Two forms. A behaviour sequence (`Renderer.sequence`) is the serving form: BOS if the tokenizer adds one, a short
header, then SIDs back to back; what the model continues is the next item's SID. Everything else is `Renderer.render`: plain
text, or a chat in the tokenizer's own chat template. The chat template is applied to markers, never to content; what it
adds by itself (SmolLM2's default system message, empty ``<think>`` blocks) stays as the checkpoint was trained with it,
and dates are fixed to `CHAT_DATE`, so that a row is the same tomorrow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from llmrec.errors import InputError
from llmrec.prompts.answers import AnswerReader
from llmrec.prompts.chat import chat_skeleton
from llmrec.prompts.codec import SegmentCodec
from llmrec.prompts.segments import Rendered, Segment, SegmentKind
from llmrec.prompts.task import Example, Value, chunks, hash_number
from llmrec.prompts.templates import Phrasing, Piece, TemplateSet, compile_text
from llmrec.sid_vocab.table import SIDTable

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Targets = Literal["all", "last", "none"]


@dataclass(frozen=True)
class _Slot:
    """A piece of a row before its values are known; `of_answer` pieces are left out of prompts and carry loss."""

    piece: Piece
    kind: SegmentKind
    of_answer: bool


class Renderer:
    """Renders with one tokenizer, one SID table and one set of templates.

    Attributes:
        table: the SID table whose tokens the tokenizer holds.
        templates: the templates in use.
        reader: reads answers back (`Task.parse`).
        codec: text and role markers to ids.

    Raises:
        InputError: the table has no token ids, they are not the tokenizer's, or the tokenizer is a slow one.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, table: SIDTable, templates: TemplateSet) -> None:
        self.table = table
        self.templates = templates
        self._sids = table.sid_token_ids()
        self._rows = {item_id: row for row, item_id in enumerate(table.item_ids)}
        self._tokenizer = tokenizer
        names = _check_token_ids(tokenizer, table)
        self.codec = SegmentCodec(tokenizer, names)
        self.reader = AnswerReader(self.codec, table)
        self._slots: dict[tuple[str, int, frozenset[str]], tuple[_Slot, ...]] = {}
        slots = self._layout("behaviour", 0, frozenset({"items"}))
        self._header = tuple(self._fill(slots, {"items": ()}, with_answer=False))
        self._prefix = np.array([i for s in self._header for i in self._encode(s)], np.int64)
        if not len(self._prefix):
            raise InputError(
                "The serving prompt is empty: the tokenizer adds no BOS and behaviour.yaml has no header.",
                hint="give behaviour.yaml a prompt of a word or two",
            )

    # -- behaviour sequences: the serving form --------------------------------------------------------------------

    @property
    def prefix_ids(self) -> np.ndarray:
        """(prefix length,) int64: BOS if the tokenizer adds one, and the header; what every sequence begins with."""
        return self._prefix.copy()

    def sequence(
        self,
        item_ids: Sequence[str],
        *,
        window: int | None = None,
        targets: Targets = "none",
        max_length: int | None = None,
    ) -> Rendered:
        """Render a history, oldest item first. ``targets="none"`` is the prompt that evaluation and serving use.

        Args:
            item_ids: items without a SID in the table are skipped and counted.
            window: items kept, the most recent ones; targets are among them.
            targets: ``"all"`` items carry loss, the ``"last"`` one, or ``"none"``. With ``"all"``, items that `window` or
                `max_length` cuts off are no targets of this row: `sequence_rows` gives them rows of their own.
            max_length: tokens a row may have; the oldest items go first.

        Raises:
            InputError: `max_length` has no room for a single item, or a target has no SID.
        """
        if targets == "last" and item_ids and item_ids[-1] not in self._rows:
            raise InputError(f"The target {item_ids[-1]!r} has no SID in this table.")
        known = [item_id for item_id in item_ids if item_id in self._rows]
        kept = known[-window:] if window else known
        room = len(kept) if max_length is None else self.room(max_length)
        kept = kept[max(0, len(kept) - room) :]
        first = {"all": 0, "last": len(kept) - 1, "none": len(kept)}[targets]
        return self._sequence(kept, first, truncated=len(known) - len(kept), skipped=len(item_ids) - len(known))

    def sequence_rows(
        self, item_ids: Sequence[str], *, window: int, context: int = 0, max_length: int | None = None
    ) -> list[Rendered]:
        """Cut a history into rows, oldest first, so that every item with a SID is a target in exactly one of them.

        Args:
            item_ids: oldest first; skipped items are counted in the last row.
            window: items a row, at most.
            context: items before a row's targets that it repeats without loss, where there are any.
            max_length: tokens a row may have; a smaller window where `window` items would not fit.

        Raises:
            InputError: a row has no room for one target behind its context.
        """
        if max_length is not None:
            window = min(window, self.room(max_length))
        if not 0 <= context < window:
            raise InputError(
                f"context ({context} items) leaves no room for a target in a window of {window} items",
                hint="lower context, or raise window or max_length",
            )
        known = [item_id for item_id in item_ids if item_id in self._rows]
        cuts = chunks(len(known), window, context)
        skipped = len(item_ids) - len(known)
        return [
            self._sequence(known[start:end], first - start, skipped=skipped if end == len(known) else 0)
            for start, first, end in cuts
        ]

    def room(self, max_length: int) -> int:
        """Items that fit behind the header in `max_length` tokens. Raises InputError for less than one."""
        room = (max_length - len(self._prefix)) // self.table.num_levels
        if room < 1:
            needed = len(self._prefix) + self.table.num_levels
            raise InputError(
                f"max_length={max_length} has no room for a single item: the header takes {len(self._prefix)} tokens "
                f"and a SID {self.table.num_levels}",
                hint=f"raise max_length to {needed} or more; {needed + 49 * self.table.num_levels} holds 50 items",
            )
        return room

    def _sequence(self, kept: Sequence[str], first: int, *, truncated: int = 0, skipped: int = 0) -> Rendered:
        """`kept` have SIDs; items from position `first` on are targets."""
        levels = self.table.num_levels
        rows = [self._rows[item_id] for item_id in kept]
        ids = np.concatenate([self._prefix, self._sids[rows].ravel()])
        start = len(self._prefix)
        target = np.zeros(len(ids), bool)
        target[start + levels * first :] = True
        sid_level = np.full(len(ids), -1, np.int8)
        sid_level[start:] = np.tile(np.arange(levels, dtype=np.int8), len(kept))
        parts = [self._sid_segment(tuple(kept[:first]), False), self._sid_segment(tuple(kept[first:]), True)]
        segments = (*self._header, *(segment for segment in parts if segment.item_ids))
        return Rendered(ids, target, sid_level, segments, truncated, skipped)

    # -- tasks ----------------------------------------------------------------------------------------------------

    def render(
        self, example: Example, *, phrasing_seed: int | None = None, answer: bool = True, max_length: int | None = None
    ) -> Rendered:
        """Render an example of a task.

        Args:
            example: its ``values`` fill the template; a value ``history`` skips items without a SID.
            phrasing_seed: None (evaluation, serving) takes the first phrasing; a number (training) chooses by a hash of
                the number and the row id.
            answer: False stops where the model has to go on; these ids are the beginning of the full row's.
            max_length: tokens the row may have; the oldest ``history`` items go first, except those the answer names.

        Raises:
            InputError: an item other than a history's has no SID, a value is missing, or the row cannot fit.
        """
        template = self.templates.tasks[example.task]
        count = len(template.phrasings)
        choice = 0 if phrasing_seed is None else hash_number(f"{phrasing_seed}:{example.row_id}") % count
        if example.task == "behaviour":
            return self._behaviour(example, answer, max_length)
        values = dict(example.values)
        kind = self.templates.kinds[example.task]
        if missing := (kind.prompt_variables | (kind.answer_variables if answer else frozenset())) - values.keys():
            raise InputError(f"Row {example.row_id} has no value for {', '.join(sorted(missing))}.")
        history = values.get("history", ())
        known = tuple(item_id for item_id in history if item_id in self._rows)
        if "history" in values:
            values["history"] = known
        present = frozenset(name for name, value in values.items() if value)
        slots = self._layout(example.task, choice, present)
        full = self._fill(slots, values, with_answer=answer)
        encoded = [self._encode(segment) for segment in full]
        dropped = 0
        if max_length is not None and (excess := sum(map(len, encoded)) - max_length) > 0:
            values["history"] = self._shorten(known, excess, slots, values, example, max_length)
            dropped = len(known) - len(values["history"])
            full = self._fill(slots, values, with_answer=answer)
            encoded = [self._encode(segment) for segment in full]
        return self._assemble(full, encoded, dropped, len(history) - len(known))

    def _behaviour(self, example: Example, answer: bool, max_length: int | None) -> Rendered:
        items = tuple(example.values["items"])
        first = len(items) - len(example.target)
        if not answer:
            return self.sequence(items[:first], max_length=max_length)
        targets = sum(item_id in self._rows for item_id in items[first:])
        row = self.sequence(items, targets="all", max_length=max_length)
        kept = tuple(item_id for segment in row.segments for item_id in segment.item_ids)
        if targets > len(kept):
            raise InputError(
                f"Row {example.row_id} has {targets} targets and max_length={max_length} holds {len(kept)} items",
                hint="lower the behaviour task's window or raise max_length",
            )
        return self._sequence(kept, len(kept) - targets, truncated=row.truncated_items, skipped=row.skipped_items)

    def _shorten(
        self,
        known: tuple[str, ...],
        excess: int,
        slots: Sequence[_Slot],
        values: dict[str, Value],
        example: Example,
        max_length: int,
    ) -> tuple[str, ...]:
        """Drop oldest history items worth `excess` tokens, but not those that the answer names."""
        named = {
            item_id
            for slot in slots
            if slot.of_answer and isinstance(value := values.get(slot.piece.variable), tuple)
            for item_id in value
        }
        droppable = [place for place, item_id in enumerate(known) if item_id not in named]
        count = -(-excess // self.table.num_levels)
        if count > len(droppable) or count >= len(known):
            raise InputError(
                f"Row {example.row_id} is {excess} tokens longer than max_length={max_length}, and its history cannot "
                "give way that much",
                hint="raise max_length, or shorten the texts of this item",
            )
        gone = set(droppable[:count])
        return tuple(item_id for place, item_id in enumerate(known) if place not in gone)

    # -- layout: a template's pieces with their kinds -------------------------------------------------------------

    def _layout(self, task: str, choice: int, present: frozenset[str]) -> tuple[_Slot, ...]:
        key = (task, choice, present)
        if key not in self._slots:
            template = self.templates.tasks[task]
            kind = self.templates.kinds[task]
            found = {name: name in present for name in kind.prompt_variables | kind.answer_variables}
            phrasing = template.phrasings[choice]
            if template.form == "chat":
                self._slots[key] = tuple(self._chat_layout(phrasing, found))
            else:
                end = [] if kind.sid_answer else [self._end()]  # SIDs have a fixed length and need no end
                prompt = self._pieces(phrasing.prompt, found, False)
                self._slots[key] = (*prompt, *self._pieces(phrasing.answer, found, True), *end)
        return self._slots[key]

    def _chat_layout(self, phrasing: Phrasing, present: Mapping[str, bool]) -> list[_Slot]:
        fallback = None if self._tokenizer.chat_template else self.templates.chat_fallback
        skeleton = chat_skeleton(self._tokenizer, with_system=phrasing.system is not None, fallback=fallback)
        slots: list[_Slot] = []
        contents = {"system": phrasing.system or "", "user": phrasing.prompt}
        for piece in skeleton.before:
            if piece.variable:
                slots += self._pieces(contents[piece.variable], present, False)
            else:
                slots.append(_Slot(piece, SegmentKind.ROLE, False))
        slots += self._pieces(phrasing.answer, present, True)
        if (end := self.codec.split_after_marker(skeleton.after)) is None:
            return [*slots, self._end()]
        return [*slots, _Slot(Piece(literal=end[0]), SegmentKind.ROLE, True)]

    def _end(self) -> _Slot:
        if not self.codec.eos_token:
            raise InputError(
                "The tokenizer has no EOS token, and an answer of words needs an end.", hint="set tokenizer.eos_token"
            )
        return _Slot(Piece(literal=self.codec.eos_token), SegmentKind.ROLE, True)

    def _pieces(self, source: str, present: Mapping[str, bool], of_answer: bool) -> list[_Slot]:
        pieces = compile_text(source, present)
        return [_Slot(piece, SegmentKind.INSTRUCTION, of_answer) for piece in pieces]

    # -- values to segments to ids --------------------------------------------------------------------------------

    def _fill(self, slots: Sequence[_Slot], values: dict[str, Value], *, with_answer: bool) -> list[Segment]:
        """Segments of a row: BOS where needed, values in their places, spaces where tokens hold them."""
        segments: list[Segment] = []
        for slot in slots:
            if slot.of_answer and not with_answer:
                break
            if not slot.piece.variable:
                segments.append(Segment(slot.kind, slot.piece.literal, target=slot.of_answer))
                continue
            value = values[slot.piece.variable]
            if isinstance(value, tuple):
                if missing := [item_id for item_id in value if item_id not in self._rows]:
                    raise InputError(f"The item {missing[0]!r} has no SID in this table.")
                segments.append(self._sid_segment(value, slot.of_answer))
            else:
                segments.append(Segment(SegmentKind.TEXT, value, target=slot.of_answer))
        segments = _move_spaces([segment for segment in segments if segment.text])
        chat_bos = bool(self._tokenizer.chat_template) and segments and segments[0].kind is SegmentKind.ROLE
        if segments and segments[0].kind in (SegmentKind.INSTRUCTION, SegmentKind.TEXT):
            segments[0] = replace(segments[0], text=self.codec.prefix + segments[0].text)
        if self.codec.bos_ids and not chat_bos:
            segments.insert(0, Segment(SegmentKind.ROLE, self._bos_text()))
        return segments

    def _encode(self, segment: Segment) -> Sequence[int]:
        if segment.kind is SegmentKind.SID:
            rows = [self._rows[item_id] for item_id in segment.item_ids]
            return [int(token_id) for token_id in self._sids[rows].ravel()]
        return self.codec.role(segment.text) if segment.kind is SegmentKind.ROLE else self.codec.text(segment.text)

    def _assemble(
        self, segments: Sequence[Segment], encoded: Sequence[Sequence[int]], truncated: int, skipped: int
    ) -> Rendered:
        lengths = [len(ids) for ids in encoded]
        levels = [
            np.arange(length) % self.table.num_levels if segment.kind is SegmentKind.SID else np.full(length, -1)
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

    def _sid_segment(self, item_ids: tuple[str, ...], target: bool) -> Segment:
        text = "".join(self.table.text(item_id) for item_id in item_ids)
        return Segment(SegmentKind.SID, text, item_ids, target)

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
