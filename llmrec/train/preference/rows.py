"""From preference rows to ids: prompts and completions of the one `Renderer`, and the batches of all epochs.

A prompt is the serving prompt of the history, a completion the SID tokens of an item: no string is tokenised. All
epochs are laid out beforehand as numbers of rows, so that a resumed run skips what was trained
(`llmrec.train.batches`).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from llmrec.errors import InputError
from llmrec.prompts.renderer import Renderer
from llmrec.train.preference.pairs import PreferenceRow, check_rows
from llmrec.train.preference.stage_config import PreferenceConfig
from llmrec.train.prefix_tree import TreeRow

_POOL = 32
"""Batches among which rows are sorted by length: little padding, and batches of mixed rows all the same."""


@dataclass(frozen=True)
class RenderedRow:
    """A row in token ids: the first completion is the chosen item's.

    Attributes:
        tree: prompt and completions.
        weights: one per rejected completion.
    """

    tree: TreeRow
    weights: tuple[float, ...]

    @property
    def num_tokens(self) -> int:
        """Tokens that a forward reads, were no prefix shared."""
        return len(self.tree.prompt) + sum(len(each) for each in self.tree.completions)


@dataclass(frozen=True)
class PreferenceBatches:
    """Everything that one iteration trains on.

    Attributes:
        rows: each once.
        batches: numbers of rows, over all epochs.
        dropped: what was left out, by reason.
    """

    rows: tuple[RenderedRow, ...]
    batches: tuple[tuple[int, ...], ...]
    dropped: Mapping[str, int]

    @property
    def pairs(self) -> int:
        """Rejected items of all rows."""
        return sum(len(row.weights) for row in self.rows)

    @property
    def tokens(self) -> int:
        """Tokens of all batches, were no prefix shared."""
        return sum(self.rows[row].num_tokens for batch in self.batches for row in batch)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the ids of all rows."""
        digest = hashlib.sha256()
        for row in self.rows:
            for ids in (row.tree.prompt, *row.tree.completions):
                digest.update(np.asarray(ids, dtype=np.int64).tobytes() + b"|")
        return digest.hexdigest()


def build_rows(config: PreferenceConfig, renderer: Renderer, rows: Sequence[PreferenceRow]) -> PreferenceBatches:
    """Render `rows` and lay out the batches of all epochs.

    Left out and counted: rows whose history or chosen item has no SID, rejected items without a SID, and rejected items
    that share the chosen one's SID, which no model can tell from it.

    Raises:
        DataError: malformed rows, such as a chosen item that is rejected too.
        InputError: nothing is left.
    """
    check_rows(rows, what="that the stage was given")
    known = {item: place for place, item in enumerate(renderer.table.item_ids)}
    sids = renderer.table.sid_token_ids()
    dropped: Counter[str] = Counter()
    rendered = []
    for row in rows:
        if row.chosen not in known or not any(item in known for item in row.history):
            dropped["rows whose chosen item or whole history has no SID"] += 1
            continue
        chosen = sids[known[row.chosen]]
        kept = []
        for item, weight in zip(row.rejected, row.weights, strict=True):
            if item not in known:
                dropped["rejected items without a SID"] += 1
            elif np.array_equal(sids[known[item]], chosen):
                dropped["rejected items that share the chosen item's SID"] += 1
            else:
                kept.append((sids[known[item]], weight))
        if not kept:
            dropped["rows of which no rejected item is left"] += 1
            continue
        prompt = renderer.sequence(row.history, window=config.window).input_ids
        tree = TreeRow(prompt, (chosen, *(sid for sid, _ in kept)))
        rendered.append(RenderedRow(tree, tuple(weight for _, weight in kept)))
    if not rendered:
        raise InputError(
            "Of the preference data no row is left: " + ", ".join(f"{count} {why}" for why, count in dropped.items()),
            hint="make it with `llmrec prefer` for the catalogue of this checkpoint",
        )
    return PreferenceBatches(tuple(rendered), tuple(_batches(config, rendered)), dict(dropped))


def _batches(config: PreferenceConfig, rows: Sequence[RenderedRow]) -> list[tuple[int, ...]]:
    lengths = np.array([len(row.tree.prompt) for row in rows])
    size, found = config.batch_rows, []
    for epoch in range(int(np.ceil(config.epochs))):
        rng = np.random.default_rng((config.seed, epoch))
        order = rng.permutation(len(rows))[: max(1, round((config.epochs - epoch) * len(rows)))]
        batches: list[tuple[int, ...]] = []
        for start in range(0, len(order), _POOL * size):
            pool = order[start : start + _POOL * size]
            pool = pool[np.argsort(lengths[pool], kind="stable")]
            batches += [tuple(pool[i : i + size].tolist()) for i in range(0, len(pool), size)]
        found += [batches[place] for place in rng.permutation(len(batches))]
    return found
