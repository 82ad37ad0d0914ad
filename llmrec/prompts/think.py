"""Thoughts that are true by construction: history -> a few words about why -> the next item.

A thought has the three steps of RecZero (arXiv:2510.23077): the user, the item, why the two match. As in OneRec-Think
(arXiv:2510.11639) it is made from a *pruned* history, the few items that lead to the target, and trained behind the
whole one, so that the model learns to find them. Where we depart: both papers let a language model write; here a
template says what the catalogue knows, so that every row can be checked (`llmrec.prompts.grounding`) and none was
written by a model that had seen the target's title. The target itself is named by the first codes of its SID only: a
thought says what kind of item comes next and leaves the choice to the search.

Rows come from a file of `llmrec think data`, whose pruning knows SIDs and vectors (`llmrec.train.think`), or without
one from the attributes that the target shares with its history, by the rules of `llmrec.prompts.explain`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llmrec.data.catalog import Catalog
from llmrec.errors import DataError, InputError
from llmrec.prompts.answers import Answer, AnswerReader
from llmrec.prompts.explain import Frequencies, find_reason, value_frequencies
from llmrec.prompts.task import Example, Examples, Prefix, Task, Value, choose_positions

_MARKS = frozenset('"[]\n\r')


@dataclass(frozen=True)
class ThinkRow:
    """What the thought about one train event says; every field comes from the history or the catalogue."""

    user: int
    """Place of the user among the sequences."""
    position: int
    """Events before the target."""
    events: int
    """Train events of the user: sequences that were cut to the recent ones are counted back from their end."""
    item: str
    """The target."""
    evidence: tuple[str, ...]
    """One or two items of the history, most recent last."""
    attribute: str = ""
    shared: str = ""
    """The value of `attribute` that target and evidence have; empty where what they share is a prefix."""
    detail_attribute: str = ""
    detail: str = ""
    """A value of another attribute of the target."""
    kin: str = ""
    """An evidence item whose SID begins like the target's."""


@dataclass(frozen=True)
class Think(Task):
    """History -> thought -> next item, in the serving form."""

    name = "think"
    prompt_variables = frozenset({"history"})
    answer_variables = frozenset(
        {"first_prefix", "first", "second_prefix", "second", "prefix", "attribute", "shared", "detail_attribute"}
        | {"detail", "kin", "item"}
    )
    worded_answer = True
    sid_answer = True
    thinks = True
    rows: str | None = None
    """A file of `llmrec think data`; None makes rows from shared attributes."""
    window: int = 50
    """Most recent items shown; `ServingCard.window` of the checkpoint that will think."""
    evidence: int = 4
    """Items of the history that share an attribute with the target and are looked at; most recent ones."""
    prefix_depth: int = 1
    """Levels of a SID that a thought names."""
    per_user: int = 1
    """Thoughts a user without a file: the last train item, then positions chosen by a seeded hash."""

    def examples(self, catalog: Catalog, sequences: Sequence[Sequence[str]], seed: int) -> Examples:
        """Train events that nothing in their history leads to are counted and give none.

        Raises:
            InputError: the file does not exist or holds no rows.
            DataError: a row of the file is not about the event of these sequences that it names.
        """
        if self.rows is not None:
            return self.examples_of(read_rows(Path(self.rows)), catalog, sequences)
        skipped: Counter[str] = Counter()
        made = self.examples_of(self._made(catalog, sequences, seed, skipped), catalog, sequences)
        return Examples(made.rows, {**skipped, **made.skipped})

    def examples_of(self, rows: Sequence[ThinkRow], catalog: Catalog, sequences: Sequence[Sequence[str]]) -> Examples:
        """The examples of given rows. Raises DataError where one is not about the event that it names."""
        skipped: Counter[str] = Counter()
        made = []
        for row in rows:
            sequence = sequences[row.user] if row.user < len(sequences) else ()
            start = max(0, row.events - len(sequence)) if sequence else 0
            if sequence and row.position <= start:
                skipped["thoughts about events before recent_items"] += 1
                continue
            history = tuple(sequence[: row.position - start])
            self._require_of_train(row, sequence, start)
            if not set(row.evidence) <= set(history[-self.window :]):
                skipped["thoughts about items before the window"] += 1
                continue
            made.append(self._example(row, history, catalog))
        return Examples(tuple(made), dict(skipped))

    def parse(self, answer: Answer, reader: AnswerReader) -> tuple[str, ...]:
        """The items with the answer's last complete SID: several only where items share one."""
        return next((ids for ids in reversed(reader.items(answer)) if ids), ())

    def accepts(self, answer: Answer, example: Example, reader: AnswerReader) -> bool:
        """Whether the target has the SID that was given; thoughts may differ."""
        return set(example.target) <= set(self.parse(answer, reader))

    def _made(
        self, catalog: Catalog, sequences: Sequence[Sequence[str]], seed: int, skipped: Counter[str]
    ) -> list[ThinkRow]:
        frequencies = value_frequencies(catalog)
        rows = []
        for user, sequence in enumerate(sequences):
            if len(sequence) < 2:
                skipped["users with fewer than 2 train items"] += 1
            for place in choose_positions(len(sequence), self.per_user, f"{self.name}:{seed}:{user}"):
                history, item = sequence[max(0, place - self.window) : place], sequence[place]
                pruned = sharing(catalog, history, item)[-self.evidence :]
                row = think_row(catalog, frequencies, pruned, item, (user, place, len(sequence)))
                if row is None:
                    skipped["items that nothing in their history leads to"] += 1
                else:
                    rows.append(row)
        return rows

    def _require_of_train(self, row: ThinkRow, sequence: Sequence[str], start: int) -> None:
        place, problem = row.position - start, ""
        if place >= len(sequence) or sequence[place] != row.item:
            problem = f"user {row.user} has no train event {row.position} with item {row.item}"
        elif start == 0 and (unseen := sorted(set(row.evidence) - set(sequence[:place]))):
            problem = f"user {row.user}, event {row.position}: {', '.join(unseen)} is not in the history"
        if problem:
            raise DataError(
                f"The thoughts of {self.rows or 'these rows'} are about other data:",
                [problem],
                hint="make them anew with llmrec think data",
            )

    def _example(self, row: ThinkRow, history: Sequence[str], catalog: Catalog) -> Example:
        recent = tuple(history[-self.window :])
        first, second = (*row.evidence, "")[:2]
        values: dict[str, Value] = {
            "history": recent,
            "item": (row.item,),
            "first": plain_title(catalog, first),
            "second": plain_title(catalog, second) if second else "",
            "second_prefix": "",
            "attribute": row.attribute,
            "shared": row.shared,
            "detail_attribute": row.detail_attribute,
            "detail": row.detail,
            "kin": plain_title(catalog, row.kin) if row.kin else "",
        }
        named = {"prefix": row.item, "first_prefix": first, **({"second_prefix": second} if second else {})}
        return Example(
            self.name,
            f"{self.name}:{row.user}:{row.position}",
            values,
            (row.item,),
            truncated_items=len(history) - len(recent),
            prefixes={name: Prefix(item_id, self.prefix_depth) for name, item_id in named.items()},
        )


