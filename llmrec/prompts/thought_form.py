"""The form of a thought when serving: the markers around it, as ids. It is the form of the training rows of `Think`.

form = ThoughtForm.of(renderer)
prompt = renderer.sequence(history, window=50)
think_then_recommend(searcher, form.prompt(prompt.input_ids), closing_ids=form.closing_ids, ...)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from llmrec.errors import InputError
from llmrec.prompts.renderer import Renderer


@dataclass(frozen=True)
class ThoughtForm:
    """Ids that stand around a thought.

    Attributes:
        opening_ids: behind the serving prompt; the thought begins after them.
        closing_ids: end the thought; the item's SID follows.
    """

    opening_ids: tuple[int, ...]
    closing_ids: tuple[int, ...]

    @classmethod
    def of(cls, renderer: Renderer) -> ThoughtForm:
        """The markers of the renderer's template ``think``.

        Raises:
            InputError: the templates have none: the checkpoint was trained before or without it.
        """
        template = renderer.templates.tasks.get("think")
        if template is None or template.closing is None:
            raise InputError(
                "This checkpoint's templates hold no think.yaml: it was never taught to think.",
                hint="train it with the task think",
            )
        opening, closing = template.phrasings[0].prompt, template.closing
        return cls(tuple(renderer.codec.text(opening)), tuple(renderer.codec.text(closing)))

    def prompt(self, serving: np.ndarray) -> np.ndarray:
        """A serving prompt (`Renderer.sequence`), opened for a thought."""
        return np.concatenate([serving, np.array(self.opening_ids, np.int64)])
