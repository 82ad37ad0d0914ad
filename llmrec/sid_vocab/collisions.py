"""Items with equal codes: a suffix level tells them apart (TIGER, Rajput et al. 2023, section 3.1), or they share.

The suffix is there for all items, so that every SID has the same length. Two departures from TIGER. It has spare codes,
so that tomorrow's collisions need no new token. And inside a bucket it counts from the most popular train item down:
"suffix 0" then means "the one most people took" under every prefix, which a model learns once instead of per bucket
(two first probes point that way, each by less than a standard error: docs/decisions/0006).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from llmrec.config import Config
from llmrec.errors import InputError


class CollisionConfig(Config):
    """What to do with items that the quantiser gives the same codes."""

    strategy: Literal["suffix", "share"] = "suffix"
    """``suffix`` adds a level that numbers them; ``share`` lets them have one SID (and one place in a ranking)."""
    suffix_size: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    """Codes of the suffix level; ``auto``: the power of two that holds the biggest bucket and `spare`."""
    spare: float = Field(default=0.5, ge=0)
    """With ``auto``: room for new items, as a share of the biggest bucket (0.5: half as many again)."""


@dataclass(frozen=True)
class ResolvedCodes:
    """Codes after the strategy."""

    codes: np.ndarray
    """(n_items, num_levels) int32; distinct rows where `has_suffix`."""
    codebook_sizes: tuple[int, ...]
    has_suffix: bool


def resolve_collisions(
    codes: np.ndarray,
    codebook_sizes: tuple[int, ...],
    config: CollisionConfig,
    popularity: np.ndarray | None = None,
) -> ResolvedCodes:
    """Apply the strategy to (n_items, num_levels) codes; inside a bucket, suffixes count 0, 1, 2, ...

    Args:
        codes: of the quantiser.
        codebook_sizes: per level.
        config: the strategy.
        popularity: (n_items,) train counts; the suffix counts from the highest down, ties and None in row order.

    Raises:
        InputError: `suffix_size` is smaller than the biggest bucket.
    """
    if config.strategy == "share":
        return ResolvedCodes(codes.astype(np.int32), codebook_sizes, has_suffix=False)
    order = np.arange(len(codes)) if popularity is None else np.argsort(-np.asarray(popularity), kind="stable")
    suffix = np.empty(len(codes), np.int64)
    suffix[order] = number_in_bucket(codes[order])
    biggest = int(suffix.max()) + 1
    if config.suffix_size == "auto":
        size = 2 ** max(1, math.ceil(math.log2(biggest * (1 + config.spare))))
    else:
        size = config.suffix_size
    if size < biggest:
        raise InputError(
            f"suffix_size {size} cannot tell {biggest} items with the same codes apart.",
            hint=f"set suffix_size to at least {biggest} (or auto), or raise codebook_size",
        )
    together = np.concatenate([codes, suffix[:, None]], axis=1).astype(np.int32)
    return ResolvedCodes(together, (*codebook_sizes, size), has_suffix=True)


def number_in_bucket(codes: np.ndarray) -> np.ndarray:
    """(n_items,) int64: how many earlier rows have the same codes."""
    order = np.lexsort(codes.T[::-1])  # stable: equal rows stay in row order
    new = np.ones(len(codes), bool)
    new[1:] = np.any(np.diff(codes[order], axis=0), axis=1)
    positions = np.arange(len(codes))
    numbers = np.empty(len(codes), np.int64)
    numbers[order] = positions - np.maximum.accumulate(np.where(new, positions, 0))
    return numbers
