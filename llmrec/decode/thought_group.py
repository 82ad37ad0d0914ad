"""Several drawn thoughts of each prompt, and the items that a search finds behind each of them: what GRPO rolls out.

All thoughts of a batch of prompts advance together, a token a forward: they are branches of one session, which has read
each prompt once. So a step costs as many forwards as the longest thought has tokens, and the searches. What may be
written is what `llmrec.decode.thought` allows, with one difference: control tokens are not drawn. There they end a
thought without being written; here every choice has to stand in the text, or it could not be learned from.

A thought's draws depend on its seed alone, whatever else is in the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from llmrec.decode.beam import beam_search
from llmrec.decode.result import SearchResult
from llmrec.decode.scores import ChildScorer
from llmrec.decode.searcher import Prompts, Searcher, evaluating
from llmrec.decode.session import PrefixSession
from llmrec.decode.text_chain import TokenChooser
from llmrec.decode.thought_grammar import NO_PREFIX, Prefix, ThoughtGrammar
from llmrec.decode.torch_backend import TorchBackend, TorchExpander
from llmrec.decode.trie_filter import RowFilter
from llmrec.errors import InputError

_RESERVE = 1024
"""Columns of a prompt that are allocated at first."""


@dataclass(frozen=True)
class GroupSettings:
    """How thoughts are drawn, and what is searched for behind them.

    Attributes:
        opening_ids: written behind a prompt before a thought.
        closing_ids: the end of a thought.
        banned_ids: control tokens, which are not drawn.
        max_thought_tokens: budget of drawn tokens, closing tokens that the model writes itself among them.
        temperature: of the draws.
        num_beams: width of the search behind each thought, and the number of items.
    """

    opening_ids: tuple[int, ...]
    closing_ids: tuple[int, ...]
    banned_ids: tuple[int, ...]
    max_thought_tokens: int
    temperature: float
    num_beams: int

    def __post_init__(self) -> None:
        if self.max_thought_tokens < 1 or not self.temperature > 0 or self.num_beams < 1:
            raise InputError(
                "Thoughts are drawn with a budget of at least 1 token, a temperature above 0 and at least 1 beam; "
                f"given max_thought_tokens={self.max_thought_tokens}, temperature={self.temperature}, "
                f"num_beams={self.num_beams}."
            )


@dataclass(frozen=True)
class DrawnThought:
    """A thought and what came of it.

    Attributes:
        ids: (n,) tokens behind the prompt, the opening and closing ones included.
        drawn: (n,) bool, tokens that the model chose; the others were given.
        closed: whether the model ended it itself.
        result: the search behind it.
    """

    ids: np.ndarray
    drawn: np.ndarray
    closed: bool
    result: SearchResult


def draw_thoughts(
    searcher: Searcher,
    prompts: Prompts,
    settings: GroupSettings,
    *,
    seeds: Sequence[Sequence[int]],
    filters: Sequence[RowFilter | None],
) -> list[list[DrawnThought]]:
    """Draw thoughts, as many for each prompt as it has seeds.

    Args:
        searcher: a torch model, the items that exist, and what the search is normalised over.
        prompts: serving prompts.
        seeds: per prompt one of each thought; the same number for all prompts.
        filters: per prompt what may be returned, None where every living item may.

    Raises:
        InputError: an empty prompt, or a searcher whose back end is not torch.
    """
    if not isinstance(searcher.backend, TorchBackend):
        raise InputError("Thoughts are written by the torch back end.", hint='open the checkpoint with engine="torch"')
    grammar = ThoughtGrammar(searcher.trie, searcher.token_ids, settings.closing_ids)
    order = sorted(range(len(prompts)), key=lambda place: -len(prompts[place]))  # similar lengths: less padding
    found: dict[int, list[DrawnThought]] = {}
    with evaluating(searcher.backend.model), torch.no_grad():
        for start in range(0, len(order), searcher.batch_size):
            places = order[start : start + searcher.batch_size]
            chosen = [[TokenChooser(settings.temperature, 1.0, seed) for seed in seeds[place]] for place in places]
            group = _Writing(searcher, [prompts[place] for place in places], settings, grammar, chosen)
            results = group.search(searcher, [filters[place] for place in places])
            found.update(zip(places, results, strict=True))
    return [found[place] for place in range(len(prompts))]


@dataclass
class _Branch:
    """A thought in the making: a chain of columns behind its prompt."""

    chooser: TokenChooser
    slot: int
    """Of its last token; -1 is the prompt."""
    state: Tensor
    """(hidden,) behind it."""
    said: list[int] = field(default_factory=list)
    prefix: Prefix = NO_PREFIX
    closed: bool = False
    """Whether the model has ended it."""
    given: int = 0
    """Closing tokens that were appended."""


class _Writing:
    """The thoughts of a batch of prompts, written to their end when it is made."""

    def __init__(
        self,
        searcher: Searcher,
        prompts: Prompts,
        settings: GroupSettings,
        grammar: ThoughtGrammar,
        choosers: Sequence[Sequence[TokenChooser]],
    ) -> None:
        assert isinstance(searcher.backend, TorchBackend)
        self._settings, self._grammar, self._head = settings, grammar, searcher.backend.head
        self._session = PrefixSession(searcher.backend.model, prompts, reserve=_RESERVE)
        start = self._opened()
        self._branches = [
            [_Branch(chooser, self._session.num_slots - 1, state) for chooser in row]
            for row, state in zip(choosers, start, strict=True)
        ]
        banned = np.setdiff1d(np.array(settings.banned_ids, dtype=np.int64), settings.closing_ids)
        for _ in range(settings.max_thought_tokens):
            self._extend([[self._next(branch, logits, banned) for branch, logits in row] for row in self._open()])
        rests = [[(branch, grammar.rest(branch.said)) for branch in row] for row in self._branches]
        for row in rests:
            for branch, rest in row:
                branch.given = len(rest)
        self._extend(rests)

    def search(self, searcher: Searcher, filters: Sequence[RowFilter | None]) -> list[list[DrawnThought]]:
        """The thoughts with the items behind them: the n-th thoughts of all prompts are searched together."""
        session, settings = self._session, self._settings
        scorer = ChildScorer(self._head, searcher.trie.codebook_sizes, searcher.token_ids, searcher.normalise)
        found: list[list[DrawnThought]] = [[] for _ in filters]
        slots = session.num_slots
        for number in range(len(self._branches[0])):
            ends = [row[number] for row in self._branches]
            expander = TorchExpander(
                session,
                searcher.trie,
                scorer,
                root=np.array([end.slot for end in ends]),
                root_states=torch.stack([end.state for end in ends]),
            )
            results = beam_search(expander, filters, num_beams=settings.num_beams, top_k=settings.num_beams)
            session.truncate(slots)
            for row, (end, result) in enumerate(zip(ends, results, strict=True)):
                found[row].append(self._drawn(end, result))
        return found

    def _drawn(self, end: _Branch, result: SearchResult) -> DrawnThought:
        opening = self._settings.opening_ids
        ids = np.array([*opening, *end.said], dtype=np.int64)
        drawn = np.ones(len(ids), dtype=bool)
        drawn[: len(opening)] = False
        drawn[len(ids) - end.given :] = False
        return DrawnThought(ids, drawn, end.closed, result)

    def _opened(self) -> Tensor:
        """(batch, hidden) states behind the opening words, which all thoughts of a prompt share."""
        opening, batch = self._settings.opening_ids, self._session.batch_size
        if not opening:
            return self._session.prompt_states
        parents = np.tile(np.arange(-1, len(opening) - 1), (batch, 1))
        return self._session.extend(parents, np.tile(opening, (batch, 1)))[:, -1]

    def _open(self) -> list[list[tuple[_Branch, np.ndarray]]]:
        """Thoughts that go on, with the logits of their next tokens."""
        found = []
        for row in self._branches:
            going = [branch for branch in row if not branch.closed]
            logits = self._head.logits(torch.stack([branch.state for branch in going])).cpu().numpy() if going else ()
            found.append(list(zip(going, logits, strict=True)))
        return found

    def _next(self, branch: _Branch, logits: np.ndarray, banned: np.ndarray) -> tuple[_Branch, list[int]]:
        forbidden = np.concatenate([banned, self._grammar.forbidden(branch.prefix)])
        token = branch.chooser.choose(logits, forbidden)
        branch.prefix = self._grammar.after(branch.prefix, token)
        branch.closed = self._grammar.closed([*branch.said, token])
        return branch, [token]

    def _extend(self, wanted: Sequence[Sequence[tuple[_Branch, list[int]]]]) -> None:
        """Write tokens behind branches, all in one forward."""
        width = max(sum(len(tokens) for _, tokens in row) for row in wanted)
        if not width:
            return
        first = self._session.num_slots
        parents = np.full((len(wanted), width), -1, dtype=np.int64)
        ids = np.zeros((len(wanted), width), dtype=np.int64)
        ends: list[tuple[_Branch, int, int]] = []
        for number, row in enumerate(wanted):
            column = 0
            for branch, tokens in row:
                for token in tokens:
                    parents[number, column], ids[number, column] = branch.slot, token
                    branch.slot, column = first + column, column + 1
                if tokens:
                    ends.append((branch, number, column - 1))
                    branch.said += tokens
        states = self._session.extend(parents, ids)
        for branch, number, column in ends:
            branch.state = states[number, column]
