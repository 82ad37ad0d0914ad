"""How close a history item is to the target: what pruning a history goes by.

OneRec-Think (arXiv:2510.11639) bootstraps thoughts from contexts that hold relevant items only. Here relevance is a sum
of three parts, each between 0 and 1: levels that the SIDs share from the first one on, shared attribute values by their
information, and the cosine of item vectors where there are any. An item that shares neither an attribute value nor a
prefix is not evidence however close its vector: a thought about it would have nothing to say.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from llmrec.data.catalog import Catalog
from llmrec.prompts.explain import Frequencies
from llmrec.sid_vocab.table import SIDTable
from llmrec.train.think.config import ThinkDataConfig


class Closeness:
    """Closeness of items by what a config weighs.

    Args:
        catalog: attributes.
        frequencies: `value_frequencies` of it.
        table: SIDs; items without one are close by their attributes alone.
        config: weights and depth of a prefix.
        vectors: by item id, any length; None weighs no vectors.
    """

    def __init__(
        self,
        catalog: Catalog,
        frequencies: Frequencies,
        table: SIDTable,
        config: ThinkDataConfig,
        vectors: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        self._catalog, self._frequencies = catalog, frequencies
        self._codes = dict(zip(table.item_ids, table.codes, strict=True))
        self._levels = table.num_levels
        self._config = config
        self._vectors = vectors or {}

    def depth(self, one: str, other: str) -> int:
        """Levels that two SIDs share from the first one on; 0 where an item has none."""
        if one not in self._codes or other not in self._codes:
            return 0
        differ = np.flatnonzero(self._codes[one] != self._codes[other])
        return int(differ[0]) if differ.size else self._levels

    def shared_information(self, one: str, other: str) -> float:
        """Share of `other`'s attribute information, ``log(items / items with the value)``, that `one` has, too."""
        own, values = self._pairs(one), self._pairs(other)
        information = {pair: math.log(self._catalog.num_items / self._frequencies[pair]) for pair in values}
        total = sum(information.values())
        return sum(information[pair] for pair in values & own) / total if total else float(bool(values & own))

    def cosine(self, one: str, other: str) -> float:
        """Of the items' vectors, at least 0; 0 where an item has none."""
        if one not in self._vectors or other not in self._vectors:
            return 0.0
        left, right = self._vectors[one], self._vectors[other]
        norm = float(np.linalg.norm(left) * np.linalg.norm(right))
        return max(0.0, float(left @ right) / norm) if norm else 0.0

    def prune(self, history: Sequence[str], target: str) -> list[str]:
        """The closest items of the history with something to say, in the history's order; recent ones win ties."""
        config = self._config
        scored: list[tuple[float, int]] = []
        others = list(dict.fromkeys(reversed(history)))[::-1]  # of an item that comes again its last place
        for place, other in enumerate(others):
            if other == target or other not in self._catalog:
                continue
            depth, information = self.depth(other, target), self.shared_information(other, target)
            if depth < config.prefix_depth and not self._pairs(other) & self._pairs(target):
                continue
            closeness = config.sid_weight * depth / self._levels + config.attribute_weight * information
            scored.append((closeness + config.vector_weight * self.cosine(other, target), place))
        best = sorted(scored, reverse=True)[: config.evidence]
        return [others[place] for place in sorted(place for _, place in best)]

    def kin(self, pruned: Sequence[str], target: str) -> list[str]:
        """Those whose SIDs begin like the target's."""
        return [other for other in pruned if self.depth(other, target) >= self._config.prefix_depth]

    def _pairs(self, item_id: str) -> set[tuple[str, str]]:
        if item_id not in self._catalog:
            return set()
        return {(name, one) for name, values in self._catalog.attribute_values(item_id).items() for one in values}
