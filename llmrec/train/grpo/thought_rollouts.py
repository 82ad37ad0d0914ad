"""Rollouts of thoughts: each is drawn, and a search behind it names the items (OneRec-Think, arXiv:2510.11639).

    <prompt> Thought: … Next: <SID of the best beam>
             └given─┘└drawn┘└given unless the model wrote it┘

Thoughts are independent draws of the policy, hence counted equally: GRPO's own estimate. What is learned from is what
was drawn, closing words among it where the model wrote them itself; words that were given are in the context and carry
no loss. The best beam is no draw but a function of the thought: it is reinforced with `RolloutConfig.learn_item` alone.

A drawn token's log-probability is over the whole vocabulary, as think-SFT learns it, while a draw leaves out control
tokens and SID tokens that continue no living item (`llmrec.decode.thought_grammar`): the estimate is exact as far as
the policy gives these no probability.

`ThoughtBeams` draws, `watched` is the searcher of the held-out metric, `require_thinker` says what a start must have
seen.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from llmrec.data.catalog import Catalog
from llmrec.decode.searcher import Searcher
from llmrec.decode.thinking_searcher import ThinkingSearcher
from llmrec.decode.thought import ThoughtSettings
from llmrec.decode.thought_group import DrawnThought, GroupSettings, draw_thoughts
from llmrec.decode.trie_filter import RowFilter
from llmrec.errors import InputError
from llmrec.prompts.grounding import Facts, Grounding, check_thought
from llmrec.prompts.renderer import Renderer
from llmrec.prompts.tasks import TASKS
from llmrec.prompts.thought_form import ThoughtForm
from llmrec.train.grpo.config import RolloutConfig
from llmrec.train.grpo.estimators import GroupWeights
from llmrec.train.grpo.rollouts import ROLLOUTS, Group, Rollouts, Row, Searched, Written

if TYPE_CHECKING:
    from llmrec.checkpoint import Checkpoint


class ThoughtBeams(Searched):
    """Drawn thoughts, each with the best beam behind it.

    Args:
        searcher: of the policy, torch; its normalisation is that of the searches.
        renderer: templates with the form of a thought, and the SIDs.
        config: group size, budget, temperature, beams.
        control_ids: tokens that are not drawn.

    Raises:
        InputError: the templates hold no thought.
    """

    def __init__(
        self, searcher: Searcher, renderer: Renderer, config: RolloutConfig, control_ids: Sequence[int]
    ) -> None:
        super().__init__(searcher, renderer.table, config)
        form = ThoughtForm.of(renderer)
        self._settings = GroupSettings(
            opening_ids=form.opening_ids,
            closing_ids=form.closing_ids,
            banned_ids=tuple(control_ids),
            max_thought_tokens=config.max_thought_tokens,
            temperature=config.temperature,
            num_beams=config.num_beams,
        )

    def draw(self, rows: Sequence[Row], seed: int) -> list[Group]:
        """See `Rollouts.draw`."""
        prompts, filters = self._asked(rows)
        seeds = [
            np.random.SeedSequence([seed, int(row["number"])]).generate_state(self._config.group_size).tolist()
            for row in rows
        ]
        found = draw_thoughts(self._searcher, prompts, self._settings, seeds=seeds, filters=filters)
        return [self._group(thoughts, allowed) for thoughts, allowed in zip(found, filters, strict=True)]

    def _group(self, thoughts: Sequence[DrawnThought], allowed: RowFilter | None) -> Group:
        if not len(thoughts[0].result.items):  # nothing may be answered, whatever is thought
            none = np.zeros(0, dtype=np.int64)
            return self._made(none, GroupWeights.equal(0), np.zeros(0), allowed)
        items = np.array([thought.result.items[0] for thought in thoughts])
        sids = self._sids[items]
        of_item = np.full(sids.shape[1], self._config.learn_item)
        return Group(
            items=items,
            completions=tuple(np.concatenate([one.ids, sid]) for one, sid in zip(thoughts, sids, strict=True)),
            weights=GroupWeights.equal(len(items)),
            log_probabilities=np.array([thought.result.scores[0] for thought in thoughts]),
            allowed=allowed,
            legal=self._living[items],
            written=Written(
                text=np.array([len(thought.ids) for thought in thoughts]),
                learned=tuple(np.concatenate([thought.drawn, of_item]) for thought in thoughts),
                beams=tuple(
                    tuple(self._table.item_ids[row] for row in thought.result.items.tolist()) for thought in thoughts
                ),
                closed=np.array([thought.closed for thought in thoughts]),
            ),
        )


def make_rollouts(config: RolloutConfig, searcher: Searcher, renderer: Renderer, tokenizer: Any) -> Rollouts:
    """The rollouts of a stage."""
    if config.kind == "thought":
        return ThoughtBeams(searcher, renderer, config, _control_ids(tokenizer))
    return ROLLOUTS[config.kind](searcher, renderer.table, config)


def thought_knowledge(config: RolloutConfig, renderer: Renderer, catalog: Catalog) -> dict[str, Any]:
    """What rewards know of thoughts (arguments of `build_context`); nothing where completions have none."""
    if config.kind != "thought":
        return {}
    facts = Facts(catalog, renderer.table)

    def check(ids: Sequence[int], history: Collection[str]) -> Grounding:
        return check_thought(renderer.reader.parts(ids), history, facts)

    return {"closing_ids": ThoughtForm.of(renderer).closing_ids, "grounding": check}


def watched(config: RolloutConfig, searcher: Searcher, renderer: Renderer, tokenizer: Any) -> Searcher:
    """The searcher of the held-out metric: of thoughts one that thinks, greedily and with the same budget."""
    if config.kind != "thought":
        return searcher
    form = ThoughtForm.of(renderer)
    return ThinkingSearcher(
        searcher,
        opening_ids=form.opening_ids,
        closing_ids=form.closing_ids,
        stop_ids=_control_ids(tokenizer),
        settings=ThoughtSettings(config.max_thought_tokens),
    )


def require_thinker(start: Checkpoint, config: RolloutConfig) -> None:
    """Check that a start whose thoughts are rolled out was taught to think, as far as its recipe tells.

    Raises:
        InputError: none of its stages had a task of thoughts.
    """
    if config.kind != "thought":
        return
    tasks = start.card.tasks
    if not tasks or any(TASKS[task].thinks for task in tasks if task in TASKS):
        return
    raise InputError(
        f"rollout.kind is thought, but {start.folder} was never taught to think (its tasks: "
        f"{', '.join(sorted(tasks))}): what it draws would not be thoughts.",
        hint="train it with the task think first (docs/reasoning.md), or set rollout.kind: sample",
    )


def _control_ids(tokenizer: Any) -> list[int]:
    return [int(token_id) for token_id in tokenizer.all_special_ids]
