"""Explanations of recommended items: what `Recommender.explain` says, written step by step beside everything else."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import partial

from starlette.requests import Request

from llmrec.decode.joint_read import read_together
from llmrec.decode.text import Finished, TextSettings, TextStream
from llmrec.decode.torch_backend import TorchBackend
from llmrec.errors import InputError
from llmrec.explanation import MAX_NEW_TOKENS, Explanation, explanation_prompt, read_explanation
from llmrec.serve.catalog import CatalogVersion
from llmrec.serve.engine import Work
from llmrec.serve.schemas import ItemExplanation
from llmrec.serve.server import Server


@dataclass(frozen=True)
class _Question:
    version: CatalogVersion
    history: tuple[str, ...]
    item_id: str


class ServedExplanation:
    """Writes one explanation as the engine runs it; its one event is an `Explanation`."""

    def __init__(self, question: _Question) -> None:
        self._question = question
        recommender, titles = question.version.recommender, question.version.titles
        checkpoint = recommender.checkpoint
        searcher = recommender.searcher(checkpoint.card.serving.normalise)
        nameable = [checkpoint.table.row(one) for one in (*question.history, question.item_id) if one in titles]
        self._stream = TextStream(
            searcher,
            explanation_prompt(recommender.renderer, question.history, question.item_id).input_ids,
            stop_ids=checkpoint.tokenizer.all_special_ids,
            settings=TextSettings(max_new_tokens=MAX_NEW_TOKENS),
            allowed=searcher.trie.allowance(nameable),
        )

    @property
    def finished(self) -> bool:
        """Whether the explanation is written."""
        return self._stream.finished

    def prepare(self, together: Sequence[ServedExplanation]) -> None:
        """Read the words of all of them in one forward."""
        read_together([one._stream for one in together])

    def step(self) -> list[Explanation]:
        """Go on by at most one forward."""
        ends = [event.reason for event in self._stream.step() if isinstance(event, Finished)]
        if not ends:
            return []
        asked = self._question
        checkpoint = asked.version.recommender.checkpoint
        parts = checkpoint.renderer.reader.parts(self._stream.token_ids)
        explanation = read_explanation(
            parts,
            asked.item_id,
            asked.history,
            asked.version.titles,
            finished=ends[0] == "stop",
            catalog=checkpoint.catalog,
        )
        return [explanation]

    def close(self) -> None:
        """Free keys and values."""
        self._stream.close()


@dataclass(frozen=True, eq=False)
class ExplainWork(Work[Explanation]):
    """One explanation in one go: for engines that write no text step by step."""

    question: _Question

    @property
    def key(self) -> Hashable:
        """Each runs alone."""
        return id(self)

    def run(self, together: Sequence[ExplainWork]) -> list[Explanation]:
        """Explain."""
        asked = self.question
        return [asked.version.recommender.explain(asked.history, asked.item_id)]


async def explain_items(
    server: Server, request: Request, version: CatalogVersion, history: Sequence[str], item_ids: Sequence[str]
) -> list[ItemExplanation]:
    """Why each of `item_ids` fits `history`, in their order.

    Raises:
        InputError: there is something to explain and no history to explain it from.
    """
    if not item_ids:
        return []
    if not history:
        raise InputError("There is no history to explain from.", hint="give at least one item, or explain=0")
    if not isinstance(version.recommender.backend, TorchBackend):
        works = [ExplainWork(_Question(version, tuple(history), item_id)) for item_id in item_ids]
        return [_shown(await server.run(request, work)) for work in works]
    questions = [_Question(version, tuple(history), item_id) for item_id in item_ids]
    written = await server.follow(request, [partial(ServedExplanation, question) for question in questions])
    return [_shown(one) for one in written]


def _shown(explanation: Explanation) -> ItemExplanation:
    return ItemExplanation(
        text=explanation.text,
        named_items=list(explanation.named_items),
        unknown_names=[*explanation.named_titles_unknown, *explanation.unknown_sids],
        outside_history=list(explanation.named_outside_history),
        untrue_attributes=list(explanation.untrue_attributes),
        finished=explanation.finished,
    )
