"""Items with equal codes: a suffix tells them apart, or they move to a free code nearby, or they share.

* ``suffix`` (TIGER, Rajput et al. 2023, section 3.1): one more level for all items, so that every SID has the same
  length. Two departures. It has spare codes, so that tomorrow's collisions need no new token. And inside a bucket it
  counts from the most popular train item down: "suffix 0" then means "the one most people took" under every prefix,
  which a model learns once instead of per bucket (docs/decisions/0006).
* ``reassign``: no new level. The most popular item of a bucket keeps its codes, each other one gets the nearest code of
  the last level that no item below the same prefix has. It moves as few items as can be, and a move touches nobody
  else.
* ``sinkhorn``: no new level. All items of a bucket ask for a code of the last level, and optimal transport gives each a
  different one that is free, at nearly the least total distance (LC-Rec's uniform semantic mapping, Zheng et al. 2024;
  departures in `transport`). Who stays is not a matter of popularity.
* ``share``: nothing is done.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, Protocol

import numpy as np
from pydantic import Field

from llmrec.config import Config
from llmrec.errors import InputError
from llmrec.sid_vocab.quantizer import FittedQuantizer
from llmrec.sid_vocab.transport import one_code_each


class CollisionConfig(Config):
    """What to do with items that the quantiser gives the same codes."""

    strategy: Literal["suffix", "reassign", "sinkhorn", "share"] = "suffix"
    """``suffix`` adds a level that numbers them: always possible, one token more per item, and that token says nothing
    about the item. ``reassign`` gives them free codes of the last level nearby: short and meaningful SIDs, but each
    prefix has room for ``codebook_size`` items, new ones included. ``sinkhorn`` does so for the whole bucket at once:
    nearer codes in all, but popular items move, too. ``share`` lets them have one SID: the model cannot choose among
    them, and a ranking puts the whole bucket on one place."""
    suffix_size: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    """Codes of the suffix level; ``auto``: the power of two that holds the biggest bucket and `spare`."""
    spare: float = Field(default=0.5, ge=0)
    """With ``auto``: room for new items, as a share of the biggest bucket (0.5: half as many again)."""


@dataclass(frozen=True)
class ResolvedCodes:
    """Codes after the strategy."""

    codes: np.ndarray
    """(n_items, num_levels) int32; distinct rows unless the strategy is ``share``."""
    codebook_sizes: tuple[int, ...]
    has_suffix: bool
    moved: int = 0
    """Items that have another last code than the quantiser's (``reassign`` and ``sinkhorn``)."""


def resolve_collisions(
    codes: np.ndarray,
    codebook_sizes: tuple[int, ...],
    config: CollisionConfig,
    popularity: np.ndarray | None = None,
    *,
    vectors: np.ndarray | None = None,
    quantizer: FittedQuantizer | None = None,
) -> ResolvedCodes:
    """Apply the strategy to (n_items, num_levels) codes.

    Args:
        codes: of the quantiser.
        codebook_sizes: per level.
        config: the strategy.
        popularity: (n_items,) train counts: suffixes count from the highest down, and the highest keeps its codes;
            ties and None in row order.
        vectors: (n_items, dim) what was quantised; ``reassign`` and ``sinkhorn`` need it to tell near codes from far.
        quantizer: what quantised it; likewise.

    Raises:
        InputError: the codes do not suffice: `suffix_size` is smaller than the biggest bucket, or (``reassign`` and
            ``sinkhorn``) a prefix has more items than the last level has codes; the size that would do is named.
    """
    order = np.arange(len(codes)) if popularity is None else np.argsort(-np.asarray(popularity), kind="stable")
    if config.strategy == "share":
        return ResolvedCodes(codes.astype(np.int32), codebook_sizes, has_suffix=False)
    if config.strategy == "suffix":
        return _with_suffix(codes, codebook_sizes, config, order)
    if vectors is None or quantizer is None:
        raise InputError(
            f"collisions.strategy {config.strategy} needs the vectors.", hint="use suffix or share for given SIDs"
        )
    place = _nearest_free if config.strategy == "reassign" else _by_transport
    return _moved(codes, codebook_sizes, config, order, vectors, quantizer, place)


def number_in_bucket(codes: np.ndarray) -> np.ndarray:
    """(n_items,) int64: how many earlier rows have the same codes."""
    order = np.lexsort(codes.T[::-1])  # stable: equal rows stay in row order
    new = np.ones(len(codes), bool)
    new[1:] = np.any(np.diff(codes[order], axis=0), axis=1)
    positions = np.arange(len(codes))
    numbers = np.empty(len(codes), np.int64)
    numbers[order] = positions - np.maximum.accumulate(np.where(new, positions, 0))
    return numbers