def sharing(catalog: Catalog, history: Sequence[str], item_id: str) -> list[str]:
    """Items of the history, once each, that share an attribute value with the item, in the history's order."""
    if item_id not in catalog:
        return []
    own = {(name, value) for name, values in catalog.attribute_values(item_id).items() for value in values}
    others = [other for other in dict.fromkeys(history) if other != item_id and other in catalog]
    return [
        other
        for other in others
        if any((name, one) in own for name, values in catalog.attribute_values(other).items() for one in values)
    ]


def think_row(
    catalog: Catalog,
    frequencies: Frequencies,
    pruned: Sequence[str],
    item_id: str,
    event: tuple[int, int, int],
    kin: Sequence[str] = (),
) -> ThinkRow | None:
    """What there is to say about an event; None where there is nothing.

    Args:
        catalog: titles and attributes.
        frequencies: `value_frequencies` of it.
        pruned: the items of the history that lead to the target, in the history's order.
        item_id: the target.
        event: user, position and number of train events of `ThinkRow`.
        kin: those of `pruned` whose SIDs begin like the target's.
    """
    if item_id not in catalog:
        return None
    usable = [other for other in pruned if other in catalog and not _MARKS & set(catalog.title(other))]
    reason = find_reason(catalog, frequencies, usable, item_id)
    if reason is not None and not _MARKS & set(reason.attribute + reason.shared):
        details = catalog.attribute_values(item_id).get(reason.detail_attribute, ())
        detail = next((value for value in details if not _MARKS & set(reason.detail_attribute + value)), "")
        alike = next((other for other in reversed(reason.items) if other in kin), "")
        attribute = reason.detail_attribute if detail else ""
        return ThinkRow(*event, item_id, reason.items, reason.attribute, reason.shared, attribute, detail, alike)
    alike_items = tuple(other for other in usable if other in kin)[-2:]
    return ThinkRow(*event, item_id, alike_items, kin=alike_items[-1]) if alike_items else None


def plain_title(catalog: Catalog, item_id: str) -> str:
    """The title on one line."""
    return " ".join(catalog.title(item_id).split())


def write_rows(path: Path, rows: Sequence[ThinkRow]) -> None:
    """One JSON object a line."""
    lines = (json.dumps(asdict(row), ensure_ascii=False) for row in rows)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def read_rows(path: Path) -> list[ThinkRow]:
    """Read `write_rows`.

    Raises:
        InputError: no such file, no row, or a line that is none.
    """
    if not path.is_file():
        raise InputError(f"The file of thoughts {path} does not exist.", hint="make it with llmrec think data")
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            values: Mapping[str, Any] = json.loads(line)
            rows.append(ThinkRow(**{**values, "evidence": tuple(values["evidence"])}))
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(f"{path}, line {number} is no thought: {error}", hint="make the file anew") from error
        if not rows[-1].evidence:
            raise InputError(f"{path}, line {number}: a thought needs evidence.", hint="make the file anew")
    if not rows:
        raise InputError(f"The file of thoughts {path} is empty.", hint="make it with llmrec think data")
    return rows
