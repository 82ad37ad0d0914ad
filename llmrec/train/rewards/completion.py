"""What a completion says: token ids become SIDs, items, and the thought before them. Ids are read, never strings.

A completion is one item's SID, a list of SIDs, or a thought that ends with the closing tokens, followed by either or by
nothing (where a search names the items after the thought, `llmrec.decode.thought`). In a thought the model may write
bare prefixes of SIDs; they are its steps.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from llmrec.errors import InputError
from llmrec.sid_vocab.table import ACTIVE, SIDTable

SID = tuple[int, ...]


@dataclass(frozen=True)
class Completion:
    """One completion, read.

    Attributes:
        sids: the complete SIDs of the answer in the order in which they are written, legal or not.
        rows: for each of `sids` the table rows of the living items that have it; empty for a SID that no item has.
        thought: the token ids before the closing tokens; None where no thought is expected or none was closed.
        prefixes: the bare prefixes (and whole SIDs) in the thought, in order.
        well_formed: the ids are what was asked for and nothing else: a closed thought where one is expected, then
            complete SIDs alone, with no token between or after them. No SID at all can be well formed: a thought whose
            items come from a search.
    """

    sids: tuple[SID, ...]
    rows: tuple[tuple[int, ...], ...]
    thought: tuple[int, ...] | None
    prefixes: tuple[SID, ...]
    well_formed: bool

    @property
    def legal(self) -> bool:
        """Well formed, at least one SID, and every SID has a living item."""
        return self.well_formed and bool(self.sids) and all(self.rows)


class CompletionReader:
    """Reads completions against one SID table.

    Args:
        table: with token ids.
        closing_ids: the tokens that end a thought; ``()`` where completions have none. With them, a completion that
            holds no closing tokens has no answer: what it says was never meant as one.
        stop_ids: a completion ends before the first of these (EOS, padding).

    Raises:
        InputError: the table has no token ids.
    """

    def __init__(self, table: SIDTable, closing_ids: Sequence[int] = (), stop_ids: Iterable[int] = ()) -> None:
        if table.token_ids is None:
            raise InputError(
                "Completions cannot be read: this SID table has no token ids.",
                hint="use the table of the checkpoint, whose tokenizer was extended with it",
            )
        self._num_levels = table.num_levels
        self._closing = tuple(int(token_id) for token_id in closing_ids)
        self._stop = frozenset(int(token_id) for token_id in stop_ids)
        self._code_of = {
            int(token_id): (level, code)
            for level, ids in enumerate(table.token_ids)
            for code, token_id in enumerate(ids)
        }
        living = table.status == ACTIVE
        self._living: dict[SID, tuple[int, ...]] = {
            sid: tuple(rows[living[rows]].tolist()) for sid, rows in table.buckets().items()
        }

    def read(self, token_ids: Sequence[int] | np.ndarray) -> Completion:
        """Read one completion."""
        ids = [int(token_id) for token_id in token_ids]
        ids = ids[: next((place for place, token_id in enumerate(ids) if token_id in self._stop), len(ids))]
        thought: tuple[int, ...] | None = None
        prefixes: tuple[SID, ...] = ()
        if self._closing:
            size = len(self._closing)
            starts = range(len(ids) - size + 1)
            end = next((start for start in starts if tuple(ids[start : start + size]) == self._closing), None)
            if end is None:
                return Completion((), (), None, (), well_formed=False)
            thought, ids = tuple(ids[:end]), ids[end + size :]
            prefixes = tuple(self._runs(thought))
        runs = list(self._runs(ids))
        sids = tuple(sid for sid in runs if len(sid) == self._num_levels)
        return Completion(
            sids=sids,
            rows=tuple(self.rows(sid) for sid in sids),
            thought=thought,
            prefixes=prefixes,
            well_formed=len(sids) * self._num_levels == len(ids),
        )

    def rows(self, sid: SID) -> tuple[int, ...]:
        """Table rows of the living items that have `sid`."""
        return self._living.get(sid, ())

    def _runs(self, ids: Sequence[int]) -> Iterable[SID]:
        """Every run of SID tokens that starts at level 0 and goes down a level a token, from left to right."""
        run: list[int] = []
        for token_id in ids:
            level, code = self._code_of.get(token_id, (-1, -1))
            if run and level == len(run):
                run.append(code)
                continue
            if run:
                yield tuple(run)
            run = [code] if level == 0 else []
        if run:
            yield tuple(run)


def common_depth(one: SID, other: SID) -> int:
    """Levels from the first one on at which two SIDs or prefixes agree."""
    depth = 0
    for ours, theirs in zip(one, other, strict=False):
        if ours != theirs:
            break
        depth += 1
    return depth