def group_rows(codes: np.ndarray) -> list[np.ndarray]:
    """Rows by equal codes (n, k), k may be 0: arrays of row numbers, ascending inside a group."""
    if not codes.shape[1]:
        return [np.arange(len(codes))] if len(codes) else []
    order = np.lexsort(codes.T[::-1])
    starts = np.flatnonzero(np.any(np.diff(codes[order], axis=0), axis=1)) + 1
    return np.split(order, starts) if len(codes) else []


def last_level_errors(
    vectors: np.ndarray, prefix: Sequence[int] | np.ndarray, size: int, quantizer: FittedQuantizer
) -> np.ndarray:
    """(n, size) squared distance of each of (n, dim) `vectors` to `prefix` completed by each code of the last level."""
    candidates = np.empty((size, len(prefix) + 1), np.int32)
    candidates[:, :-1] = prefix
    candidates[:, -1] = np.arange(size)
    rebuilt = quantizer.reconstruct(candidates).astype(np.float64)
    given = vectors.astype(np.float64)
    crossed = given @ rebuilt.T
    errors: np.ndarray = np.square(given).sum(axis=1)[:, None] - 2 * crossed + np.square(rebuilt).sum(axis=1)
    return errors


def _with_suffix(
    codes: np.ndarray, codebook_sizes: tuple[int, ...], config: CollisionConfig, order: np.ndarray
) -> ResolvedCodes:
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


class _Place(Protocol):
    """Last codes below one prefix."""

    def __call__(self, last: np.ndarray, costs: np.ndarray) -> np.ndarray:
        """(n,) different last codes of the items below a prefix, the most popular first.

        Args:
            last: (n,) codes of the quantiser.
            costs: (n, size) squared distances to all of them, n at most size.
        """
        ...


def _moved(
    codes: np.ndarray,
    codebook_sizes: tuple[int, ...],
    config: CollisionConfig,
    order: np.ndarray,
    vectors: np.ndarray,
    quantizer: FittedQuantizer,
    place: _Place,
) -> ResolvedCodes:
    # 1. Does every prefix have room? The levels before the last do not depend on its size, so the answer is exact.
    size = codebook_sizes[-1]
    ranked = codes[order]
    groups = group_rows(ranked[:, :-1])
    crowded = max(map(len, groups))
    if crowded > size:
        too_full = sum(len(rows) > size for rows in groups)
        raise InputError(
            f"{too_full} of {len(groups)} prefixes have more items (up to {crowded}) than the last level has codes "
            f"({size}), so that {len(codes)} items cannot get {len(codes)} SIDs by collisions.strategy "
            f"{config.strategy}.",
            hint=f"set codebook_size to {[*codebook_sizes[:-1], crowded]}, with room for new items to more; "
            "or add a level; or use collisions.strategy suffix",
        )
    # 2. Prefix by prefix, where codes are shared.
    later = number_in_bucket(ranked) > 0
    resolved = ranked.astype(np.int32)
    for rows in groups:
        if later[rows].any():
            costs = last_level_errors(vectors[order[rows]], ranked[rows[0], :-1], size, quantizer)
            resolved[rows, -1] = place(ranked[rows, -1], costs)
    result = np.empty_like(resolved)
    result[order] = resolved
    return ResolvedCodes(result, codebook_sizes, has_suffix=False, moved=int((result != codes).any(axis=1).sum()))


def _nearest_free(last: np.ndarray, costs: np.ndarray) -> np.ndarray:
    """The first of every bucket stays; the others take what is nearest and free, one after another."""
    taken = np.bincount(last, minlength=costs.shape[1]) > 0
    chosen = last.copy()
    for row in np.flatnonzero(number_in_bucket(last[:, None]) > 0):
        chosen[row] = int(np.where(taken, np.inf, costs[row]).argmin())
        taken[chosen[row]] = True
    return chosen


def _by_transport(last: np.ndarray, costs: np.ndarray) -> np.ndarray:
    """Items alone with their code stay; all others share out the rest."""
    holders = np.bincount(last, minlength=costs.shape[1])
    chosen, colliding, free = last.copy(), np.flatnonzero(holders[last] > 1), np.flatnonzero(holders != 1)
    chosen[colliding] = free[one_code_each(costs[np.ix_(colliding, free)])]
    return chosen
