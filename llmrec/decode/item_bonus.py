"""Score hooks per item: an additive bonus in nats on the model's log-probability (popularity debias, boost, bid).

A search ranks prefixes long before it knows the item. So every node of the trie gets a bound, the largest bonus of a
living item below it, and a prefix counts as its score plus its bound. Seen from the search only the steps change:
a step from a prefix to its child costs the model's gain plus ``bound(child) - bound(prefix)``, which is again never
above 0. `BonusExpander` makes exactly that change, so that every search works on it as it is, and `exact` stays exact
(best-first search with an admissible bound: A*; the same shift as potential-based reward shaping, Ng et al. 1999).

Items of a bucket may differ in their bonus; a bucket counts as its best item until `collect_with_bonus` takes it apart.

    bonus = ItemBonus.build(trie, popularity_debias(train_counts, strength=0.3))
    bonus = ItemBonus.build(trie, log_factors(bids))  # rank by probability times bid
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llmrec.decode.expander import Expander, Expansion, Wanted
from llmrec.decode.result import Normalise, SearchResult
from llmrec.decode.trie import SIDTrie
from llmrec.decode.trie_filter import RowFilter
from llmrec.errors import InputError


@dataclass(frozen=True)
class ItemBonus:
    """A bonus per item and its bounds, for one version of a trie; build it with `ItemBonus.build`.

    Attributes:
        trie: the version whose living items the bounds are of.
        values: (num_items,) float64 bonus of each row, in nats.
        bounds: per level 0..L the largest bonus of a living item below each node, -inf where none lives.
    """

    trie: SIDTrie
    values: np.ndarray
    bounds: tuple[np.ndarray, ...]

    @classmethod
    def build(cls, trie: SIDTrie, values: np.ndarray) -> ItemBonus:
        """Take the maximum at every node, from the leaves up; as fast as counting the living items.

        Args:
            trie: a version; when items are switched on or off, build again for the new one.
            values: (num_items,) bonus of each row, in nats: +0.69 ranks an item as if it were twice as likely.

        Raises:
            InputError: not one finite number per row.
        """
        given = np.asarray(values)
        if given.shape != (trie.num_items,) or given.dtype.kind not in "fiu" or not np.isfinite(given).all():
            wrong = int((~np.isfinite(given)).sum()) if given.dtype.kind == "f" else 0
            raise InputError(
                f"A bonus needs one finite number for each of the {trie.num_items} rows; given {given.dtype} "
                f"{given.shape}, {wrong} of them not finite.",
                hint="to keep items out of the result use a filter, not a bonus of -inf",
            )
        own = given.astype(np.float64)
        bounds = [np.maximum.reduceat(np.where(trie.alive, own, -np.inf)[trie.items], trie.item_start[:-1])]
        for start in reversed(trie.child_start):
            bounds.append(np.maximum.reduceat(bounds[-1], start[:-1]))
        return cls(trie, own, tuple(reversed(bounds)))

    def bound(self, level: int, nodes: np.ndarray) -> np.ndarray:
        """(m,) the largest bonus of a living item below each of `nodes`, whatever a request filters out."""
        largest: np.ndarray = self.bounds[level][nodes]
        return largest

    def of_rows(self, rows: np.ndarray) -> np.ndarray:
        """(m,) bonus of each of `rows`."""
        own: np.ndarray = self.values[rows]
        return own

    def of_leaves(self, leaves: np.ndarray, allowed: RowFilter | None) -> np.ndarray:
        """(m,) the largest bonus of an item of each bucket that `allowed` leaves; each bucket must have one."""
        level = self.trie.num_levels
        best = self.bound(level, leaves)
        if allowed is not None:
            living = self.trie.num_living(level, leaves)
            for place in np.flatnonzero(self.trie.num_living(level, leaves, allowed) < living):
                best[place] = self.values[self.trie.members(int(leaves[place]), allowed)].max()
        return best


class BonusExpander:
    """An expander whose gains carry a bonus: the sum along a path is ``score + bound(node) - bound(root)``.

    Inner bounds do not know a request's filter: an item that is filtered out can hold a place in a beam for its
    prefix. The bounds of leaves do know it, so that `exact` stays exact.

    Args:
        inner: the prompts.
        bonus: built for the very version of the trie that `inner` searches.

    Raises:
        InputError: the bonus belongs to another version.
    """

    def __init__(self, inner: Expander, bonus: ItemBonus) -> None:
        if bonus.trie is not inner.trie:
            raise InputError(
                "The bonus was built for another version of the trie than the one that is searched.",
                hint="ItemBonus.build(trie, bonus.values) for this version",
            )
        self.trie = inner.trie
        self.normalise: Normalise = inner.normalise
        self._inner, self._bonus = inner, bonus

    @property
    def num_prompts(self) -> int:
        """Prompts of the batch."""
        return self._inner.num_prompts

    @property
    def num_forwards(self) -> int:
        """Forwards since the prompts were read."""
        return self._inner.num_forwards

    def expand(
        self, wanted: Sequence[Wanted], filters: Sequence[RowFilter | None], top: int | None = None
    ) -> list[Expansion]:
        """As `Expander.expand`. All children are asked for: the model's best need not be the best with a bonus."""
        found = self._inner.expand(wanted, filters)
        return [self._shift(*one) for one in zip(wanted, found, filters, strict=True)]

    def _shift(self, wanted: Wanted, found: Expansion, allowed: RowFilter | None) -> Expansion:
        levels, nodes = wanted
        shift = np.empty(len(found.node))
        below = levels[found.owner] + 1
        for level in np.unique(below).tolist():
            here = np.flatnonzero(below == level)
            children, parents = found.node[here], nodes[found.owner[here]]
            is_leaf = level == self.trie.num_levels
            reached = self._bonus.of_leaves(children, allowed) if is_leaf else self._bonus.bound(level, children)
            shift[here] = reached - self._bonus.bound(level - 1, parents)
        return Expansion(found.owner, found.node, found.gain + shift)


