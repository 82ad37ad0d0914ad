"""Which train events are asked about: a user's history, the event that follows it, and what may never be rejected.

Of a user's ``s_1..s_n`` only ``s_1..s_{n-2}`` are looked at; `leaks` has the check.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from llmrec.data.split import Split
from llmrec.prompts.task import hash_number
from llmrec.sid_vocab.table import ACTIVE, SIDTable


@dataclass(frozen=True)
class Context:
    """A train event and what came before it.

    Attributes:
        row_id: ``user_id:position``.
        user_id: of the user.
        position: events before the chosen one.
        history: item ids ``s_1..s_position``.
        chosen: item id of the event.
        later: item ids of the user's train events behind it: met, so never rejected.
    """

    row_id: str
    user_id: str
    position: int
    history: tuple[str, ...]
    chosen: str
    later: tuple[str, ...]

    def why_not(self, item_id: str) -> str | None:
        """Why the item cannot be rejected here; None where it can."""
        if item_id == self.chosen:
            return "the chosen item itself"
        if item_id in self.history:
            return "a history item"
        return "a later train event of the user" if item_id in self.later else None


@dataclass
class Drops:
    """What was left out, by reason, while rows are made.

    Attributes:
        rows: train events that give no row.
        items: candidates that are not rejected, ``source: reason``.
        missing: by source, how many rejected items it gave less than the recipe asks for.
    """

    rows: Counter[str] = field(default_factory=Counter)
    items: Counter[str] = field(default_factory=Counter)
    missing: Counter[str] = field(default_factory=Counter)


def select_contexts(
    split: Split,
    table: SIDTable,
    drops: Drops,
    *,
    users: int | None,
    recent_events: int | None,
    min_history: int,
    eligible: Callable[[int, int], bool] | None = None,
) -> list[Context]:
    """The events that rows are made for: users in the order of the split, a user's events in order.

    Args:
        split: of the data.
        table: an event whose item has no living SID, or without a known item before it, cannot be asked about.
        drops: receives what is left out.
        users: so many users, by the hash of their id.
        recent_events: so many eligible train events a user, the most recent ones.
        min_history: events before an event that is asked about.
        eligible: whether the event of a row of ``split.users`` at a position may be chosen.
    """
    known = set(table.item_ids)
    living = {item_id for item_id, status in zip(table.item_ids, table.status, strict=True) if status == ACTIVE}
    places = range(len(split.users))
    if users is not None and users < len(places):
        places_by_hash = sorted(places, key=lambda place: hash_number(split.users[place]))
        places_chosen = sorted(places_by_hash[:users])
    else:
        places_chosen = list(places)
    contexts = []
    for place in places_chosen:
        train = tuple(split.items[item] for item in split.sequences[place][:-2])
        positions = range(min_history, len(train))
        if not positions:
            drops.rows["users with too few train events"] += 1
        allowed = [at for at in positions if eligible is None or eligible(place, at)]
        drops.rows["events that may not be chosen"] += len(positions) - len(allowed)
        for at in allowed if recent_events is None else allowed[-recent_events:]:
            if train[at] not in living:
                drops.rows["the chosen item has no living SID"] += 1
            elif known.isdisjoint(train[:at]):
                drops.rows["no history item has a SID"] += 1
            else:
                user_id = split.users[place]
                contexts.append(Context(f"{user_id}:{at}", user_id, at, train[:at], train[at], train[at + 1 :]))
    return contexts
