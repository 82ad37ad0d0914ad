"""A sample of what a stage will be trained on: rows of every task as the model sees them, and how many there are.

All examples are made, as in training; only rendering, about a millisecond a row, is left to a sample. Rows are taken at
even distances, so that a sample spans all users and items.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from llmrec.data.catalog import Catalog
from llmrec.prompts.renderer import Renderer
from llmrec.prompts.segments import Rendered
from llmrec.prompts.task import Example
from llmrec.train.batches import epoch_rows, recent
from llmrec.train.config import StageConfig


@dataclass(frozen=True)
class TaskSample:
    """Some rows of one task in the first epoch."""

    name: str
    num_rows: int
    """Rows of the epoch."""
    num_tokens: int
    """Tokens of all of them: exact for ``behaviour`` and where every row was rendered, else by the sample's mean."""
    exact: bool
    """Whether `num_tokens` is exact."""
    examples: tuple[Example, ...]
    rendered: tuple[Rendered, ...]
    """One row for each of `examples`."""
    skipped: Mapping[str, int]
    """Examples that the task did not make, by reason; over the whole epoch."""


@dataclass(frozen=True)
class StageSample:
    """Some rows of every task of a stage."""

    tasks: tuple[TaskSample, ...]
    items_before_recent: int
    """Train items that ``recent_items`` leaves out."""


def sample_stage(
    config: StageConfig, renderer: Renderer, catalog: Catalog, sequences: Sequence[Sequence[str]], *, limit: int
) -> StageSample:
    """Make the examples of the first epoch and render at most `limit` of them per task.

    Args:
        sequences: train item ids per user, oldest first.
    """
    kept, beyond = recent(sequences, config.recent_items)
    tasks = []
    for name, task in config.make_tasks().items():
        made = task.examples(catalog, kept, config.seed)
        rows = epoch_rows(config, name, made.rows, 0)
        places = range(len(rows)) if len(rows) <= limit else [place * len(rows) // limit for place in range(limit)]
        examples = tuple(rows[place] for place in places)
        rendered = tuple(
            renderer.render(row, phrasing_seed=config.seed, max_length=config.max_length) for row in examples
        )
        if name == "behaviour":
            room, known = renderer.room(config.max_length), set(renderer.table.item_ids)
            items = [min(room, sum(item_id in known for item_id in row.values["items"])) for row in rows]
            tokens = len(rows) * len(renderer.prefix_ids) + renderer.table.num_levels * sum(items)
        else:
            tokens = round(len(rows) * sum(map(len, rendered)) / max(1, len(rendered)))
        exact = name == "behaviour" or len(rendered) == len(rows)
        tasks.append(TaskSample(name, len(rows), tokens, exact, examples, rendered, made.skipped))
    return StageSample(tuple(tasks), beyond)
