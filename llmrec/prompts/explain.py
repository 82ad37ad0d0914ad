"""Explanations that are true by construction: history + item -> why, from shared attributes and the user's own history.

The rules, in order, for an item at some position of a train sequence and the `max_history` items before it:

1. Candidates are the values that the item shares with at least one other history item. Values shared with two or more
   go before values shared with one. No candidate: no row (counted).
2. Among them wins the largest ``shared * log(num_items / items with the value)``, so that two shared Westerns say more
   than three shared Dramas; ties go to the catalogue's attribute order, then to the item's own order of values.
3. The answer names the one or two most recent history items with that value, the value, and, where the item has another
   attribute, that attribute's values as a detail.

So every row names items of its own history and attributes of the catalogue, and nothing else. Items are written as
SIDs, which a server turns into titles: a copied SID is exact, a recalled title may not be.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from llmrec.data.catalog import Catalog
from llmrec.prompts.answers import Answer, AnswerReader
from llmrec.prompts.task import Example, Examples, Task, Value, choose_positions

Frequencies = Counter[tuple[str, str]]


@dataclass(frozen=True)
class Reason:
    """What an explanation says; every field comes from the history or the catalogue."""

    attribute: str
    shared: str
    """The value that the item and `items` have in common."""
    items: tuple[str, ...]
    """One or two history items, most recent last."""
    detail_attribute: str = ""
    detail: str = ""


@dataclass(frozen=True)
class Explain(Task):
    """History and item -> a plain-language explanation."""

    name = "explain"
    prompt_variables = frozenset({"history", "item"})
    answer_variables = frozenset({"item", "first", "second", "attribute", "shared", "detail_attribute", "detail"})
    worded_answer = True
    max_history: int = 20
    """Most recent items shown."""
    per_user: int = 1
    """Examples a user: the last train item, then positions chosen by a seeded hash."""

    def examples(self, catalog: Catalog, sequences: Sequence[Sequence[str]], seed: int) -> Examples:
        """Positions whose item shares no attribute with its history are counted and give none."""
        frequencies = value_frequencies(catalog)
        rows = []
        skipped: Counter[str] = Counter()
        for user, sequence in enumerate(sequences):
            if len(sequence) < 2:
                skipped["users with fewer than 2 train items"] += 1
            for place in choose_positions(len(sequence), self.per_user, f"{self.name}:{seed}:{user}"):
                prompt = self.prompt(sequence[:place], sequence[place], f"{self.name}:{user}:{place}")
                history = prompt.values["history"]
                reason = find_reason(catalog, frequencies, history, sequence[place])
                if reason is None:
                    skipped["items that share no attribute with their history"] += 1
                    continue
                rows.append(_with_reason(prompt, reason, sequence[place]))
        return Examples(tuple(rows), dict(skipped))

    def parse(self, answer: Answer, reader: AnswerReader) -> tuple[str, ...]:
        """The items that the explanation names, once each, in order of appearance."""
        return tuple(dict.fromkeys(ids[0] for ids in reader.items(answer) if ids))

    def accepts(self, answer: Answer, example: Example, reader: AnswerReader) -> bool:
        """Whether the answer names the same items; phrasings differ in their order."""
        return set(self.parse(answer, reader)) == set(example.target)

    def prompt(self, history: Sequence[str], item_id: str, row_id: str = "") -> Example:
        """What serving renders with ``answer=False``: the recent history and the item to explain, without a reason."""
        recent = tuple(history[-self.max_history :])
        values: dict[str, Value] = {"history": recent, "item": (item_id,)}
        return Example(self.name, row_id, values, truncated_items=len(history) - len(recent))


def _with_reason(prompt: Example, reason: Reason, item_id: str) -> Example:
    values: dict[str, Value] = {
        **prompt.values,
        "first": reason.items[:1],
        "second": reason.items[1:],
        "attribute": reason.attribute,
        "shared": reason.shared,
        "detail_attribute": reason.detail_attribute,
        "detail": reason.detail,
    }
    return replace(prompt, values=values, target=(*reason.items, item_id))


def value_frequencies(catalog: Catalog) -> Frequencies:
    """How many items have each ``(attribute, value)``."""
    return Counter(
        (attribute, value)
        for item_id in catalog.item_ids
        for attribute, values in catalog.attribute_values(item_id).items()
        for value in values
    )


def find_reason(catalog: Catalog, frequencies: Frequencies, history: Sequence[str], item_id: str) -> Reason | None:
    """The reason by the rules of this module; None where the item shares no attribute value with the history."""
    values = catalog.attribute_values(item_id)
    others = [other for other in dict.fromkeys(history) if other != item_id and other in catalog]
    known = {other: catalog.attribute_values(other) for other in others}
    best: tuple[tuple[bool, float], Reason] | None = None
    for attribute, own in values.items():
        for value in own:
            sharing = [other for other in others if value in known[other].get(attribute, ())]
            if not sharing:
                continue
            weight = len(sharing) * math.log(catalog.num_items / frequencies[attribute, value])
            rank = (len(sharing) > 1, weight)
            if best is None or rank > best[0]:
                best = (rank, Reason(attribute, value, tuple(sharing[-2:])))
    if best is None:
        return None
    reason = best[1]
    detail = next((name for name in values if name != reason.attribute), "")
    return Reason(reason.attribute, reason.shared, reason.items, detail, ", ".join(values.get(detail, ())))
