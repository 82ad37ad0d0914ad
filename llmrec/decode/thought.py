"""Think, then recommend: the model writes a bounded thought, and the item search follows on what it wrote.

A thought is words, in which the model may also write a *bare prefix* of SIDs: the beginning of one or more living
items, which stands for a kind of item. Prefixes are not completed, and none is illegal: a deeper SID token comes only
where it continues the prefix before it. (Thinking before items: OneRec-Think, arXiv:2510.11639.) The thought ends with
the closing tokens (the template's end-of-thought marker). Where the model has not written them when its budget is
spent, they are appended, so that the search always stands on a context like those of training. Thought and search are
columns of one session: the prompt is read once, and so is the thought.

The budget can adapt: with `ThoughtSettings.sure_margin` the plain search comes first, and where it is already sure, its
list is the answer and nothing is thought. Sure means that the best SID is ahead of the second by that many nats.

    thought = think_then_recommend(searcher, prompt, closing_ids=codec.role("</think>"), stop_ids=control_ids,
                                   settings=ThoughtSettings(max_thought_tokens=128, num_beams=20, top_k=10))
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from llmrec.decode.beam import beam_search
from llmrec.decode.result import SearchResult
from llmrec.decode.searcher import Searcher
from llmrec.decode.text import TextToken
from llmrec.decode.text_chain import TextChain, TokenChooser
from llmrec.decode.thought_grammar import NO_PREFIX, ThoughtGrammar
from llmrec.decode.trie_filter import RowFilter
from llmrec.errors import InputError

ThoughtEnd = Literal["closed", "stop", "length", "time", "sure"]
"""Who ended a thought: the model by the closing tokens, a control token, the budget of tokens, the clock; or there was
none, because the plain search was sure."""


@dataclass(frozen=True)
class ThoughtSettings:
    """How to think, and what to search for afterwards."""

    max_thought_tokens: int = 128
    """Budget without the closing tokens; 0 closes at once."""
    temperature: float = 0.0
    """0 takes the most probable token."""
    top_p: float = 1.0
    """Draw from the smallest set of tokens that holds this much probability."""
    seed: int = 0
    max_seconds: float | None = None
    """From the first step on; then the thought is closed, and the search still made."""
    num_beams: int = 20
    top_k: int = 10
    sure_margin: float | None = None
    """Nats by which the best SID of the plain search must be ahead of the second for no thought; None always thinks.
    A list of `top_k` items that ends before the second SID counts as sure."""

    def __post_init__(self) -> None:
        if self.max_thought_tokens < 0 or not 1 <= self.top_k <= self.num_beams:
            raise InputError(
                f"A thought needs max_thought_tokens of at least 0 and 1 <= top_k <= num_beams; given "
                f"{self.max_thought_tokens}, top_k={self.top_k}, num_beams={self.num_beams}."
            )
        if self.sure_margin is not None and not self.sure_margin >= 0:
            raise InputError(f"sure_margin={self.sure_margin} must be at least 0.", hint="None always thinks")


@dataclass(frozen=True)
class Thought:
    """A thought and what came of it."""

    ids: tuple[int, ...]
    """The tokens behind the prompt, the opening and closing ones included; none where the plain search was sure."""
    end: ThoughtEnd
    result: SearchResult


ThoughtEvent = TextToken | Thought


def margin(result: SearchResult) -> float:
    """Nats by which the best SID is ahead of the second; infinite where there is no second."""
    second = np.flatnonzero(result.bucket_of == 1)
    return float(result.scores[0] - result.scores[second[0]]) if second.size else np.inf


class ThoughtStream:
    """A thought, a forward per step; the last step searches and gives the `Thought`.

    Args:
        searcher: a torch model in evaluation mode, the items that exist, and what the search is normalised over.
            Prefixes in the thought are those of its living items, whatever `allowed` says: a thought is about the
            history, too.
        prompt: token ids; without `opening_ids` up to and with the marker that begins a thought.
        closing_ids: the end of a thought; may be empty.
        stop_ids: control tokens, which end a thought and are not written.
        settings: budget, sampling and width.
        allowed: the items that may be returned, None for all living ones.
        opening_ids: written behind `prompt` before a thought. The plain search of ``sure_margin`` stands before them.
        clock: seconds; for `ThoughtSettings.max_seconds`.

    Raises:
        InputError: an empty prompt, settings out of range, or a searcher whose back end is not torch.
    """

    def __init__(
        self,
        searcher: Searcher,
        prompt: Sequence[int] | np.ndarray,
        *,
        closing_ids: Sequence[int],
        stop_ids: Sequence[int],
        settings: ThoughtSettings | None = None,
        allowed: RowFilter | None = None,
        opening_ids: Sequence[int] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings = ThoughtSettings() if settings is None else settings
        self._opening = [int(token_id) for token_id in opening_ids]
        self._started = False
        self.finished = False
        self._allowed = allowed
        closing = [int(token_id) for token_id in closing_ids]
        self._stop_ids = frozenset(int(token_id) for token_id in stop_ids) - frozenset(closing)
        self._chooser = TokenChooser(self.settings.temperature, self.settings.top_p, self.settings.seed)
        self._clock = clock
        self._ends_at: float | None = None
        self._chain: TextChain | None = TextChain(
            searcher, prompt, max_new_tokens=len(self._opening) + self.settings.max_thought_tokens + len(closing)
        )
        self._grammar = ThoughtGrammar(searcher.trie, self._chain.scorer.token_ids, closing)
        self._prefix = NO_PREFIX

    def reading(self) -> TextChain | None:
        """The chain whose unread words the next step reads first; None where it reads none."""
        return self._chain if self._chain is not None and self._chain.unread else None

    def close(self) -> None:
        """End here and free keys and values."""
        self.finished = True
        self._chain = None

    def step(self) -> list[ThoughtEvent]:
        """Think a token further, or search."""
        if self._chain is None:
            return []
        if self._ends_at is None:
            seconds = self.settings.max_seconds
            self._ends_at = np.inf if seconds is None else self._clock() + seconds
        if not self._started:
            self._started = True
            if self.settings.sure_margin is not None:
                plain = self._search(self._chain)
                if margin(plain) >= self.settings.sure_margin:
                    self.close()
                    return [Thought((), "sure", plain)]
            self._chain.write(self._opening)
        if len(self._chain.ids) - len(self._opening) >= self.settings.max_thought_tokens:
            return self._recommend(self._chain, "length")
        if self._clock() >= self._ends_at:
            return self._recommend(self._chain, "time")
        chosen = self._chooser.choose(self._chain.logits(), self._grammar.forbidden(self._prefix))
        if chosen in self._stop_ids:
            return self._recommend(self._chain, "stop")
        self._chain.write([chosen])
        self._prefix = self._grammar.after(self._prefix, chosen)
        said = TextToken((chosen,))
        if self._grammar.closed(self._chain.ids[len(self._opening) :]):
            return [said, *self._recommend(self._chain, "closed")]
        return [said]

    def _recommend(self, chain: TextChain, end: ThoughtEnd) -> list[ThoughtEvent]:
        """Close the thought, search behind it."""
        rest = self._grammar.rest(chain.ids[len(self._opening) :])
        chain.write(rest)
        thought = Thought(tuple(chain.ids), end, self._search(chain))
        self.close()
        return [*([TextToken(tuple(rest))] if rest else []), thought]

    def _search(self, chain: TextChain) -> SearchResult:
        """Items behind what is written; their columns are dropped again."""
        expander = chain.branch()
        slots = chain.session.num_slots
        (result,) = beam_search(expander, [self._allowed], num_beams=self.settings.num_beams, top_k=self.settings.top_k)
        chain.session.truncate(slots)
        return result


def think_then_recommend(
    searcher: Searcher,
    prompt: Sequence[int] | np.ndarray,
    *,
    closing_ids: Sequence[int],
    stop_ids: Sequence[int],
    settings: ThoughtSettings | None = None,
    allowed: RowFilter | None = None,
    opening_ids: Sequence[int] = (),
) -> Thought:
    """`ThoughtStream` from its beginning to its end; the arguments are its."""
    stream = ThoughtStream(
        searcher,
        prompt,
        closing_ids=closing_ids,
        stop_ids=stop_ids,
        settings=settings,
        allowed=allowed,
        opening_ids=opening_ids,
    )
    while True:
        for event in stream.step():
            if isinstance(event, Thought):
                return event
