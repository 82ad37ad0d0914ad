"""New items get SIDs without training: codebooks stay frozen, the table gets its next version.

A trained model knows a SID by the items it stood for, so three things never happen: an item's SID does not change, a
SID is given only once (a retired item keeps its own, for the histories it stands in), and no token is added. What is
left for a new item is a free place near its vector: under its own codes as long as there is one, else under the
nearest code of the last quantised level that has room.

Codebooks fit the items of their day. `drift` compares how well they reconstruct new items and old ones; old items are
embedded as if they were new, without behaviour, so that both sides are measured alike.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from llmrec.errors import InputError
from llmrec.sid_vocab.collisions import last_level_errors
from llmrec.sid_vocab.quantizer import FittedQuantizer
from llmrec.sid_vocab.table import RETIRED, SIDTable

_TAIL = 0.95  # quantile of the old items' errors above which an item counts as badly reconstructed
_REFIT_SHARE = 0.15  # of new items above it; three times what old items have by definition
_REFIT_Z = 3.0  # and beyond what chance gives so few items


@dataclass(frozen=True)
class Drift:
    """How well frozen codebooks fit new items; errors are squared distances to the reconstruction."""

    items: int
    reference_items: int
    """Old items that they are compared with."""
    median_error: float
    reference_median_error: float
    tail_share: float
    """Of the new items, whose error is above the old items' 95th percentile: .05 where nothing changed."""
    z: float
    """Standard errors that `tail_share` is above .05."""
    refit_due: bool
    """`tail_share` is above .15 and `z` above 3."""


@dataclass(frozen=True)
class Assigned:
    """The next version of a table."""

    table: SIDTable
    added: tuple[str, ...]
    known: tuple[str, ...]
    """Given as new, but in the table already: they keep SID and status."""
    retired: tuple[str, ...]
    already_retired: tuple[str, ...]
    displaced: tuple[str, ...]
    """Added items whose own codes had no free place, and who got the next-nearest last code."""
    sharing: tuple[str, ...]
    """Added items that have the SID of another one (only where the table shares SIDs)."""


def next_version(
    table: SIDTable,
    quantizer: FittedQuantizer | None,
    item_ids: Sequence[str],
    vectors: np.ndarray,
    *,
    retire: Collection[str] = (),
    share: bool = False,
) -> Assigned:
    """The table with `item_ids` added and `retire` retired; its parent is `table`.

    Args:
        table: the version before, with codebooks where items are added.
        quantizer: of the codebooks; None where no item is new.
        item_ids: (n,) items, new or known, in the order in which they get places.
        vectors: (n, dim) of the items, in the space of the codebooks; rows of known items are not read.
        retire: items that are not to be recommended any more.
        share: whether several items may have one SID, as the table was built.

    Raises:
        InputError: an item to retire is unknown or is added at once, an id comes twice, nothing would change, or a new
            item finds no free place below its prefix.
    """
    old = set(table.item_ids)
    fresh = [row for row, item_id in enumerate(item_ids) if item_id not in old]
    added = tuple(item_ids[row] for row in fresh)
    gone = dict.fromkeys(retire)
    if len(set(added)) < len(added):
        raise InputError("A new item is given more than once.", hint="give one line per item")
    if unknown := [item_id for item_id in gone if item_id not in old]:
        raise InputError(
            f"{len(unknown)} of {len(gone)} items to retire are not in the table, first: {unknown[0]!r}.",
            hint="ids are text and must be those of the table; a new item cannot be retired in the same step",
        )
    rows = [table.row(item_id) for item_id in gone]
    already = tuple(item_id for item_id, row in zip(gone, rows, strict=True) if table.status[row] == RETIRED)
    retired = tuple(item_id for item_id in gone if item_id not in already)
    if not added and not retired:
        raise InputError(
            "Nothing would change: no item is new to the table and none is to be retired.",
            hint="give items that the table lacks, or active items to retire",
        )
    codes = np.empty((0, table.num_levels), np.int32)
    displaced: tuple[str, ...] = ()
    sharing: tuple[str, ...] = ()
    if added:
        if quantizer is None:
            raise InputError("A table without codebooks cannot give new items SIDs.")
        quantised = quantizer.encode(vectors[fresh])
        placed = quantised if share else _place(table, quantizer, added, quantised, vectors[fresh])
        moved = (placed[:, : quantised.shape[1]] != quantised).any(axis=1)
        displaced = tuple(item_id for item_id, other in zip(added, moved, strict=True) if other)
        codes = placed
        if share:
            taken = Counter(map(tuple, [*table.codes.tolist(), *placed.tolist()]))
            sharing = tuple(
                item_id for item_id, sid in zip(added, map(tuple, placed.tolist()), strict=True) if taken[sid] > 1
            )
    status = np.concatenate([table.status, np.zeros(len(added), np.uint8)])
    status[rows] = RETIRED
    version = SIDTable(
        item_ids=(*table.item_ids, *added),
        codes=np.concatenate([table.codes, codes]),
        codebook_sizes=table.codebook_sizes,
        has_suffix=table.has_suffix,
        status=status,
        token_ids=table.token_ids,
        codebooks=table.codebooks,
        parent=table.rows_fingerprint,
    )
    known = tuple(item_id for item_id in item_ids if item_id in old)
    return Assigned(version, added, known, retired, already, displaced, sharing)


