"""Negatives that ask no model: random, popular, and with the first SID levels of the chosen item.

Random and popular negatives are the classic ones; S-DPO (Chen et al., NeurIPS 2024) takes several random ones a row.
Items with the chosen one's prefix are the hard ones of a generator: it has won or lost by their last tokens.

Draws depend on the seed, the row's id and the source, not on the other rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from llmrec.data.split import Split
from llmrec.errors import InputError
from llmrec.prompts.task import hash_number
from llmrec.sid_vocab.table import ACTIVE, SIDTable
from llmrec.train.preference.config import PopularNegatives, RandomNegatives, SamePrefixNegatives
from llmrec.train.preference.contexts import Context, Drops
from llmrec.train.preference.pairs import RejectedSource

_ROUNDS = 8
"""Rounds of draws before the weights of what is left are normalised anew, which takes a pass over the catalogue."""


@dataclass(frozen=True)
class Rejected:
    """A rejected item with what its source knows of it."""

    item_id: str
    source: RejectedSource
    score: float | None = None


class Source(Protocol):
    """Picks rejected items for one event after the other."""

    def pick(self, context: Context, taken: AbstractSet[str], drops: Drops) -> list[Rejected]:
        """Items to reject, none of them met by the user in train or already `taken`; drops are counted."""
        ...


class Drawn:
    """Items of the catalogue drawn without replacement, an item's chance in proportion to its weight.

    Args:
        source: name in the rows.
        item_ids: (n_items,) living items.
        weights: (n_items,) not negative; an item of weight 0 is never drawn.
        count: items a row.
        seed: of the draws.
    """

    def __init__(
        self, source: RejectedSource, item_ids: Sequence[str], weights: np.ndarray, count: int, seed: int
    ) -> None:
        kept = np.flatnonzero(weights > 0)
        self.source: RejectedSource = source
        self.item_ids = [item_ids[row] for row in kept]
        self.weights = weights[kept].astype(np.float64)
        self.sums = np.cumsum(self.weights)
        self.row_of = {item_id: row for row, item_id in enumerate(self.item_ids)}
        self.count = count
        self.seed = seed

    def pick(self, context: Context, taken: AbstractSet[str], drops: Drops) -> list[Rejected]:
        """`count` items, or all that are left."""
        met = {context.chosen, *context.history, *context.later, *taken}
        barred = {self.row_of[item_id] for item_id in met if item_id in self.row_of}
        wanted = min(self.count, len(self.item_ids) - len(barred))
        drops.missing[self.source] += self.count - wanted
        rng = np.random.default_rng([self.seed, hash_number(f"{self.source}:{context.row_id}")])
        rows: list[int] = []
        for _ in range(_ROUNDS):
            if len(rows) >= wanted:
                break
            points = rng.random(2 * wanted) * self.sums[-1]
            for row in np.searchsorted(self.sums, points, side="right").tolist():
                if row not in barred and len(rows) < wanted:
                    barred.add(row)
                    rows.append(row)
        if len(rows) < wanted:  # most of the weight is barred
            left = self.weights.copy()
            left[list(barred)] = 0
            rows += rng.choice(len(left), wanted - len(rows), replace=False, p=left / left.sum()).tolist()
        return [Rejected(self.item_ids[row], self.source) for row in rows]


def random_source(config: RandomNegatives, table: SIDTable, seed: int) -> Drawn:
    """Every living item equally likely."""
    living = [table.item_ids[row] for row in np.flatnonzero(table.status == ACTIVE)]
    return Drawn("random", living, np.ones(len(living)), config.count, seed)


def popular_source(config: PopularNegatives, table: SIDTable, split: Split, seed: int) -> Drawn:
    """Living items by their number of train events."""
    counts = dict(zip(split.items, split.train_counts().tolist(), strict=True))
    living = [table.item_ids[row] for row in np.flatnonzero(table.status == ACTIVE)]
    weights = np.array([counts.get(item_id, 0) for item_id in living], dtype=np.float64) ** config.exponent
    return Drawn("popular", living, weights, config.count, seed)


class SamePrefix:
    """Living items whose first SID levels are those of the chosen item, equally likely.

    Raises:
        InputError: the SIDs have no level behind the prefix.
    """

    def __init__(self, config: SamePrefixNegatives, table: SIDTable, seed: int) -> None:
        if config.levels >= table.num_levels:
            raise InputError(
                f"same_prefix.levels={config.levels}: the SIDs have {table.num_levels} levels, so that no level would "
                "tell the items apart.",
                hint=f"levels=1 to {table.num_levels - 1}",
            )
        self.config = config
        self.seed = seed
        self.prefix_of: dict[str, tuple[int, ...]] = {}
        self.members: dict[tuple[int, ...], list[str]] = {}
        for row in np.flatnonzero(table.status == ACTIVE):
            prefix = tuple(table.codes[row, : config.levels].tolist())
            self.prefix_of[table.item_ids[row]] = prefix
            self.members.setdefault(prefix, []).append(table.item_ids[row])

    def pick(self, context: Context, taken: AbstractSet[str], drops: Drops) -> list[Rejected]:
        """`count` items of the prefix, or all that are left."""
        barred = {context.chosen, *context.history, *context.later, *taken}
        left = [item_id for item_id in self.members[self.prefix_of[context.chosen]] if item_id not in barred]
        wanted = min(self.config.count, len(left))
        drops.missing["same_prefix"] += self.config.count - wanted
        rng = np.random.default_rng([self.seed, hash_number(f"same_prefix:{context.row_id}")])
        return [Rejected(left[place], "same_prefix") for place in rng.permutation(len(left))[:wanted]]
