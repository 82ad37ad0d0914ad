"""Makes think data: thoughts about train events, from the few items of each history that lead to the target.

Only ``s_1..s_{n-2}`` of a user are looked at (`select_contexts`): no valid or test event is a target or in a history.
No model is asked, so the data is the same on every machine. Before it is handed on, every row is rendered in its
phrasings and every statement is held against catalogue, SIDs and history: one that is untrue stops the build.

    made = make_thoughts(dataset, table, ThinkDataConfig(recent_events=2))
    check_thoughts(made.rows, renderer, dataset, ThinkDataConfig())
    write_rows(Path("runs/think/ml-100k.jsonl"), made.rows)      # tasks: {think: {settings: {rows: ...}}}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from llmrec.data.dataset import Dataset
from llmrec.data.problems import Problems
from llmrec.errors import InputError
from llmrec.prompts.explain import value_frequencies
from llmrec.prompts.grounding import Facts, Grounding, check_thought
from llmrec.prompts.renderer import Renderer
from llmrec.prompts.think import Think, ThinkRow, think_row
from llmrec.prompts.thought_form import ThoughtForm
from llmrec.sid_vocab.table import SIDTable
from llmrec.train.preference.contexts import Drops, select_contexts
from llmrec.train.think.closeness import Closeness
from llmrec.train.think.config import ThinkDataConfig

_SEEDS = 24  # of phrasings that a row is checked in: of three, each is among them but for one row in 5,000


@dataclass(frozen=True)
class Thoughts:
    """Think data.

    Attributes:
        rows: in the order of users and events.
        dropped: events without a thought, by reason.
    """

    rows: tuple[ThinkRow, ...]
    dropped: Mapping[str, int]


def make_thoughts(
    dataset: Dataset, table: SIDTable, config: ThinkDataConfig, *, vectors: Mapping[str, np.ndarray] | None = None
) -> Thoughts:
    """Think about train events.

    Args:
        dataset: its split says what train is.
        table: SIDs.
        config: which events, and what leads to a target.
        vectors: by item id, for ``vector_weight``.

    Raises:
        InputError: `prefix_depth` is no prefix of these SIDs, or no event has a thought.
    """
    if config.prefix_depth >= table.num_levels:
        raise InputError(
            f"prefix_depth={config.prefix_depth} is no prefix of SIDs of {table.num_levels} levels.",
            hint="a thought names a kind of items: use fewer levels",
        )
    split, catalog = dataset.split, dataset.catalog
    frequencies = value_frequencies(catalog)
    closeness = Closeness(catalog, frequencies, table, config, vectors)
    places = {user: place for place, user in enumerate(split.users)}
    known = set(table.item_ids)
    drops = Drops()
    rows = []
    for context in select_contexts(
        split, table, drops, users=config.users, recent_events=config.recent_events, min_history=config.min_history
    ):
        history = [item_id for item_id in context.history[-config.window :] if item_id in known]
        pruned = closeness.prune(history, context.chosen)
        event = (places[context.user_id], context.position, context.position + 1 + len(context.later))
        row = think_row(catalog, frequencies, pruned, context.chosen, event, kin=closeness.kin(pruned, context.chosen))
        if row is None:
            drops.rows["nothing in the history leads to the target"] += 1
        else:
            rows.append(row)
    dropped = {reason: count for reason, count in drops.rows.items() if count}
    if not rows:
        told = "; ".join(f"{count:,} {reason}" for reason, count in dropped.items())
        raise InputError(
            f"No train event has a thought{': ' + told if told else ''}.",
            hint="name attribute columns in data.attributes, or lower prefix_depth and min_history",
        )
    return Thoughts(tuple(rows), dropped)


def check_thoughts(
    rows: Sequence[ThinkRow], renderer: Renderer, dataset: Dataset, config: ThinkDataConfig
) -> list[Grounding]:
    """Hold every row, in its phrasings, against catalogue, SIDs and history.

    Returns:
        What was stated, one per row and phrasing; all of it is true.

    Raises:
        DataError: a statement is untrue; all such rows are named.
    """
    task = Think(window=config.window, prefix_depth=config.prefix_depth)
    items = dataset.split.items
    sequences = [[items[index] for index in sequence] for sequence in dataset.split.train()]
    examples = task.examples_of(rows, dataset.catalog, sequences).rows
    facts = Facts(dataset.catalog, renderer.table)
    closing = list(ThoughtForm.of(renderer).closing_ids)
    problems = Problems()
    found = []
    for example in examples:
        seen: set[str] = set()
        for phrasing_seed in range(_SEEDS):
            row = renderer.render(example, phrasing_seed=phrasing_seed)
            if row.text in seen:
                continue
            seen.add(row.text)
            ids = row.input_ids[row.target].tolist()[: -renderer.table.num_levels - len(closing)]
            found.append(check_thought(renderer.reader.parts(ids), example.values["history"], facts))
            for one in found[-1].untrue:
                problems.add(one.kind, f"row {example.row_id}: {one.words}, in “{row.text[-200:]}”")
    problems.raise_any("The think data", hint="templates must keep the notation that prompts/think.yaml describes")
    return found
