"""From tasks to the batches of a whole stage, in the order in which they are trained.

All epochs are laid out beforehand as one list of batches. Resuming after a kill is then nothing but skipping the
batches that were trained, and an epoch may phrase its rows anew. A *row of the data set is a batch*: sequences of
similar length up to a number of tokens, so that 20-token alignment rows and 150-token histories both fill a step
without padding. TRL gets these rows as they are (``per_device_train_batch_size=1``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from llmrec.data.catalog import Catalog
from llmrec.prompts.renderer import Renderer
from llmrec.prompts.segments import Rendered
from llmrec.prompts.task import Example, hash_number
from llmrec.train.config import StageConfig

if TYPE_CHECKING:
    from datasets import Dataset

IGNORED = -100
"""Label of tokens without loss, as everywhere in transformers."""


@dataclass(frozen=True)
class Batches:
    """Everything a stage will train on.

    Attributes:
        dataset: a row per batch with ``input_ids``, ``labels`` and ``sid_level``, each a list of sequences.
        rows: rows of each task over all epochs.
        tokens: tokens of all batches, padding apart.
        target_tokens: tokens that carry loss.
        target_items: items that are a target, over all epochs.
        padding: share of padding among the tokens that are computed.
        dropped: what was left out, by reason; nothing else is missing.
    """

    dataset: Dataset
    rows: Mapping[str, int]
    tokens: int
    target_tokens: int
    target_items: int
    padding: float
    dropped: Mapping[str, int] = field(default_factory=dict)


def recent(sequences: Sequence[Sequence[str]], count: int | None) -> tuple[list[Sequence[str]], int]:
    """The `count` most recent items of each sequence, and how many items that leaves out."""
    if count is None:
        return list(sequences), 0
    return [items[-count:] for items in sequences], sum(max(0, len(items) - count) for items in sequences)


def render_epoch(
    config: StageConfig, renderer: Renderer, catalog: Catalog, sequences: Sequence[Sequence[str]], epoch: int
) -> tuple[dict[str, list[Rendered]], Counter[str]]:
    """Render the rows of one epoch, by task, and count what was left out.

    Args:
        sequences: train item ids per user, oldest first.
        epoch: changes phrasings and the choice of ``share``.
    """
    rows: dict[str, list[Rendered]] = {}
    dropped: Counter[str] = Counter()
    for name, task in config.make_tasks().items():
        examples = task.examples(catalog, sequences, config.seed)
        chosen = epoch_rows(config, name, examples.rows, epoch)
        seed = config.seed + epoch
        rows[name] = [renderer.render(row, phrasing_seed=seed, max_length=config.max_length) for row in chosen]
        if task.worded_answer:  # words and SIDs mixed: where the next token may be either, no position is known
            known = renderer.table.num_levels if task.thinks else 0  # behind a thought a search names the item
            rows[name] = [replace(row, sid_level=_last_levels(row.sid_level, known)) for row in rows[name]]
        for reason, count in examples.skipped.items():
            dropped[f"{name}: {reason}"] += count
        dropped["history items before a task's max_history or beyond max_length"] += sum(
            row.truncated_items for row in rows[name]
        )
        dropped["items without a SID"] += sum(row.skipped_items for row in rows[name])
    return rows, dropped


def _last_levels(sid_level: np.ndarray, count: int) -> np.ndarray:
    """The levels of the last `count` tokens; of all others nothing is known."""
    kept = np.full_like(sid_level, -1)
    kept[len(kept) - count :] = sid_level[len(kept) - count :]
    return kept


def epoch_rows(config: StageConfig, task: str, rows: Sequence[Example], epoch: int) -> list[Example]:
    """Those of a task's `rows` that its ``share`` chooses for `epoch`, by a hash of seed, epoch and row."""
    share = config.tasks[task].share
    if share == 1:
        return list(rows)
    return [row for row in rows if hash_number(f"{config.seed}:{epoch}:{row.row_id}") < share * 2**64]


def group(lengths: Sequence[int], batch_tokens: int, rng: np.random.Generator) -> list[list[int]]:
    """Group rows of similar length into batches of at most `batch_tokens` padded tokens, in random order.

    A row longer than `batch_tokens` is a batch of its own. Rows of equal length are mixed anew on each call.
    """
    order = sorted(range(len(lengths)), key=lambda row: (lengths[row], rng.random()))
    batches: list[list[int]] = []
    for row in reversed(order):
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= batch_tokens:
            batches[-1].append(row)
        else:
            batches.append([row])
    return [batches[place] for place in rng.permutation(len(batches))]


