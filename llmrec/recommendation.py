"""What a recommender answers: items with title, SID and log-probability, and what a user should know about them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from llmrec.decode.result import Normalise, SearchResult
from llmrec.prompts.grounding import Grounding
from llmrec.sid_vocab.table import SIDTable

if TYPE_CHECKING:
    from llmrec.decode.thought import ThoughtEnd

Search = Literal["beam", "exact"]
"""``beam``: a beam of `num_beams`; ``exact``: the true top-k, at a higher and varying cost."""

EngineName = Literal["torch", "vllm"]
"""``torch``: transformers, any device; ``vllm``: vLLM in this process, where it is installed."""


MAX_THOUGHT_TOKENS = 96
"""Budget of a thought where nobody says otherwise: of what is served, and of what the gate judges."""


@dataclass(frozen=True)
class ThoughtOptions:
    """How to think before a list."""

    max_tokens: int = MAX_THOUGHT_TOKENS
    """Budget, without the markers around the thought."""
    sure_margin: float | None = None
    """Nats by which the best SID of the plain search must be ahead of the second for no thought; None always thinks."""


@dataclass(frozen=True)
class ItemFilter:
    """What one list may hold, besides what its history rules out."""

    exclude: Collection[str] = ()
    """Item ids that may not be returned; unknown ones are harmless."""
    allow: Collection[str] | None = None
    """The only item ids that may be returned (a category, a price band, what is near); None allows all."""


@dataclass(frozen=True)
class Recommendation:
    """One recommended item."""

    item_id: str
    title: str
    sid: str
    """Readable: ``<a_12><b_7><c_200>``."""
    score: float
    """Log-probability of the SID after the history, normalised as `Recommendations.normalise` says."""


@dataclass(frozen=True)
class ThoughtReport:
    """What the model thought before a list, and how much of it is true."""

    text: str
    """As the model wrote it, SIDs in their notation; empty where the plain search was sure."""
    end: ThoughtEnd
    """Who ended it."""
    tokens: int
    """Its tokens, without the markers around it."""
    grounding: Grounding
    """Its statements, held against catalogue, SIDs and history (`llmrec.prompts.grounding`)."""

    def as_json(self) -> dict[str, Any]:
        """As the server and the command line tell it."""
        stated, shares = self.grounding.statements, self.grounding.true_shares
        return {
            "text": self.text,
            "end": self.end,
            "tokens": self.tokens,
            "statements": {kind: {"stated": stated[kind], "true": share} for kind, share in shares.items()},
            "untrue": [one.words for one in self.grounding.untrue],
        }


@dataclass(frozen=True)
class Recommendations:
    """The answer for one history; iterating gives the items, best first."""

    items: tuple[Recommendation, ...]
    search: Search
    normalise: Normalise
    num_beams: int
    """Width of the beam; 0 for an exact search."""
    unknown_items: tuple[str, ...]
    """History items that have no SID and were skipped, in order, with repeats."""
    truncated_items: int
    """Oldest history items beyond the window that the prompt leaves out; they are excluded all the same."""
    notes: tuple[str, ...]
    """What a user should know, in words: skipped items, fewer items than asked for."""
    thought: ThoughtReport | None = None
    """Where one was asked for."""

    def __iter__(self) -> Iterator[Recommendation]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)


def recommended(
    result: SearchResult, k: int, table: SIDTable, title: Callable[[str], str]
) -> tuple[Recommendation, ...]:
    """The first k items of a search."""
    ids = [table.item_ids[row] for row in result.items[:k]]
    return tuple(
        Recommendation(item_id, title(item_id), table.text(item_id), float(score))
        for item_id, score in zip(ids, result.scores[:k], strict=True)
    )


def notes(
    unknown_items: tuple[str, ...], history_length: int, found: int, wanted: int, num_items: int
) -> tuple[str, ...]:
    """What to tell a user about an answer.

    Args:
        unknown_items: history items without a SID.
        history_length: items of the history.
        found: items returned.
        wanted: items asked for.
        num_items: items of the catalogue.
    """
    lines = []
    if unknown_items:
        shown = ", ".join(unknown_items[:5]) + (" …" if len(unknown_items) > 5 else "")
        lines.append(f"{len(unknown_items)} of {history_length} history items have no SID and were skipped: {shown}")
    if found < wanted:
        lines.append(
            f"k={wanted} is more than there is: these are all {found} of {num_items} items that are neither excluded, "
            "filtered out nor retired"
        )
    return tuple(lines)
