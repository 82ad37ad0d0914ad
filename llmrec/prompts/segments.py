"""What the renderer gives back: typed segments, and from them token ids, a loss mask and the SID level of each token.

Strings are for people. A model only ever sees `Rendered.input_ids`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np


class SegmentKind(StrEnum):
    """Where a segment's words come from, which decides how they may be tokenised."""

    ROLE = "role"
    """Chat markers, BOS and EOS: the only kind in which control tokens are recognised."""
    INSTRUCTION = "instruction"
    """The words of a template file."""
    TEXT = "text"
    """Words of an item or a user: never a control token, never a SID token."""
    SID = "sid"
    """Items: ids straight from the SID table."""


@dataclass(frozen=True)
class Segment:
    """A run of one kind, tokenised on its own."""

    kind: SegmentKind
    text: str
    """Readable form; of SID segments the token names back to back."""
    item_ids: tuple[str, ...] = ()
    """The items of a SID segment, in order."""
    target: bool = False
    """Whether its tokens carry loss."""
    codes: tuple[int, ...] = ()
    """Of a SID segment that is a bare prefix: its codes, and no `item_ids`."""


@dataclass(frozen=True)
class Rendered:
    """One row as the model sees it."""

    input_ids: np.ndarray
    """(length,) int64."""
    target: np.ndarray
    """(length,) bool: tokens that carry loss."""
    sid_level: np.ndarray
    """(length,) int8: level of a SID token, -1 for everything else."""
    segments: tuple[Segment, ...]
    truncated_items: int = 0
    """Oldest history items dropped to fit a window or a length."""
    skipped_items: int = 0
    """History items without a SID."""

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def text(self) -> str:
        """The readable row, for people and logs."""
        return "".join(segment.text for segment in self.segments)
