"""Free text with items: the model writes words, and where it begins a SID the search over the catalogue takes over.

`TextStream` writes token by token. When the next token would be a first-level SID token, a beam search over the living
items starts from that place (from the words before the token, so that the first code is chosen with the rest), its best
item is written in full, and the text goes on behind it. So an item that is named exists, is in stock, passes the
request's filter and was not named before. Words and SIDs are columns of one `PrefixSession`: nothing is read twice but
the tokens of the chosen item, whose branch is dropped with all others.

A step is at most one forward, so that a server can serve other requests between two steps, and ends a text by not
taking the next one.

    stream = TextStream(searcher, prompt, stop_ids=control_ids, settings=TextSettings(temperature=0.7, top_p=0.9))
    while not stream.finished:
        for event in stream.step(): ...
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from llmrec.decode.result import best_first
from llmrec.decode.scores import ChildScorer
from llmrec.decode.searcher import Searcher
from llmrec.decode.text_chain import TextChain, TokenChooser
from llmrec.decode.trie import SIDTrie
from llmrec.decode.trie_filter import RowFilter
from llmrec.errors import InputError


@dataclass(frozen=True)
class TextToken:
    """Words: the ids of one or more ordinary tokens."""

    ids: tuple[int, ...]


@dataclass(frozen=True)
class NamedItem:
    """An item, complete."""

    row: int
    """Its row of the table; of items that share a SID the first that may be named."""
    score: float
    """Log-probability of its SID at that place, as `normalise` says."""
    ids: tuple[int, ...]
    """The SID's tokens, which now stand in the text."""


@dataclass(frozen=True)
class Finished:
    """The end of the text: a control token ("stop"), the number of tokens ("length") or the clock ("time")."""

    reason: Literal["stop", "length", "time"]


TextEvent = TextToken | NamedItem | Finished


