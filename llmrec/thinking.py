"""A list behind a thought, as it is served: the prompt and markers of training, step by step, the thought checked.

The thought stands behind the serving prompt between the markers of the checkpoint's own ``think.yaml``
(`ThoughtForm`), which is the form of its training rows; what follows is the plain beam search. What the model wrote is
held against catalogue, SIDs and history by the check that training data passes (`llmrec.prompts.grounding`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from llmrec.checkpoint import Checkpoint
from llmrec.decode.result import Normalise
from llmrec.decode.trie_filter import RowFilter
from llmrec.errors import InputError
from llmrec.prompts.grounding import Facts, Grounding, check_thought
from llmrec.prompts.renderer import Renderer
from llmrec.prompts.thought_form import ThoughtForm
from llmrec.recommendation import ItemFilter, Recommendations, ThoughtOptions, ThoughtReport

if TYPE_CHECKING:
    from llmrec.decode.searcher import Searcher
    from llmrec.decode.thought import Thought, ThoughtStream


@dataclass(frozen=True)
class ThinkingRequest:
    """A list behind a thought; what `Recommender.recommend` takes."""

    history: Sequence[str]
    k: int
    options: ThoughtOptions
    filter: ItemFilter
    exclude_history: bool = True
    num_beams: int | None = None
    normalise: Normalise | None = None

    def __post_init__(self) -> None:
        if not self.history:
            raise InputError("There is no history to think about.", hint="give at least one item, or do not think")
        if self.k < 1 or (self.num_beams is not None and self.num_beams < self.k):
            raise InputError(
                f"k={self.k} and num_beams={self.num_beams} find no list.",
                hint="ask for at least 1, with a beam of at least k",
            )
        if self.options.sure_margin is not None and self.num_beams == 1:
            raise InputError("sure_margin compares the two best SIDs.", hint="search with num_beams of 2 or more")


class ThinkingList:
    """A list behind a thought, a token or a search per step; a `llmrec.serve.engine.Stream`.

    Args:
        stream: thinks and searches.
        read: the list of a finished thought.
    """

    def __init__(self, stream: ThoughtStream, read: Callable[[Thought], Recommendations]) -> None:
        self._stream, self._read = stream, read

    @property
    def finished(self) -> bool:
        """Whether the list is made, or was given up."""
        return self._stream.finished

    def prepare(self, together: Sequence[ThinkingList]) -> None:
        """Read the words of several thoughts in one forward, before a step of each."""
        from llmrec.decode.joint_read import read_together

        read_together([one._stream for one in together])

    def step(self) -> list[Recommendations]:
        """Think a token further, or search; the last step gives the list."""
        from llmrec.decode.thought import Thought

        return [self._read(event) for event in self._stream.step() if isinstance(event, Thought)]

    def close(self) -> None:
        """Free keys and values."""
        self._stream.close()

    def run(self) -> Recommendations:
        """All steps at once."""
        found: list[Recommendations] = []
        while not found:
            found = self.step()
        return found[0]


def require_thinking(checkpoint: Checkpoint) -> None:
    """Refuse a checkpoint that was not taught to think.

    Its templates hold ``think.yaml`` all the same, so what it wrote behind them would be in no form that it learnt.

    Raises:
        InputError: no stage on its way had the task.
    """
    if "think" not in checkpoint.card.tasks:
        stages = ", ".join(entry.stage for entry in checkpoint.card.lineage)
        raise InputError(
            f"This checkpoint was not taught to think: none of its stages ({stages}) has the task think in its recipe.",
            hint="ask without a thought, or train it with think among sft.tasks (docs/reasoning.md)",
        )


def open_thought(
    checkpoint: Checkpoint,
    searcher: Searcher,
    prompt: np.ndarray,
    options: ThoughtOptions,
    *,
    num_beams: int,
    allowed: RowFilter | None,
) -> ThoughtStream:
    """A thought behind a serving prompt, and the search behind it, whose list has up to `num_beams` items.

    Raises:
        InputError: a checkpoint that was not taught to think, a model that is not in torch, or one that cannot read as
            much.
    """
    from llmrec.decode.thought import ThoughtSettings, ThoughtStream
    from llmrec.decode.torch_backend import TorchBackend

    require_thinking(checkpoint)
    form = ThoughtForm.of(checkpoint.renderer)
    if not isinstance(searcher.backend, TorchBackend):
        raise InputError(
            f"Thoughts are written by the torch engine; this one is a {type(searcher.backend).__name__}.",
            hint='open or serve the checkpoint with engine "torch", or ask without a thought',
        )
    context = int(searcher.backend.model.config.get_text_config().max_position_embeddings)
    around = len(prompt) + len(form.opening_ids) + len(form.closing_ids) + checkpoint.table.num_levels
    if around + options.max_tokens > context:
        raise InputError(
            f"The model reads {context} tokens: {around} stand around a thought, and {options.max_tokens} are to be "
            "thought.",
            hint="a smaller budget of thought tokens, or a shorter history",
        )
    return ThoughtStream(
        searcher,
        prompt,
        opening_ids=form.opening_ids,
        closing_ids=form.closing_ids,
        stop_ids=checkpoint.tokenizer.all_special_ids,
        # As many items as beams: the lead of the best SID is known only where the list goes on to the second.
        settings=ThoughtSettings(
            options.max_tokens, num_beams=num_beams, top_k=num_beams, sure_margin=options.sure_margin
        ),
        allowed=allowed,
    )


def read_thought(thought: Thought, renderer: Renderer, history: Collection[str], facts: Facts) -> ThoughtReport:
    """What was thought, for people, and how much of it is true.

    Args:
        thought: finished.
        renderer: the checkpoint's.
        history: item ids that a thought may say were chosen.
        facts: of the catalogue and the SIDs that were searched.
    """
    if thought.end == "sure":
        return ThoughtReport("", thought.end, 0, Grounding({}, ()))
    form = ThoughtForm.of(renderer)
    ids = thought.ids[len(form.opening_ids) : len(thought.ids) - len(form.closing_ids)]
    parts = renderer.reader.parts(ids)
    text = "".join(part.text for part in parts).strip()
    return ThoughtReport(text, thought.end, len(ids), check_thought(parts, history, facts))
