"""`SIDTrie`: the prefix tree of all Semantic IDs as flat sorted arrays, with living items counted at every node.

Nodes of one level are numbered in the order of their code paths, so the children of a node are contiguous (CSR),
and "lower node" means "lower code path": the tie rule of the searches. Level 0 is the root, level `num_levels`
holds the leaves; items that share a SID share a leaf (a bucket). Every node knows how many living items lie below
it, so that filters prune *before* the choice: a search that only walks over nodes with a living item can neither
name an item that does not exist nor starve. What a single request excludes or allows is a sparse filter, whose cost
grows with its rows and not with the catalogue (`llmrec.decode.trie_filter`).

A trie never changes. `with_alive` and `with_switched` return another version that shares the structure, so that a
request may keep the version it began with.

The flat layout follows "Vectorizing the Trie" (STATIC, youtube/static-constraint-decoding); counts per node, buckets,
versions and per-request filters are ours. Numbers are 32 bits wide, codes 8 where the codebook allows it, and there
is no array of parents: a binary search in `child_start` finds them (docs/decisions/0007-trie-layout.md).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llmrec.decode.trie_build import number_prefixes
from llmrec.decode.trie_filter import Allowance, Exclusion, RowCounts, RowFilter, living_between, ranges
from llmrec.errors import InputError

_MAX_ITEMS = np.iinfo(np.int32).max


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
    """Prefix tree over the rows of a SID table; build it with `SIDTrie.build`. Arrays are read-only.

    Attributes:
        codebook_sizes: codes per level.
        child_start: per level 0..L-1 int32 offsets (nodes + 1,) into the nodes of the next level.
        code: per level 0..L the last code of each node, in the smallest unsigned type; read it by `codes_of`.
        leaf_of: (num_items,) int32, the leaf of each row.
        item_start: (leaves + 1,) int32 offsets into `items`.
        items: (num_items,) int32 rows, by leaf and then ascending.
        alive: (num_items,) bool, which rows may be returned.
        living: per level 0..L the int32 number of living items below each node.
    """

    codebook_sizes: tuple[int, ...]
    child_start: tuple[np.ndarray, ...]
    code: tuple[np.ndarray, ...]
    leaf_of: np.ndarray
    item_start: np.ndarray
    items: np.ndarray
    alive: np.ndarray
    living: tuple[np.ndarray, ...]

    def __post_init__(self) -> None:
        for array in self._arrays():
            array.flags.writeable = False

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
        if codes.ndim != 2 or not 0 < len(codes) <= _MAX_ITEMS or codes.shape[1] != len(sizes) or not sizes:
            raise InputError(
                f"A trie needs codes of shape (items, levels) with at least one item and at most {_MAX_ITEMS:,}; "
                f"given {codes.shape} for {len(sizes)} codebooks."
            )
        if codes.dtype.kind not in "iu":
            raise InputError(f"Codes must be integers; given {codes.dtype}.")
        columns = np.ascontiguousarray(codes.T)  # 10 ms of copying 1 million items save 70 ms in what follows
        if (columns.min(axis=1) < 0).any() or (columns.max(axis=1) >= sizes).any():
            wrong = np.flatnonzero(((codes < 0) | (codes >= np.asarray(sizes))).any(axis=1))
            raise InputError(
                f"{wrong.size} of {len(codes)} items have a code outside of its codebook; the first is row {wrong[0]}: "
                f"{codes[wrong[0]].tolist()} for the codebook sizes {sizes}."
            )
        built = number_prefixes(columns, sizes)
        bare = cls(
            codebook_sizes=sizes,
            child_start=built.child_start,
            code=built.code,
            leaf_of=built.leaf_of,
            item_start=built.item_start,
            items=built.items,
            alive=np.zeros(len(codes), dtype=bool),
            living=(),
        )
        return bare.with_alive(np.ones(len(codes), dtype=bool) if alive is None else alive)

    def with_alive(self, alive: np.ndarray) -> SIDTrie:
        """A version with other living items: the structure is shared, the counts are new.

        Args:
            alive: (num_items,) bool.
        """
        self._check_mask("alive", alive)
        counts = [np.add.reduceat(alive[self.items], self.item_start[:-1], dtype=np.int32)]
        for start in reversed(self.child_start):
            counts.append(np.add.reduceat(counts[-1], start[:-1], dtype=np.int32))
        return dataclasses.replace(self, alive=alive.copy(), living=tuple(reversed(counts)))

    def with_switched(self, rows: np.ndarray | Sequence[int], alive: bool) -> SIDTrie:
        """A version with `rows` switched on or off; rows that already are harmless.

        Only the nodes above them are counted again, which is much faster than `with_alive` for a few rows.

        Args:
            rows: rows of the table, or a mask of them (num_items,).
            alive: whether these rows may be returned from now on.

        Raises:
            InputError: a row is not in the table.
        """
        asked = self._rows("switched", rows)
        change = self._count(asked[self.alive[asked] != alive])
        mask, living = self.alive.copy(), tuple(counts.copy() for counts in self.living)
        mask[change.rows] = alive
        for counts, nodes, below in zip(living, change.nodes, change.counts, strict=True):
            counts[nodes] += below if alive else -below
        return dataclasses.replace(self, alive=mask, living=living)

    @property
    def num_items(self) -> int:
        """Rows of the table, living or not."""
        return len(self.items)

    @property
    def num_levels(self) -> int:
        """Codes per SID."""
        return len(self.codebook_sizes)

    @property
    def nbytes(self) -> int:
        """Memory of all arrays; versions of one structure share all but `alive` and `living`."""
        return sum(array.nbytes for array in self._arrays())

    def num_nodes(self, level: int) -> int:
        """Prefixes of length `level`, with living items or without."""
        return len(self.code[level])

    def exclusion(self, rows: np.ndarray | Sequence[int], within: RowFilter | None = None) -> Exclusion:
        """A filter that takes `rows` out; repeats and dead rows are harmless.

        Args:
            rows: rows of the table, or a mask of them (num_items,).
            within: a filter of this trie that holds besides; the rows are taken from what it leaves.

        Raises:
            InputError: a row is not in the table, or `within` was made for another version.
        """
        excluded = self._count(self._usable("excluded", rows, within))
        exhausted = tuple(
            nodes[self.num_living(level, nodes, within) == counts]
            for level, (nodes, counts) in enumerate(zip(excluded.nodes, excluded.counts, strict=True))
        )
        return Exclusion(self.alive, excluded, exhausted, within)

    def allowance(self, rows: np.ndarray | Sequence[int], within: RowFilter | None = None) -> RowFilter:
        """A filter that leaves the living ones of `rows` alone: a category, a price band, any mask.

        It costs as much as there are allowed rows, or rows to exclude where those are fewer (of 1 million items 20 ms
        of CPU time for 100,000). Keep one that many requests share, and take each request's own items out of it with
        ``exclusion(rows, within=allowance)``.

        Args:
            rows: rows of the table, or a mask of them (num_items,).
            within: a filter of this trie that holds besides.

        Raises:
            InputError: a row is not in the table, or `within` was made for another version.
        """
        allowed = self._usable("allowed", rows, within)
        if 2 * len(allowed) > self.living[0][0]:
            rest = self.alive.copy()
            rest[allowed] = False
            return self.exclusion(rest, within)
        return Allowance(self.alive, self._count(allowed))

    def num_living(self, level: int, nodes: np.ndarray, allowed: RowFilter | None = None) -> np.ndarray:
        """Living items below each of `nodes` that `allowed` leaves."""
        self._check_version(allowed)
        living = self.living[level]
        counts: np.ndarray = living[nodes] if allowed is None else allowed.num_living(level, nodes, living)
        return counts

    def children(self, level: int, nodes: np.ndarray, allowed: RowFilter | None = None) -> Children:
        """Children at ``level + 1`` of the `nodes` of `level` that still hold a living item that `allowed` leaves."""
        self._check_version(allowed)
        start = self.child_start[level]
        between = living_between if allowed is None else allowed.between
        owner, node = between(level + 1, start[nodes], start[nodes + 1], self.living[level + 1])
        return Children(owner, node, self.codes_of(level + 1, node))

    def parents(self, level: int, nodes: np.ndarray) -> np.ndarray:
        """The parent, at ``level - 1``, of each of `nodes`."""
        # Every node has a child, so offsets ascend strictly. Of another type, all offsets would be converted first.
        above: np.ndarray = np.searchsorted(self.child_start[level - 1], nodes.astype(np.int32), side="right") - 1
        return above

    def codes_of(self, level: int, nodes: np.ndarray) -> np.ndarray:
        """The last code of each of `nodes`, int64."""
        codes: np.ndarray = self.code[level][nodes].astype(np.int64)
        return codes

    def step(self, level: int, nodes: np.ndarray, codes: np.ndarray) -> np.ndarray:
        """The child that `codes` lead to from `nodes`, living or not; -1 where there is none."""
        start = self.child_start[level]
        owner, node = ranges(start[nodes], start[nodes + 1])
        hit = self.code[level + 1][node] == codes[owner]
        result = np.full(len(nodes), -1, dtype=np.int64)
        result[owner[hit]] = node[hit]
        return result

    def paths(self, level: int, nodes: np.ndarray) -> np.ndarray:
        """(len(nodes), level) codes from the root to each node."""
        codes = np.empty((len(nodes), level), dtype=np.int32)
        for depth in range(level, 0, -1):
            codes[:, depth - 1] = self.code[depth][nodes]
            nodes = self.parents(depth, nodes)
        return codes

    def members(self, leaf: int, allowed: RowFilter | None = None) -> np.ndarray:
        """Living rows of a bucket that `allowed` leaves, ascending."""
        self._check_version(allowed)
        rows: np.ndarray = self.items[self.item_start[leaf] : self.item_start[leaf + 1]].astype(np.int64)
        rows = rows[self.alive[rows]]
        return rows if allowed is None else rows[allowed.keeps(rows)]

    def _count(self, rows: np.ndarray) -> RowCounts:
        """Count distinct `rows` at the nodes above them, from the leaves up."""
        nodes, counts = np.sort(self.leaf_of[rows]).astype(np.int64), np.ones(len(rows), dtype=np.int64)
        levels = []
        for level in range(self.num_levels, -1, -1):
            if level < self.num_levels:
                nodes = self.parents(level + 1, nodes)
            first = np.flatnonzero(np.diff(nodes, prepend=-1))
            nodes, counts = nodes[first], np.add.reduceat(counts, first) if len(first) else counts
            levels.append((nodes, counts))
        levels.reverse()
        return RowCounts(rows, tuple(nodes for nodes, _ in levels), tuple(counts for _, counts in levels))

    def _usable(self, what: str, rows: np.ndarray | Sequence[int], within: RowFilter | None) -> np.ndarray:
        """Those of `rows` that live and that `within` leaves."""
        self._check_version(within)
        asked = self._rows(what, rows)
        usable: np.ndarray = asked[self.alive[asked]]
        return usable if within is None else usable[within.keeps(usable)]

    def _rows(self, what: str, rows: np.ndarray | Sequence[int]) -> np.ndarray:
        """Distinct rows, ascending, from rows or a mask."""
        given = np.asarray(rows)
        if given.dtype == bool:
            self._check_mask(what, given)
            return np.flatnonzero(given)
        if given.ndim != 1 or (given.size and given.dtype.kind not in "iu"):
            raise InputError(f"{what.capitalize()} rows must be a list of integers or a bool mask; given {given!r}.")
        asked = np.sort(given.astype(np.int64))  # np.unique hashes first: 15 ms for 50,000 rows instead of 1
        asked = asked[np.diff(asked, prepend=-1) > 0] if asked.size and asked[0] >= 0 else asked
        if asked.size and (asked[0] < 0 or asked[-1] >= self.num_items):
            raise InputError(
                f"{what.capitalize()} rows must lie in 0..{self.num_items - 1}; given {asked[0]}..{asked[-1]}.",
                hint="they are rows of the SID table, not item ids and not places in the split",
            )
        return asked

    def _check_version(self, allowed: RowFilter | None) -> None:
        if allowed is not None and allowed.alive is not self.alive:
            raise InputError(
                "The filter was made for another version of the trie: its counts do not hold here.",
                hint="make filters with the trie that is searched; after a swap, make kept ones again",
            )

    def _check_mask(self, what: str, mask: np.ndarray) -> None:
        if mask.shape != (self.num_items,) or mask.dtype != bool:
            raise InputError(
                f"The {what} mask must be a bool array of shape ({self.num_items},); given {mask.dtype} {mask.shape}."
            )

    def _arrays(self) -> list[np.ndarray]:
        return [
            *(self.leaf_of, self.item_start, self.items, self.alive),
            *(*self.child_start, *self.code, *self.living),
        ]
