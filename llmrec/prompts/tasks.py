"""What the model is taught: the built-in tasks, listed in `TASKS`.

The mix of SID<->text alignment tasks and behaviour sequences follows LC-Rec (Zheng et al., ICDE 2024) and MiniOneRec.
Unlike LC-Rec, which writes titles into the strings that it tokenises, values stay typed until they are token ids, and a
behaviour sequence has every item as a target instead of the last one alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import ClassVar

from llmrec.data.catalog import Catalog
from llmrec.prompts.answers import Answer, AnswerReader
from llmrec.prompts.explain import Explain
from llmrec.prompts.task import Example, Examples, Task, Value, choose_positions, chunks
from llmrec.prompts.think import Think


@dataclass(frozen=True)
class SIDToTitle(Task):
    """SID -> title, one example an item."""

    name = "sid_to_title"
    prompt_variables = frozenset({"item"})
    answer_variables = frozenset({"title"})

    def examples(self, catalog: Catalog, sequences: Sequence[Sequence[str]], seed: int) -> Examples:
        """One example per item of the catalogue; sequences are not used."""
        titles = {item_id: catalog.title(item_id) for item_id in catalog.item_ids}
        return Examples(
            tuple(
                Example(self.name, f"{self.name}:{item_id}", {"item": (item_id,), "title": title}, title)
                for item_id, title in titles.items()
            )
        )

    def parse(self, answer: Answer, reader: AnswerReader) -> str:
        """The title."""
        return reader.text(answer)


@dataclass(frozen=True)
class TitleToSID(Task):
    """Title -> SID, one example an item."""

    name = "title_to_sid"
    prompt_variables = frozenset({"title"})
    answer_variables = frozenset({"item"})
    sid_answer = True

    def examples(self, catalog: Catalog, sequences: Sequence[Sequence[str]], seed: int) -> Examples:
        """One example per item of the catalogue; sequences are not used."""
        return Examples(
            tuple(
                Example(
                    self.name,
                    f"{self.name}:{item_id}",
                    {"title": catalog.title(item_id), "item": (item_id,)},
                    (item_id,),
                )
                for item_id in catalog.item_ids
            )
        )

    def parse(self, answer: Answer, reader: AnswerReader) -> tuple[str, ...]:
        """The items with the answer's first SID: several only where items share one."""
        return reader.first_items(answer)

    def accepts(self, answer: Answer, example: Example, reader: AnswerReader) -> bool:
        """Whether the target has the SID that was given."""
        return example.target[0] in self.parse(answer, reader)


@dataclass(frozen=True)
class SIDToAttributes(Task):
    """SID -> the values of one attribute, one example per item and attribute that has values."""

    name = "sid_to_attributes"
    prompt_variables = frozenset({"item", "attribute"})
    answer_variables = frozenset({"values"})
    separator: ClassVar[str] = ", "

    def examples(self, catalog: Catalog, sequences: Sequence[Sequence[str]], seed: int) -> Examples:
        """Empty for a catalogue without attributes; items without a value are counted."""
        rows = []
        missing: Counter[str] = Counter()
        for item_id in catalog.item_ids:
            found = catalog.attribute_values(item_id)
            for attribute in catalog.attributes:
                text = self.separator.join(found.get(attribute, ()))
                if not text:
                    missing[f"items without {attribute}"] += 1
                    continue
                values: dict[str, Value] = {"item": (item_id,), "attribute": attribute, "values": text}
                rows.append(Example(self.name, f"{self.name}:{item_id}:{attribute}", values, self._split(text)))
        return Examples(tuple(rows), dict(missing))

    def parse(self, answer: Answer, reader: AnswerReader) -> tuple[str, ...]:
        """The values in their order; a value that itself holds a comma counts as two, in targets as in answers."""
        return self._split(reader.text(answer))

    def _split(self, text: str) -> tuple[str, ...]:
        return tuple(part for part in (piece.strip() for piece in text.split(",")) if part)


@dataclass(frozen=True)
class Behaviour(Task):
    """A behaviour sequence in serving form, every item of which is a target exactly once (dense training)."""

    name = "behaviour"
    prompt_variables = frozenset()
    answer_variables = frozenset({"items"})
    sid_answer = True
    window: int = 50
    """Items a row: longer histories become several rows."""
    context: int = 0
    """Items repeated without loss before the targets of a row that continues an older one."""

    def examples(self, catalog: Catalog, sequences: Sequence[Sequence[str]], seed: int) -> Examples:
        """Rows of each sequence, oldest first; `target` holds the items that carry loss, ``items`` all of the row."""
        rows = []
        empty = 0
        for user, sequence in enumerate(sequences):
            empty += not sequence
            for number, (start, first, end) in enumerate(chunks(len(sequence), self.window, self.context)):
                values: dict[str, Value] = {"items": tuple(sequence[start:end])}
                rows.append(Example(self.name, f"{self.name}:{user}:{number}", values, tuple(sequence[first:end])))
        return Examples(tuple(rows), {"empty sequences": empty} if empty else {})

    def parse(self, answer: Answer, reader: AnswerReader) -> tuple[str, ...]:
        """The items in order; of items that share a SID the first in the table."""
        return tuple(ids[0] for ids in reader.items(answer) if ids)


@dataclass(frozen=True)
class NextItemChat(Task):
    """History -> next item as a chat, for checkpoints that are talked to."""

    name = "next_item_chat"
    prompt_variables = frozenset({"history"})
    answer_variables = frozenset({"item"})
    sid_answer = True
    max_history: int = 20
    """Most recent items shown."""
    per_user: int = 1
    """Examples a user: the last train item, then positions chosen by a seeded hash."""

    def examples(self, catalog: Catalog, sequences: Sequence[Sequence[str]], seed: int) -> Examples:
        """Users with fewer than two train items are counted and give none."""
        rows = []
        short = 0
        for user, sequence in enumerate(sequences):
            short += len(sequence) < 2
            for place in choose_positions(len(sequence), self.per_user, f"{self.name}:{seed}:{user}"):
                prompt = self.prompt(sequence[:place], f"{self.name}:{user}:{place}")
                answer = (sequence[place],)
                rows.append(replace(prompt, values={**prompt.values, "item": answer}, target=answer))
        return Examples(tuple(rows), {"users with fewer than 2 train items": short} if short else {})

    def prompt(self, history: Sequence[str], row_id: str = "") -> Example:
        """What serving renders with ``answer=False``: the recent history, without a target."""
        recent = tuple(history[-self.max_history :])
        return Example(self.name, row_id, {"history": recent}, truncated_items=len(history) - len(recent))

    def parse(self, answer: Answer, reader: AnswerReader) -> tuple[str, ...]:
        """The items with the answer's first SID: several only where items share one."""
        return reader.first_items(answer)

    def accepts(self, answer: Answer, example: Example, reader: AnswerReader) -> bool:
        """Whether the target has the SID that was given."""
        return example.target[0] in self.parse(answer, reader)


TASKS: Mapping[str, type[Task]] = MappingProxyType(
    {task.name: task for task in (SIDToTitle, TitleToSID, SIDToAttributes, Behaviour, NextItemChat, Explain, Think)}
)
"""The built-in tasks by name."""
