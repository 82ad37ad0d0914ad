"""Prompts and their completions as prefix trees on the sequence axis: what `TreeForward` feeds the model.

A row is its prompt, then every distinct proper prefix of its completions once, as a column whose parent is the prefix
that is one token shorter. Prompts are padded on the left, so that all of them end in one column, branches on the right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llmrec.decode.ancestor_mask import grow
from llmrec.decode.trie_filter import RowFilter
from llmrec.errors import InputError


@dataclass(frozen=True)
class TreeRow:
    """A prompt and its completions: token ids.

    Attributes:
        prompt: at least one token.
        completions: each at least one token; they may differ in length, and repeat.
        allowed: what the search of this row could return; it narrows the legal set of "legal" and nothing else.
        text: per completion, how many of its first tokens are text (a thought), also where they are SID tokens; empty
            where all completions are answers from their beginning.
    """

    prompt: Sequence[int] | np.ndarray
    completions: Sequence[Sequence[int] | np.ndarray]
    allowed: RowFilter | None = None
    text: Sequence[int] = ()


@dataclass(frozen=True)
class PackedTrees:
    """Rows laid out on the sequence axis: prompts end in column `prompt_width` - 1, branches follow.

    Attributes:
        ids: (rows, columns) token ids.
        positions: (rows, columns) position ids.
        visible: (rows, columns, columns) bool. Padding sees itself alone.
        prompt_width: columns of the longest prompt.
        tokens: (completions, longest) token ids, -1 where there is none.
        column: (completions, longest) the column whose state predicts each token.
        row: (completions,) the row of each completion.
        text: (completions, longest) bool, tokens that are text whatever they are.
    """

    ids: np.ndarray
    positions: np.ndarray
    visible: np.ndarray
    prompt_width: int
    tokens: np.ndarray
    column: np.ndarray
    row: np.ndarray
    text: np.ndarray


def pack(rows: Sequence[TreeRow]) -> PackedTrees:
    """Lay `rows` out on the sequence axis.

    Raises:
        InputError: no row, an empty prompt or completion, or `text` for other completions.
    """
    if not rows:
        raise InputError("A tree forward needs at least one row.")
    tokens: list[np.ndarray] = []
    column: list[list[int]] = []
    owner: list[int] = []
    branches: list[list[tuple[int, int]]] = []  # per row (token, parent) of each branch column
    width = max(len(row.prompt) for row in rows)
    for number, row in enumerate(rows):
        if not len(row.prompt) or not row.completions or not all(len(each) for each in row.completions):
            raise InputError(f"Row {number} has an empty prompt, no completion or an empty one.")
        if len(row.text) not in (0, len(row.completions)):
            raise InputError(f"Row {number} has {len(row.completions)} completions, and text for {len(row.text)}.")
        made: dict[tuple[int, int], int] = {}  # (parent, token) to branch column
        for completion in row.completions:
            ids = np.asarray(completion, dtype=np.int64)
            above, columns = -1, [width - 1]
            for token in ids[:-1].tolist():
                above = made.setdefault((above, token), len(made))
                columns.append(width + above)
            tokens.append(ids)
            column.append(columns)
            owner.append(number)
        branches.append([(token, parent) for parent, token in made])
    more = max(len(each) for each in branches)
    ids = np.zeros((len(rows), width + more), dtype=np.int64)
    parents = np.full((len(rows), more), -1, dtype=np.int64)
    real = np.zeros((len(rows), width), dtype=bool)
    for number, (row, branch) in enumerate(zip(rows, branches, strict=True)):
        ids[number, width - len(row.prompt) : width] = row.prompt
        real[number, width - len(row.prompt) :] = True
        for place, (token, parent) in enumerate(branch):
            ids[number, width + place], parents[number, place] = token, parent
    lengths = real.sum(axis=1)
    none = np.zeros((len(rows), 0, 0), dtype=bool)
    seen, depths = grow(none, np.zeros((len(rows), 0), dtype=np.int64), parents, lengths)
    visible = np.zeros((len(rows), width + more, width + more), dtype=bool)
    visible[:, :width, :width] = np.tri(width, dtype=bool) & real[:, None]
    visible[:, width:, :width] = real[:, None]
    visible[:, width:, width:] = seen
    visible |= np.eye(width + more, dtype=bool)  # without a key, the softmax of padding would be NaN
    longest = max(len(each) for each in tokens)
    of_text = np.concatenate([row.text if len(row.text) else np.zeros(len(row.completions)) for row in rows])
    return PackedTrees(
        ids=ids,
        positions=np.concatenate([np.maximum(real.cumsum(axis=1) - 1, 0), depths], axis=1),
        visible=visible,
        prompt_width=width,
        tokens=np.stack([np.pad(each, (0, longest - len(each)), constant_values=-1) for each in tokens]),
        column=np.stack([np.pad(each, (0, longest - len(each))) for each in column]),
        row=np.array(owner, dtype=np.int64),
        text=np.arange(longest)[None] < of_text[:, None],
    )