@dataclass(frozen=True)
class TextSettings:
    """How to write."""

    max_new_tokens: int = 256
    """Tokens of words and SIDs together; an item that no longer fits is not begun."""
    temperature: float = 0.0
    """0 takes the most probable token. Items are the best of their search in any case."""
    top_p: float = 1.0
    """Draw from the smallest set of tokens that holds this much probability."""
    seed: int = 0
    num_beams: int = 10
    """Width of the search for an item."""
    repeat_items: bool = False
    """Whether an item may be named again."""
    max_seconds: float | None = None
    """Time from the first step on; looked at before each step."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1 or self.num_beams < 1:
            raise InputError(
                f"max_new_tokens and num_beams must be at least 1; given {self.max_new_tokens} and {self.num_beams}."
            )


class TextStream:
    """Writes one text, a forward per step.

    Args:
        searcher: a torch model in evaluation mode, the items that exist (the stream keeps this version of them to its
            end), and what the search for an item is normalised over.
        prompt: token ids, at least one.
        stop_ids: control tokens: they end the text and are not written.
        settings: how to write.
        allowed: the items that may be named, None for all living ones.
        clock: seconds; for `TextSettings.max_seconds`.

    Raises:
        InputError: an empty prompt, settings out of range, or a searcher whose back end is not torch.
    """

    def __init__(
        self,
        searcher: Searcher,
        prompt: Sequence[int] | np.ndarray,
        *,
        stop_ids: Sequence[int],
        settings: TextSettings | None = None,
        allowed: RowFilter | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings = TextSettings() if settings is None else settings
        self._trie, self._allowed = searcher.trie, allowed
        self._chooser = TokenChooser(self.settings.temperature, self.settings.top_p, self.settings.seed)
        self._chain: TextChain | None = TextChain(searcher, prompt, max_new_tokens=self.settings.max_new_tokens)
        self._ids = self._chain.ids
        self._scorer = self._chain.scorer
        self._first_ids = frozenset(self._scorer.token_ids[0].tolist())
        self._all_sid_ids = np.concatenate(self._scorer.token_ids)
        self._stop_ids = frozenset(int(token_id) for token_id in stop_ids)
        self._clock, self._ends_at = clock, np.inf
        self._named: list[int] = []
        self._filter = allowed
        self._search: _ItemSearch | None = None
        self._started = self.finished = False

    @property
    def token_ids(self) -> list[int]:
        """What stands in the text so far, words and SIDs."""
        return list(self._ids)

    def reading(self) -> TextChain | None:
        """The chain whose unread words the next step reads first; None where it reads none."""
        waits = self._chain is not None and self._search is None and self._chain.unread
        return self._chain if waits else None

    def close(self) -> None:
        """End here and free keys, values and branches."""
        self.finished = True
        self._chain = self._search = None

    def step(self) -> list[TextEvent]:
        """Go on by at most one forward; often an event comes of it, in the middle of a search none."""
        if self._chain is None:
            return []
        if not self._started:
            self._started = True
            if self.settings.max_seconds is not None:
                self._ends_at = self._clock() + self.settings.max_seconds
        if self._clock() >= self._ends_at:
            return self._finish("time")
        if self._search is None:
            chosen = self._chooser.choose(self._chain.logits(), self._forbidden())
            if chosen in self._stop_ids:
                return self._finish("stop")
            if chosen not in self._first_ids:
                self._chain.write([chosen])
                return [TextToken((chosen,)), *self._end_if_full()]
            self._search = _ItemSearch(self._chain, self._trie, self._scorer, self._filter, self.settings.num_beams)
        else:
            self._search.step()
        if not self._search.is_done:
            return []
        item = self._search.best()
        self._search = None
        self._chain.write(item.ids)
        if not self.settings.repeat_items:
            self._named.append(item.row)
            self._filter = self._trie.exclusion(self._named, within=self._allowed)
        return [item, *self._end_if_full()]

    def _forbidden(self) -> np.ndarray:
        """SID tokens that may not come next: deeper levels never, the first where no item fits any more."""
        root = np.zeros(1, dtype=np.int64)
        fits = len(self._ids) + self._trie.num_levels <= self.settings.max_new_tokens
        may_name = fits and self._trie.num_living(0, root, self._filter)[0] > 0
        return self._all_sid_ids[len(self._first_ids) :] if may_name else self._all_sid_ids

    def _end_if_full(self) -> list[TextEvent]:
        return self._finish("length") if len(self._ids) >= self.settings.max_new_tokens else []

    def _finish(self, reason: Literal["stop", "length", "time"]) -> list[TextEvent]:
        self.close()
        return [Finished(reason)]


@dataclass
class _ItemSearch:
    """A beam search from the end of a chain, level by level (`beam_search` with a pause behind each forward)."""

    chain: TextChain
    trie: SIDTrie
    scorer: ChildScorer
    allowed: RowFilter | None
    num_beams: int
    level: int = 0
    nodes: np.ndarray = field(default_factory=lambda: np.zeros(1, dtype=np.int64))
    scores: np.ndarray = field(default_factory=lambda: np.zeros(1))

    def __post_init__(self) -> None:
        self._expander = self.chain.branch()
        self._first_slot = self.chain.session.num_slots
        self._grow()  # of the chain's end, which has been read: no forward

    @property
    def is_done(self) -> bool:
        """Whether the prefixes are complete."""
        return self.level == self.trie.num_levels

    def step(self) -> None:
        """Go on until a forward was made or the end is reached; lone children under "legal" need none."""
        before = self._expander.num_forwards
        while not self.is_done and self._expander.num_forwards == before:
            self._grow()

    def _grow(self) -> None:
        wanted = [(np.full(len(self.nodes), self.level), self.nodes)]
        (found,) = self._expander.expand(wanted, [self.allowed], top=self.num_beams)
        total = self.scores[found.owner] + found.gain
        keep = best_first(total, found.node, self.num_beams)
        self.level, self.nodes, self.scores = self.level + 1, found.node[keep], total[keep]

    def best(self) -> NamedItem:
        """The best item; the branches are dropped."""
        self.chain.session.truncate(self._first_slot)
        (codes,) = self.trie.paths(self.trie.num_levels, self.nodes[:1])
        row = int(self.trie.members(int(self.nodes[0]), self.allowed)[0])
        ids = tuple(int(ids[code]) for ids, code in zip(self.scorer.token_ids, codes, strict=True))
        return NamedItem(row, float(self.scores[0]), ids)
