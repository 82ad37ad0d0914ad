"""What a thought may hold, and where it ends: rules that a thought alone (`llmrec.decode.thought`) and a group of them
(`llmrec.decode.thought_group`) share.

A thought is words and *bare prefixes* of SIDs. A prefix is the beginning of a living item, short of a whole SID; a SID
token comes only where it begins a prefix or continues the one directly before it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from llmrec.decode.trie import SIDTrie

Prefix = tuple[int, int]
"""Level and node of the prefix at the end of a text."""

NO_PREFIX: Prefix = (0, 0)
"""Behind a word: the root of the trie."""


class ThoughtGrammar:
    """Rules over the items of one trie; it keeps no state, so that many thoughts share it.

    Args:
        trie: prefixes are those of its living items.
        token_ids: per level the token id of each code.
        closing_ids: the end of a thought; may be empty.
    """

    def __init__(self, trie: SIDTrie, token_ids: Sequence[np.ndarray], closing_ids: Sequence[int]) -> None:
        self.closing = [int(token_id) for token_id in closing_ids]
        self._trie = trie
        self._token_ids = token_ids
        self._every_sid = np.concatenate(token_ids)
        self._code = [{int(token_id): code for code, token_id in enumerate(ids)} for ids in token_ids]

    def forbidden(self, prefix: Prefix) -> np.ndarray:
        """All SID tokens but those that begin a prefix or continue `prefix`, short of a whole SID."""
        allowed = []
        for level, node in {NO_PREFIX, prefix}:
            if level + 1 < self._trie.num_levels:
                codes = self._trie.children(level, np.array([node])).code
                allowed.append(self._token_ids[level][codes])
        return np.setdiff1d(self._every_sid, np.concatenate(allowed)) if allowed else self._every_sid

    def after(self, prefix: Prefix, token_id: int) -> Prefix:
        """The prefix once `token_id` stands behind `prefix`."""
        for level, node in (prefix, NO_PREFIX):
            code = self._code[level].get(token_id)
            if code is not None:
                return level + 1, int(self._trie.step(level, np.array([node]), np.array([code]))[0])
        return NO_PREFIX

    def closed(self, said: Sequence[int]) -> bool:
        """Whether `said`, all that was written behind the opening words, ends with the closing tokens."""
        return bool(self.closing) and list(said[-len(self.closing) :]) == self.closing

    def rest(self, said: Sequence[int]) -> list[int]:
        """What is missing of the closing tokens: what the model has written of them already is not written twice."""
        written = next(
            size
            for size in range(len(self.closing), -1, -1)
            if list(said[max(0, len(said) - size) :]) == self.closing[:size]
        )
        return self.closing[written:]
