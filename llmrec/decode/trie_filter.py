"""Filters of a single request: which items it may not, or may only, return."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np


class RowFilter(Protocol):
    """What one request may return, as counts of items below each node."""

    def num_living(self, level: int, nodes: np.ndarray, living: np.ndarray) -> np.ndarray:
        """Items below each of `nodes` (any shape) that may be returned, given how many live there."""

    def keeps(self, rows: np.ndarray) -> np.ndarray:
        """(m,) bool: which of the living `rows` may be returned."""


@dataclass(frozen=True)
class Exclusion:
    """Items that one request may not return, as counts to subtract from the nodes above them.

    Attributes:
        rows: (m,) distinct living rows that are taken out, ascending.
        nodes: per level 0..num_levels the distinct nodes above these rows, ascending.
        counts: for each of `nodes`, how many of the rows lie below it.
    """

    rows: np.ndarray
    nodes: tuple[np.ndarray, ...]
    counts: tuple[np.ndarray, ...]

    def below(self, level: int, nodes: np.ndarray) -> np.ndarray:
        """How many excluded items lie below each of `nodes` (any shape)."""
        known, counts = self.nodes[level], self.counts[level]
        if not known.size:
            return np.zeros(nodes.shape, dtype=np.int64)
        place = np.minimum(np.searchsorted(known, nodes), known.size - 1)
        found: np.ndarray = np.where(known[place] == nodes, counts[place], 0)
        return found

    def num_living(self, level: int, nodes: np.ndarray, living: np.ndarray) -> np.ndarray:
        """Living items below each of `nodes` that are not excluded."""
        remaining: np.ndarray = living - self.below(level, nodes)
        return remaining

    def keeps(self, rows: np.ndarray) -> np.ndarray:
        """(m,) bool: which of `rows` are not excluded."""
        kept: np.ndarray = ~np.isin(rows, self.rows)
        return kept
