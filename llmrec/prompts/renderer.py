"""The one renderer: tasks, templates and items become token ids with a loss mask.

Every training row, rollout, evaluation and served prompt comes from `Renderer`, so one history gives the same ids
everywhere. Values are placed as typed segments (`SegmentKind`), each tokenised on its own: SIDs are ids of the table
and never pass through strings, and item or user text cannot become a control token.

Two forms. A behaviour sequence (`Renderer.sequence`) is the serving form: BOS if the tokenizer adds one, a short
header, then SIDs back to back; what the model continues is the next item's SID. Everything else is `Renderer.render`:
plain text, or a chat in the tokenizer's own chat template. That template is applied to markers, never to content; what
it adds by itself (SmolLM2's default system message, empty ``<think>`` blocks) stays as the checkpoint was trained with
it, and dates are fixed to `llmrec.prompts.chat.CHAT_DATE`, so that a row is the same tomorrow.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from llmrec.errors import InputError
from llmrec.prompts.answers import AnswerReader
from llmrec.prompts.layout import RowBuilder, Slot
from llmrec.prompts.segments import Rendered
from llmrec.prompts.task import Example, Value, chunks, hash_number
from llmrec.prompts.templates import TemplateSet
from llmrec.sid_vocab.table import SIDTable

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Targets = Literal["all", "last", "none"]


class Renderer:
    """Renders with one tokenizer, one SID table and one set of templates.

    Attributes:
        table: the SID table whose tokens the tokenizer holds.
        templates: the templates in use.
        codec: text and role markers to ids.
        reader: reads answers back (`Task.parse`).

    Raises:
        InputError: the table has no token ids, they are not the tokenizer's, the tokenizer is a slow one, or the
            serving prompt would be empty.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, table: SIDTable, templates: TemplateSet) -> None:
        self.table = table
        self.templates = templates
        self._builder = RowBuilder(tokenizer, table, templates)
        self._rows = self._builder.rows
        self.codec = self._builder.codec
        self.reader = AnswerReader(self.codec, table)
        slots = self._builder.layout("behaviour", 0, frozenset())
        self._header = tuple(self._builder.fill(slots, {}, with_answer=False))
        self._prefix = np.array([i for segment in self._header for i in self._builder.encode(segment)], np.int64)
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
        window_step: int = 1,
        targets: Targets = "none",
        max_length: int | None = None,
    ) -> Rendered:
        """Render a history, oldest item first. ``targets="none"`` is the prompt that evaluation and serving use.

        Args:
            item_ids: items without a SID in the table are skipped and counted.
            window: items kept, the most recent ones; targets are among them.
            window_step: a window that is full starts at a multiple of this many items, so that a growing history keeps
                the start of its prompt, and what a cache knows of it, for that many events. It then holds up to
                ``window_step - 1`` items fewer.
            targets: ``"all"`` items carry loss, the ``"last"`` one, or ``"none"``. With ``"all"``, items that `window`
                or `max_length` cuts off are no targets of this row: `sequence_rows` gives them rows of their own.
            max_length: tokens a row may have; the oldest items go first.

        Raises:
            InputError: `max_length` has no room for a single item, or a target has no SID.
        """
        if targets == "last" and item_ids and item_ids[-1] not in self._rows:
            raise InputError(f"The target {item_ids[-1]!r} has no SID in this table.")
        if window is not None and window < 1:
            raise InputError(f"window={window} keeps no item", hint="give at least 1, or None for all")
        if window_step < 1 or (window is not None and window_step > window):
            raise InputError(f"window_step={window_step} must lie in 1..{window}", hint="1 keeps the window full")
        known = [item_id for item_id in item_ids if item_id in self._rows]
        most = len(known) if window is None else window
        most = most if max_length is None else min(most, self.room(max_length))
        step = max(1, min(window_step, most))
        kept = known[-(-max(0, len(known) - most) // step) * step :]
        first = {"all": 0, "last": len(kept) - 1, "none": len(kept)}[targets]
        return self._sequence(kept, first, truncated=len(known) - len(kept), skipped=len(item_ids) - len(known))

    def sequence_rows(
        self, item_ids: Sequence[str], *, window: int, context: int = 0, max_length: int | None = None
    ) -> list[Rendered]:
        """Cut a history into rows, oldest first, so that every item with a SID is a target in exactly one of them.

        Args:
            item_ids: oldest first; items without a SID are counted in the last row (no SID at all: no rows).
            window: items a row, at most.
            context: items before a row's targets that it repeats without loss, where there are any.
            max_length: tokens a row may have; a smaller window where `window` items would not fit.

        Raises:
            InputError: a row has no room for one target behind its context.
        """
        if max_length is not None:
            window = min(window, self.room(max_length))
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
        ids = np.concatenate([self._prefix, self._builder.sids[rows].ravel()])
        start = len(self._prefix)
        target = np.zeros(len(ids), bool)
        target[start + levels * first :] = True
        sid_level = np.full(len(ids), -1, np.int8)
        sid_level[start:] = np.tile(np.arange(levels, dtype=np.int8), len(kept))
        parts = [
            self._builder.sid_segment(tuple(kept[:first]), False),
            self._builder.sid_segment(tuple(kept[first:]), True),
        ]
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
        if example.task not in self.templates.tasks:
            raise InputError(
                f"The templates hold no {example.task}.yaml.",
                hint="copy it from llmrec's own: llmrec recipes cp prompts",
            )
        template = self.templates.tasks[example.task]
        count = len(template.phrasings)
        choice = 0 if phrasing_seed is None else hash_number(f"{phrasing_seed}:{example.row_id}") % count
        if example.task == "behaviour":
            return self._behaviour(example, answer, max_length)
        values = dict(example.values)
        kind = self.templates.kinds[example.task]
        wanted = kind.prompt_variables | (kind.answer_variables if answer else frozenset())
        if missing := wanted - values.keys() - example.prefixes.keys():
            raise InputError(f"Row {example.row_id} has no value for {', '.join(sorted(missing))}.")
        history = values.get("history", ())
        known = tuple(item_id for item_id in history if item_id in self._rows)
        if "history" in values:
            values["history"] = known
        present = frozenset([*(name for name, value in values.items() if value), *example.prefixes])
        slots = self._builder.layout(example.task, choice, present)
        full = self._builder.fill(slots, values, example.prefixes, with_answer=answer)
        encoded = [self._builder.encode(segment) for segment in full]
        dropped = 0
        if max_length is not None and (excess := sum(map(len, encoded)) - max_length) > 0:
            values["history"] = self._shorten(known, excess, slots, values, example, max_length)
            dropped = len(known) - len(values["history"])
            full = self._builder.fill(slots, values, example.prefixes, with_answer=answer)
            encoded = [self._builder.encode(segment) for segment in full]
        return self._builder.assemble(full, encoded, example.truncated_items + dropped, len(history) - len(known))

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
        slots: Sequence[Slot],
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
        } | {prefix.item_id for prefix in example.prefixes.values()}
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
