"""Filters of a single request: which items it may not, or may only, return.

A filter is sparse: it holds its rows and, for every node above one of them, how many lie below. It is made by
`SIDTrie.exclusion` or `SIDTrie.allowance`, belongs to that version of the trie (another one refuses it), never changes,
and may serve many requests. Filters nest: ``trie.exclusion(seen, within=trie.allowance(in_category))``. A subtree that
a filter leaves nothing of is no child any more, so that no beam is lost to it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np


class RowFilter(Protocol):
    """What one request may return, as counts of items below each node.

    ``living`` is an array of the trie: the living items below every node of `level`.
    """

    @property
    def alive(self) -> np.ndarray:
        """The trie's array of living rows, the very object: it tells for which version the filter was made."""

    def num_living(self, level: int, nodes: np.ndarray, living: np.ndarray) -> np.ndarray:
        """Items below each of `nodes` (any shape) that may be returned."""

    def between(
        self, level: int, begin: np.ndarray, end: np.ndarray, living: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Nodes of `level` in each range ``begin[i]:end[i]`` below which something may be returned.

        Returns:
            (m,) the range i of each node, ascending, and (m,) the nodes, ascending within a range; int64.
        """

    def keeps(self, rows: np.ndarray) -> np.ndarray:
        """(m,) bool: which of the living `rows` may be returned."""


@dataclass(frozen=True)
class RowCounts:
    """A set of rows, counted at the nodes above them.

    Attributes:
        rows: (m,) distinct rows, ascending.
        nodes: per level 0..num_levels the distinct nodes above these rows, ascending.
        counts: for each of `nodes`, how many of the rows lie below it.
    """

    rows: np.ndarray
    nodes: tuple[np.ndarray, ...]
    counts: tuple[np.ndarray, ...]

    def below(self, level: int, nodes: np.ndarray) -> np.ndarray:
        """How many of the rows lie below each of `nodes` (any shape)."""
        known, counts = self.nodes[level], self.counts[level]
        if not known.size:
            return np.zeros(nodes.shape, dtype=np.int64)
        place = np.minimum(np.searchsorted(known, nodes), known.size - 1)
        found: np.ndarray = np.where(known[place] == nodes, counts[place], 0)
        return found

    def has(self, rows: np.ndarray) -> np.ndarray:
        """(m,) bool: which of `rows` belong to the set."""
        if not self.rows.size:
            return np.zeros(rows.shape, dtype=bool)
        place = np.minimum(np.searchsorted(self.rows, rows), self.rows.size - 1)
        found: np.ndarray = self.rows[place] == rows
        return found


@dataclass(frozen=True)
class Allowance:
    """The only items that one request may return: the living ones among the rows that were given.

    It never looks at what else lives: listing the children of a node costs as much as there are allowed ones.

    Attributes:
        alive: which rows live in the version of the trie it was made for.
        allowed: what may be returned.
    """

    alive: np.ndarray
    allowed: RowCounts

    @property
    def rows(self) -> np.ndarray:
        """(m,) distinct living rows that may be returned, ascending."""
        return self.allowed.rows

    def num_living(self, level: int, nodes: np.ndarray, living: np.ndarray) -> np.ndarray:
        """Allowed items below each of `nodes`."""
        return self.allowed.below(level, nodes)

    def between(
        self, level: int, begin: np.ndarray, end: np.ndarray, living: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The nodes of each range that lie above an allowed item."""
        known = self.allowed.nodes[level]
        owner, place = ranges(np.searchsorted(known, begin), np.searchsorted(known, end))
        return owner, known[place].astype(np.int64)

    def keeps(self, rows: np.ndarray) -> np.ndarray:
        """(m,) bool: which of `rows` are allowed."""
        return self.allowed.has(rows)


@dataclass(frozen=True)
class Exclusion:
    """Items that one request may not return, as counts to subtract from the nodes above them.

    Attributes:
        alive: which rows live in the version of the trie it was made for.
        excluded: living rows that are taken out; those that `within` leaves, where there is one.
        exhausted: per level the nodes of which nothing is left, ascending.
        within: the filter from which they are taken out, None for all living items.
    """

    alive: np.ndarray
    excluded: RowCounts
    exhausted: tuple[np.ndarray, ...]
    within: RowFilter | None = None

    @property
    def rows(self) -> np.ndarray:
        """(m,) distinct rows that are taken out, ascending."""
        return self.excluded.rows

    def num_living(self, level: int, nodes: np.ndarray, living: np.ndarray) -> np.ndarray:
        """Items below each of `nodes` that are not excluded."""
        before = living[nodes] if self.within is None else self.within.num_living(level, nodes, living)
        left: np.ndarray = before - self.excluded.below(level, nodes)
        return left

    def between(
        self, level: int, begin: np.ndarray, end: np.ndarray, living: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The living nodes of each range without the exhausted ones; only those of the range are looked up."""
        inner = living_between if self.within is None else self.within.between
        owner, node = inner(level, begin, end, living)
        gone = self.exhausted[level]
        gone_owner, place = ranges(np.searchsorted(gone, begin), np.searchsorted(gone, end))
        if not place.size:
            return owner, node
        # (owner, node) ascends, and holds every exhausted node of a range: before this exclusion it had an item.
        size = len(living)
        keep = np.ones(len(node), dtype=bool)
        keep[np.searchsorted(owner * size + node, gone_owner * size + gone[place])] = False
        return owner[keep], node[keep]

    def keeps(self, rows: np.ndarray) -> np.ndarray:
        """(m,) bool: which of `rows` are not excluded."""
        kept: np.ndarray = ~self.excluded.has(rows)
        return kept if self.within is None else kept & self.within.keeps(rows)


def living_between(level: int, begin: np.ndarray, end: np.ndarray, living: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`RowFilter.between` of a request without a filter."""
    owner, node = ranges(begin, end)
    keep = living[node] > 0
    return (owner, node) if keep.all() else (owner[keep], node[keep])


def ranges(begin: np.ndarray, end: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Concatenated ranges ``begin[i]:end[i]``: the range i of each element, and the element; int64."""
    begin = begin.astype(np.int64)
    size = end - begin
    total = np.cumsum(size)
    owner = np.repeat(np.arange(len(size)), size)
    return owner, np.arange(len(owner)) + np.repeat(begin - total + size, size)