@dataclass(frozen=True)
class BonusResult(SearchResult):
    """A result that is ordered by score plus bonus; `scores` stay the model's log-probabilities.

    Attributes:
        ranked_by: (m,) score plus bonus of each item, descending. Items of a bucket need not be neighbours.
    """

    ranked_by: np.ndarray


def collect_with_bonus(
    bonus: ItemBonus,
    allowed: RowFilter | None,
    leaves: np.ndarray,
    totals: np.ndarray,
    *,
    top_k: int,
    normalise: Normalise,
    num_forwards: int,
) -> BonusResult:
    """`collect` for a search over a `BonusExpander`: take buckets apart and rank the items.

    The best `top_k` items lie in the best `top_k` leaves: a leaf counts as its best item, and each better leaf has one.

    Args:
        bonus: what the expander carried.
        allowed: the prompt's filter.
        leaves: (n,) leaves, each with an item that `allowed` leaves.
        totals: (n,) what the search summed up for them.
        top_k: items to return.
        normalise: what scores are normalised over.
        num_forwards: forwards of the search.
    """
    buckets = [bonus.trie.members(int(leaf), allowed) for leaf in leaves]
    rows = np.concatenate([np.zeros(0, dtype=np.int64), *buckets])
    bucket_of = np.repeat(np.arange(len(buckets)), [len(bucket) for bucket in buckets])
    scores = totals - bonus.of_leaves(leaves, allowed) + bonus.bound(0, np.zeros(1, dtype=np.int64))
    ranked_by = scores[bucket_of] + bonus.of_rows(rows)
    best = np.lexsort((rows, leaves[bucket_of], -ranked_by))[:top_k]  # ties: lower code path, then lower row
    touched, place = np.unique(bucket_of[best], return_inverse=True)
    return BonusResult(
        items=rows[best],
        scores=scores[bucket_of[best]],
        bucket_of=place,
        buckets=tuple(buckets[i] for i in touched),
        normalise=normalise,
        num_forwards=num_forwards,
        ranked_by=ranked_by[best],
    )


def popularity_debias(counts: np.ndarray, strength: float) -> np.ndarray:
    """``-strength * log(count + 1)``: what popularity alone explains no longer ranks an item.

    Post-hoc logit adjustment (Menon et al., "Long-tail learning via logit adjustment", ICLR 2021, section 4.1; their
    tau), with one count added so that new items stay finite.

    Args:
        counts: (num_items,) events of each row in the training part; never of the test part.
        strength: 0 changes nothing; 1 ranks by how much likelier the history makes an item than its popularity.

    Raises:
        InputError: a negative or non-finite count or a non-finite strength.
    """
    given = np.asarray(counts, dtype=np.float64)
    if not (np.isfinite(given).all() and (given >= 0).all() and np.isfinite(strength)):
        raise InputError("popularity_debias needs counts of at least 0 and a finite strength.")
    adjusted: np.ndarray = -strength * np.log1p(given)
    return adjusted


def log_factors(factors: np.ndarray) -> np.ndarray:
    """A bonus that multiplies: an item of factor 2 ranks as if it were twice as likely.

    With an item's bid or margin as its factor the ranking is by expected revenue; a boosted brand gets 1.2, all others
    1. How much a factor of 2 moves depends on `normalise`: it weighs against probabilities as that spreads them.

    Args:
        factors: (num_items,) positive numbers.

    Raises:
        InputError: a factor that is not positive and finite.
    """
    given = np.asarray(factors, dtype=np.float64)
    wrong = np.flatnonzero(~((given > 0) & np.isfinite(given)))
    if wrong.size:
        raise InputError(
            f"{wrong.size} of {given.size} factors are not positive and finite; the first is row {wrong[0]}.",
            hint="an item that must not be returned belongs into a filter",
        )
    return np.log(given)