def drift(quantizer: FittedQuantizer, vectors: np.ndarray, reference: np.ndarray) -> Drift:
    """Compare how well `quantizer` reconstructs (n, dim) new `vectors` and (m, dim) `reference` vectors of old items.

    Both are encoded to their nearest codes, whatever SID they have: the question is the codebooks, not the places.
    """
    new, old = (reconstruction_errors(quantizer, given) for given in (vectors, reference))
    # The mean of the indicator over old items themselves, not 1 - _TAIL: errors repeat, and the reference may be small.
    limit = float(np.quantile(old, _TAIL))
    expected = max(float((old > limit).mean()), 1 / len(old))
    share = float((new > limit).mean())
    z = (share - expected) / float(np.sqrt(expected * (1 - expected) * (1 / len(new) + 1 / len(old)) + 1e-12))
    return Drift(
        items=len(new),
        reference_items=len(old),
        median_error=float(np.median(new)),
        reference_median_error=float(np.median(old)),
        tail_share=share,
        z=z,
        refit_due=share > _REFIT_SHARE and z > _REFIT_Z,
    )


def reconstruction_errors(quantizer: FittedQuantizer, vectors: np.ndarray) -> np.ndarray:
    """(n,) squared distance of each of (n, dim) `vectors` to its reconstruction from its nearest codes."""
    rebuilt = quantizer.reconstruct(quantizer.encode(vectors))
    errors: np.ndarray = np.square(vectors.astype(np.float64) - rebuilt).sum(axis=1)
    return errors


def _place(
    table: SIDTable, quantizer: FittedQuantizer, item_ids: Sequence[str], quantised: np.ndarray, vectors: np.ndarray
) -> np.ndarray:
    """(n, num_levels) free SIDs of new items with (n, quantised levels) nearest codes; nobody else's, dead or alive."""
    levels = quantised.shape[1]
    size = table.codebook_sizes[levels - 1]
    endings = [[number] for number in range(table.codebook_sizes[-1])] if table.has_suffix else [[]]
    used = _used(table, quantised)
    placed = np.empty((len(quantised), table.num_levels), np.int32)
    homeless = []
    for row, codes in enumerate(quantised.tolist()):
        if len(used[tuple(codes)]) < len(endings):
            order = [codes[-1]]
        else:
            errors = last_level_errors(vectors[row : row + 1], codes[:-1], size, quantizer)[0]
            order = np.argsort(errors, kind="stable").tolist()
        below = ((*codes[:-1], code) for code in order)
        home = next((sid for sid in below if len(used[sid]) < len(endings)), None)
        if home is None:
            homeless.append(item_ids[row])
            continue
        ending = next(ending for ending in endings if tuple(ending) not in used[home])
        used[home].add(tuple(ending))
        placed[row] = [*home, *ending]
    if homeless:
        raise InputError(
            f"{len(homeless)} of {len(item_ids)} new items find no free SID, first: {homeless[0]!r}. All "
            f"{size * len(endings)} places below their first codes are taken.",
            hint="fit new SIDs with more codes (llmrec sid fit) and train with them; or leave these items out",
        )
    return placed


def _used(table: SIDTable, quantised: np.ndarray) -> defaultdict[tuple[int, ...], set[tuple[int, ...]]]:
    """Endings in use (a suffix, or nothing) by quantised codes, below the prefixes that new items have."""
    levels = quantised.shape[1]
    prefixes = {tuple(prefix) for prefix in quantised[:, :-1].tolist()}
    used: defaultdict[tuple[int, ...], set[tuple[int, ...]]] = defaultdict(set)
    for codes in table.codes.tolist():
        if tuple(codes[: levels - 1]) in prefixes:
            used[tuple(codes[:levels])].add(tuple(codes[levels:]))
    return used
