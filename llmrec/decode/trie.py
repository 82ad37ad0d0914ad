"""`SIDTrie`: the prefix tree of all Semantic IDs as flat sorted arrays, with living items counted at every node.

Nodes of one level are numbered in the order of their code paths, so the children of a node are contiguous (CSR),
and "lower node" means "lower code path": the tie rule of the searches. Level 0 is the root, level `num_levels`
holds the leaves; items that share a SID share a leaf (a bucket). Every node knows how many living items lie below
it, so that filters prune *before* the choice: a search that only walks over nodes with a living item can neither
name an item that does not exist nor starve. What a single request excludes is a sparse `Exclusion`, whose cost
grows with the excluded items and not with the catalogue.

The flat layout follows "Vectorizing the Trie" (STATIC, youtube/static-constraint-decoding); counts per node, buckets
and per-request exclusions are ours.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llmrec.decode.trie_filter import Exclusion, RowFilter
from llmrec.errors import InputError


@dataclass(frozen=True)
class Children:
    """Children of a list of nodes, flat: entry ``i`` is a child of the list's element ``owner[i]``.

    Attributes:
        owner: (m,) position of the parent in the list that was asked for, ascending.
        node: (m,) node number at the next level, ascending within an owner.
        code: (m,) the code that leads there.
    """

    owner: np.ndarray
    node: np.ndarray
    code: np.ndarray


@dataclass(frozen=True)
class SIDTrie:
    """Prefix tree over the rows of a SID table; build it with `SIDTrie.build`.

    Attributes:
        codebook_sizes: codes per level.
        child_start: per level 0..L-1 offsets (nodes + 1,) into the nodes of the next level.
        parent: per level 0..L the parent of each node (the root's is 0).
        code: per level 0..L the last code of each node (the root's is 0).
        leaf_of: (num_items,) the leaf of each row.
        item_start: (leaves + 1,) offsets into `items`.
        items: (num_items,) rows, by leaf and then ascending.
        alive: (num_items,) which rows may be returned.
        living: per level 0..L the number of living items below each node.
    """

    codebook_sizes: tuple[int, ...]
    child_start: tuple[np.ndarray, ...]
    parent: tuple[np.ndarray, ...]
    code: tuple[np.ndarray, ...]
    leaf_of: np.ndarray
    item_start: np.ndarray
    items: np.ndarray
    alive: np.ndarray
    living: tuple[np.ndarray, ...]

    @classmethod
    def build(cls, codes: np.ndarray, codebook_sizes: Sequence[int], alive: np.ndarray | None = None) -> SIDTrie:
        """Sort the code paths and number their prefixes.

        Args:
            codes: (n, L) integers, row i the SID of item i; equal rows share a bucket.
            codebook_sizes: L codebook sizes.
            alive: (n,) bool, which items a search may return; all of them if None.

        Raises:
            InputError: there is no item, a shape does not fit, or a code lies outside of its codebook.
        """
        sizes = tuple(int(size) for size in codebook_sizes)
        if codes.ndim != 2 or codes.shape[0] == 0 or codes.shape[1] != len(sizes) or not sizes:
            raise InputError(
                f"A trie needs codes of shape (items, levels) with at least one item; "
                f"given {codes.shape} for {len(sizes)} codebooks."
            )
        wrong = np.flatnonzero(((codes < 0) | (codes >= np.asarray(sizes))).any(axis=1))
        if wrong.size:
            raise InputError(
                f"{wrong.size} of {len(codes)} items have a code outside of its codebook; the first is row {wrong[0]}: "
                f"{codes[wrong[0]].tolist()} for the codebook sizes {sizes}."
            )
        # lexsort is stable: rows stay ascending within a bucket. Its last key is the first criterion.
        order = np.lexsort(codes.T[::-1])
        ordered = codes[order]
        changed = np.ones((len(codes), len(sizes)), dtype=bool)
        changed[1:] = np.logical_or.accumulate(ordered[1:] != ordered[:-1], axis=1)

        parent, code, child_start = [np.zeros(1, dtype=np.int64)], [np.zeros(1, dtype=np.int32)], []
        above = np.zeros(len(codes), dtype=np.int64)  # node of each ordered item at the level before
        for level in range(len(sizes)):
            first = np.flatnonzero(changed[:, level])  # first ordered item of each node of level + 1
            parent.append(above[first])
            code.append(ordered[first, level].astype(np.int32))
            child_start.append(np.searchsorted(parent[-1], np.arange(len(parent[-2]) + 1)))
            above = np.cumsum(changed[:, level]) - 1
        leaf_of = np.empty(len(codes), dtype=np.int64)
        leaf_of[order] = above
        bare = cls(
            codebook_sizes=sizes,
            child_start=tuple(child_start),
            parent=tuple(parent),
            code=tuple(code),
            leaf_of=leaf_of,
            item_start=np.searchsorted(above, np.arange(len(parent[-1]) + 1)),
            items=order.astype(np.int64),
            alive=np.zeros(len(codes), dtype=bool),
            living=(),
        )
        return bare.with_alive(np.ones(len(codes), dtype=bool) if alive is None else alive)

    def with_alive(self, alive: np.ndarray) -> SIDTrie:
        """The same structure with other living items (arrays are shared, only the counts are new).

        Args:
            alive: (num_items,) bool.
        """
        if alive.shape != (self.num_items,) or alive.dtype != bool:
            raise InputError(
                f"The alive mask must be a bool array of shape ({self.num_items},); given {alive.dtype} {alive.shape}."
            )
        counts = [_sums(alive[self.items], self.item_start)]
        for start in reversed(self.child_start):
            counts.append(_sums(counts[-1], start))
        return dataclasses.replace(self, alive=alive.copy(), living=tuple(reversed(counts)))

    @property
    def num_items(self) -> int:
        """Rows of the table, living or not."""
        return len(self.items)

    @property
    def num_levels(self) -> int:
        """Codes per SID."""
        return len(self.codebook_sizes)

    def exclusion(self, rows: np.ndarray | Sequence[int]) -> Exclusion:
        """Prepare the exclusion of `rows` (repeats and dead rows are harmless) for the searches.

        Raises:
            InputError: a row is not in the table.
        """
        asked = np.unique(np.asarray(rows, dtype=np.int64))
        if asked.size and (asked[0] < 0 or asked[-1] >= self.num_items):
            raise InputError(
                f"Excluded rows must lie in 0..{self.num_items - 1}; given {asked[0]}..{asked[-1]}.",
                hint="exclusions are rows of the SID table, not item ids and not places in the split",
            )
        asked = asked[self.alive[asked]]
        nodes, counts = np.unique(self.leaf_of[asked], return_counts=True)
        levels = [(nodes, counts)]
        for level in range(self.num_levels, 0, -1):
            above, inverse = np.unique(self.parent[level][levels[-1][0]], return_inverse=True)
            total = np.bincount(inverse, weights=levels[-1][1], minlength=len(above)).astype(np.int64)
            levels.append((above, total))
        levels.reverse()
        return Exclusion(asked, tuple(node for node, _ in levels), tuple(count for _, count in levels))

    def num_living(self, level: int, nodes: np.ndarray, allowed: RowFilter | None = None) -> np.ndarray:
        """Living items below each of `nodes` that `allowed` leaves."""
        counts: np.ndarray = self.living[level][nodes]
        return counts if allowed is None else allowed.num_living(level, nodes, counts)

    def children(self, level: int, nodes: np.ndarray, allowed: RowFilter | None = None) -> Children:
        """Children at ``level + 1`` of the `nodes` of `level` that still hold a living item."""
        owner, node = _ranges(self.child_start[level], nodes)
        keep = self.num_living(level + 1, node, allowed) > 0
        node = node[keep]
        return Children(owner[keep], node, self.code[level + 1][node])

    def parents(self, level: int, nodes: np.ndarray) -> np.ndarray:
        """The parent, at ``level - 1``, of each of `nodes`."""
        above: np.ndarray = self.parent[level][nodes]
        return above

    def codes_of(self, level: int, nodes: np.ndarray) -> np.ndarray:
        """The last code of each of `nodes`."""
        last: np.ndarray = self.code[level][nodes]
        return last

    def step(self, level: int, nodes: np.ndarray, codes: np.ndarray) -> np.ndarray:
        """The child that `codes` lead to from `nodes`, living or not; -1 where there is none."""
        owner, node = _ranges(self.child_start[level], nodes)
        hit = self.code[level + 1][node] == codes[owner]
        result = np.full(len(nodes), -1, dtype=np.int64)
        result[owner[hit]] = node[hit]
        return result

    def paths(self, level: int, nodes: np.ndarray) -> np.ndarray:
        """(len(nodes), level) codes from the root to each node."""
        codes = np.empty((len(nodes), level), dtype=np.int32)
        for depth in range(level, 0, -1):
            codes[:, depth - 1] = self.code[depth][nodes]
            nodes = self.parent[depth][nodes]
        return codes

    def members(self, leaf: int, allowed: RowFilter | None = None) -> np.ndarray:
        """Living rows of a bucket that `allowed` leaves, ascending."""
        rows: np.ndarray = self.items[self.item_start[leaf] : self.item_start[leaf + 1]]
        rows = rows[self.alive[rows]]
        return rows if allowed is None else rows[allowed.keeps(rows)]


def _sums(values: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Sums of `values` between consecutive offsets."""
    total = np.zeros(len(values) + 1, dtype=np.int64)
    np.cumsum(values, out=total[1:])
    difference: np.ndarray = total[start[1:]] - total[start[:-1]]
    return difference


def _ranges(start: np.ndarray, which: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Concatenated ranges ``start[i]:start[i + 1]`` for i in `which`, with the place in `which` of each element."""
    begin, size = start[which], start[which + 1] - start[which]
    owner = np.repeat(np.arange(len(which)), size)
    offset = np.cumsum(size) - size
    return owner, np.arange(len(owner)) - offset[owner] + begin[owner]