def build_batches(
    config: StageConfig, renderer: Renderer, catalog: Catalog, sequences: Sequence[Sequence[str]]
) -> Batches:
    """Lay out all batches of a stage.

    Args:
        sequences: train item ids per user, oldest first: no valid or test item is among them.
    """
    from datasets import Dataset

    kept, beyond = recent(sequences, config.recent_items)
    counts: Counter[str] = Counter()
    dropped: Counter[str] = Counter({"items before recent_items": beyond} if beyond else {})
    columns: dict[str, list[list[list[int]]]] = {"input_ids": [], "labels": [], "sid_level": []}
    tokens = target_tokens = target_items = computed = 0
    whole = int(np.ceil(config.epochs))
    last_level = renderer.table.num_levels - 1
    for epoch in range(whole):
        rng = np.random.default_rng((config.seed, epoch))
        by_task, left_out = render_epoch(config, renderer, catalog, kept, epoch)
        if epoch == 0:
            dropped += left_out  # the same in every epoch, but for what `share` chooses
        names = [name for name, rows in by_task.items() for _ in rows]
        rows = [row for task_rows in by_task.values() for row in task_rows]
        batches = group([len(row) for row in rows], config.batch_tokens, rng)
        if epoch == whole - 1 and (part := config.epochs - epoch) < 1:
            batches = batches[: max(1, round(part * len(batches)))]
        for batch in batches:
            members = [rows[place] for place in batch]
            counts.update(names[place] for place in batch)
            tokens += sum(map(len, members))
            computed += max(map(len, members)) * len(members)
            target_tokens += sum(int(row.target.sum()) for row in members)
            target_items += sum(int((row.target & (row.sid_level == last_level)).sum()) for row in members)
            for name, values in _columns(members).items():
                columns[name].append(values)
    return Batches(
        dataset=Dataset.from_dict(columns),
        rows=dict(counts),
        tokens=tokens,
        target_tokens=target_tokens,
        target_items=target_items,
        padding=1 - tokens / max(computed, 1),
        dropped={reason: count for reason, count in dropped.items() if count},
    )


def valid_batches(
    renderer: Renderer, histories: Sequence[Sequence[str]], targets: Sequence[str], *, window: int, batch_tokens: int
) -> Dataset:
    """Batches whose only targets are the given items, each behind the `window` last items of its history."""
    from datasets import Dataset

    rows = [
        renderer.sequence([*history, target], window=window + 1, targets="last")
        for history, target in zip(histories, targets, strict=True)
    ]
    batches = group([len(row) for row in rows], batch_tokens, np.random.default_rng(0))
    columns: dict[str, list[list[list[int]]]] = {"input_ids": [], "labels": [], "sid_level": []}
    for batch in batches:
        for name, values in _columns([rows[place] for place in batch]).items():
            columns[name].append(values)
    return Dataset.from_dict(columns)


def evened(batches: Dataset, parts: int) -> Dataset:
    """`batches` and, up to a multiple of `parts`, a few without a target.

    Every process takes the same number of batches. Where one is missing at the end, accelerate would hand out the first
    ones a second time, and they would count twice.
    """
    from datasets import Dataset, concatenate_datasets

    missing = -len(batches) % parts
    if not missing:
        return batches
    empty = {**batches[0], "labels": [[IGNORED] * len(sequence) for sequence in batches[0]["labels"]]}
    return concatenate_datasets([batches, Dataset.from_list([empty] * missing, features=batches.features)])


def _columns(rows: Sequence[Rendered]) -> dict[str, list[list[int]]]:
    return {
        "input_ids": [row.input_ids.tolist() for row in rows],
        "labels": [np.where(row.target, row.input_ids, IGNORED).tolist() for row in rows],
        "sid_level": [row.sid_level.tolist() for row in rows],
    }


def collate(batches: Sequence[Mapping[str, Any]], pad_id: int) -> dict[str, Any]:
    """Pad the sequences of one or more batches on the right.

    No attention mask is made: behind a causal mask no token sees padding to its right, and without a mask the
    attention kernels take their fast causal path.

    Returns:
        ``input_ids``, ``labels``, ``sid_level``: (sequences, longest) int64 tensors.
    """
    import torch

    padding = {"input_ids": pad_id, "labels": IGNORED, "sid_level": -1}
    sequences = {name: [sequence for batch in batches for sequence in batch[name]] for name in padding}
    longest = max(map(len, sequences["input_ids"]))
    return {
        name: torch.tensor([[*sequence, *[padding[name]] * (longest - len(sequence))] for sequence in values])
        for name, values in sequences.items()
    }
