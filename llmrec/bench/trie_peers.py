"""Other ways to hold legal Semantic IDs, written again for benchmark ``trie``: what each selects, builds and weighs.

Every way answers the same question of a level: from these prefixes and the scores of all codes after them, which are
the best legal continuations? Filters, living items and rows behind a SID are known to ours alone; the peers only know
which codes may follow. All of it is numpy, the choice of the best is the same function, and where a peer's own code is
slower for reasons that are not its layout (string keys, tensors of the whole vocabulary), the faster way is taken.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from llmrec.decode import SIDTrie
from llmrec.decode.result import best_first
from llmrec.decode.trie_filter import RowFilter


@dataclass(frozen=True)
class Selected:
    """The best continuations, best first.

    Attributes:
        owner: (m,) place of the prefix among those that were given.
        code: (m,) the code that follows it.
        state: the m longer prefixes, in the form that the next level takes.
    """

    owner: np.ndarray
    code: np.ndarray
    state: Any


class Way(Protocol):
    """One way to hold the legal SIDs."""

    def state(self, prefixes: np.ndarray) -> Any:
        """(m, level) codes of legal prefixes in the form that `select` takes; not measured."""

    def select(self, level: int, state: Any, table: np.ndarray, scores: np.ndarray, count: int) -> Selected:
        """The `count` best legal continuations.

        Args:
            level: length of the prefixes.
            state: the m prefixes.
            table: (m, codes) scores of every code after each prefix.
            scores: (m,) of the prefixes themselves.
            count: how many to return.
        """


@dataclass(frozen=True)
class Ours:
    """`SIDTrie`, with the filter of a request."""

    trie: SIDTrie
    allowed: RowFilter | None = None

    def state(self, prefixes: np.ndarray) -> np.ndarray:
        """Node numbers."""
        nodes = np.zeros(len(prefixes), dtype=np.int64)
        for level, codes in enumerate(prefixes.T):
            nodes = self.trie.step(level, nodes, codes)
        return nodes

    def select(self, level: int, state: np.ndarray, table: np.ndarray, scores: np.ndarray, count: int) -> Selected:
        """List the children, gather their scores, choose."""
        found = self.trie.children(level, state, self.allowed)
        total = scores[found.owner] + table.ravel()[found.owner * table.shape[1] + found.code]
        best = best_first(total, found.node, count)
        return Selected(found.owner[best], found.code[best], found.node[best])


class DictTrie:
    """A dict of dicts, as GENRE's trie has it.

    Args:
        codes: (n, L) SIDs.
    """

    def __init__(self, codes: np.ndarray) -> None:
        self.root: dict[int, Any] = {}
        for sid in codes.tolist():
            node = self.root
            for code in sid:
                node = node.setdefault(code, {})

    @cached_property
    def nbytes(self) -> int:
        """Of all dicts; small integers are shared."""
        total, level = 0, [self.root]
        while level:
            total += sum(map(sys.getsizeof, level))
            level = [child for node in level for child in node.values()]
        return total

    def state(self, prefixes: np.ndarray) -> list[dict[int, Any]]:
        """The dicts that the prefixes lead to."""
        nodes = []
        for prefix in prefixes.tolist():
            node = self.root
            for code in prefix:
                node = node[code]
            nodes.append(node)
        return nodes

    def select(
        self, level: int, state: list[dict[int, Any]], table: np.ndarray, scores: np.ndarray, count: int
    ) -> Selected:
        """Collect the keys of every dict, gather their scores, choose."""
        owner = np.repeat(np.arange(len(state)), [len(node) for node in state])
        code = np.array([key for node in state for key in node])
        total = scores[owner] + table.ravel()[owner * table.shape[1] + code]
        best = best_first(total, np.arange(len(owner)), count)
        owner, code = owner[best], code[best]
        return Selected(owner, code, [state[i][key] for i, key in zip(owner.tolist(), code.tolist(), strict=True)])


class PrefixHash:
    """A hash from every prefix to the codes that may follow it, as MiniOneRec's logits processor has it.

    Its keys are texts of token ids; tuples of codes, as here, are faster to make.

    Args:
        codes: (n, L) SIDs.
    """

    def __init__(self, codes: np.ndarray) -> None:
        sets: dict[tuple[int, ...], set[int]] = {}
        for sid in map(tuple, codes.tolist()):
            for level, code in enumerate(sid):
                sets.setdefault(sid[:level], set()).add(code)
        self.allowed = {prefix: list(after) for prefix, after in sets.items()}

    @cached_property
    def nbytes(self) -> int:
        """Of the hash, its keys and its lists; small integers are shared."""
        inside = sum(sys.getsizeof(prefix) + sys.getsizeof(after) for prefix, after in self.allowed.items())
        return sys.getsizeof(self.allowed) + inside

    def state(self, prefixes: np.ndarray) -> list[tuple[int, ...]]:
        """The prefixes as tuples."""
        return [tuple(prefix) for prefix in prefixes.tolist()]

    def select(
        self, level: int, state: list[tuple[int, ...]], table: np.ndarray, scores: np.ndarray, count: int
    ) -> Selected:
        """Open a mask row by row, add it to all scores, choose among all."""
        mask = np.full_like(table, -np.inf)
        for row, prefix in enumerate(state):
            mask[row, self.allowed[prefix]] = 0.0
        total = (table + mask + scores[:, None]).ravel()
        best = best_first(total, np.arange(len(total)), count)
        owner, code = np.divmod(best[total[best] > -np.inf], table.shape[1])
        return Selected(owner, code, [(*state[i], key) for i, key in zip(owner.tolist(), code.tolist(), strict=True)])


class Static:
    """STATIC's layout: dense masks for two levels, then one CSR of (code, next state) pairs gathered at full width.

    After "Vectorizing the Trie" (youtube/static-constraint-decoding, `csr_utils.build_static_index` and
    `decoding_pt.generate_and_apply_logprobs_mask`), with its recommended two dense levels.

    Args:
        codes: (n, L) SIDs in the order of their paths, as its builder asks for; L > 2.
        codebook_size: codes of every level.
    """

    def __init__(self, codes: np.ndarray, codebook_size: int) -> None:
        num_items, num_levels = codes.shape
        new = np.ones((num_levels, num_items), dtype=bool)  # a sorted SID that begins a prefix of this length
        for level in range(num_levels):
            changed = codes[1:, level] != codes[:-1, level]
            new[level, 1:] = changed if level == 0 else changed | new[level - 1, 1:]
        state = codes[:, 0].astype(np.int32) + 1  # of every SID at the level before
        num_states = codebook_size + 1
        parents, tokens, children, first_states = [], [], [], [1]  # the first state of each level
        for level in range(1, num_levels):
            edge = new[level]
            if level < num_levels - 1:
                after = np.cumsum(edge, dtype=np.int32)
                after += num_states - 1
                first_states.append(num_states)
                num_states = int(after[-1]) + 1
            else:
                after = np.zeros(num_items, dtype=np.int32)
            parents.append(state[edge])
            tokens.append(codes[edge, level])
            children.append(after[edge])
            if level == 1:
                self.dense_mask = np.zeros((codebook_size, codebook_size), dtype=bool)
                self.dense_states = np.zeros((codebook_size, codebook_size), dtype=np.int32)
                self.dense_mask[codes[:, 0], codes[:, 1]] = True
                self.dense_states[codes[:, 0], codes[:, 1]] = after
            state = after
        self.start_mask = np.zeros(codebook_size, dtype=bool)
        self.start_mask[codes[:, 0]] = True
        branches = np.bincount(np.concatenate(parents), minlength=num_states)
        self.indptr = np.zeros(num_states + 1, dtype=np.int32)
        np.cumsum(branches, out=self.indptr[1:])
        # A full-width gather may run over the end: a codebook of padding, as theirs has.
        padding = np.zeros(codebook_size, dtype=np.int32)
        self.packed = np.stack(
            [np.concatenate([*tokens, padding]).astype(np.int32), np.concatenate([*children, padding])], axis=1
        )
        self.widest = np.maximum.reduceat(branches, first_states).tolist()  # most children of a state of levels 1..L-1

    @property
    def nbytes(self) -> int:
        """Of its five arrays."""
        arrays = (self.start_mask, self.dense_mask, self.dense_states, self.indptr, self.packed)
        return sum(array.nbytes for array in arrays)

    def state(self, prefixes: np.ndarray) -> np.ndarray:
        """State numbers."""
        if prefixes.shape[1] == 0:
            return np.zeros(len(prefixes), dtype=np.int32)
        states = prefixes[:, 0].astype(np.int32) + 1
        for level in range(1, prefixes.shape[1]):
            for row, code in enumerate(prefixes[:, level]):
                begin, end = self.indptr[states[row]], self.indptr[states[row] + 1]
                place = begin + np.searchsorted(self.packed[begin:end, 0], code)
                states[row] = self.packed[place, 1]
        return states

    def select(self, level: int, state: np.ndarray, table: np.ndarray, scores: np.ndarray, count: int) -> Selected:
        """Mask all codes of the first two levels; gather as many pairs as the widest node has from then on."""
        if level < 2:
            legal = self.start_mask[None] if level == 0 else self.dense_mask[state - 1]
            total = (np.where(legal, table, -np.inf) + scores[:, None]).ravel()
            best = self._best(total, count)
            owner, code = np.divmod(best, table.shape[1])
            return Selected(owner, code, code + 1 if level == 0 else self.dense_states[state[owner] - 1, code])
        begin = self.indptr[state]
        offset = np.arange(self.widest[level - 1])
        pairs = self.packed[begin[:, None] + offset]
        gathered = np.take_along_axis(table, pairs[..., 0].astype(np.int64), axis=1)
        inside = offset < (self.indptr[state + 1] - begin)[:, None]
        best = self._best((np.where(inside, gathered, -np.inf) + scores[:, None]).ravel(), count)
        owner, place = np.divmod(best, len(offset))
        return Selected(owner, pairs[owner, place, 0], pairs[owner, place, 1])

    @staticmethod
    def _best(total: np.ndarray, count: int) -> np.ndarray:
        best = best_first(total, np.arange(len(total)), count)
        legal: np.ndarray = best[total[best] > -np.inf]
        return legal
