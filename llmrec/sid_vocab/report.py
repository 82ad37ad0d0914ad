"""Health report of a SID table: do the codes tell items apart, are the codebooks used, do codes mean something.

What to look for: many collisions before the suffix mean that the last level decides what the model cannot know; a
perplexity far below the codebook size means tokens that are hardly ever trained; titles below one first-level code that
have nothing in common mean vectors that do not separate the catalogue. What behaviour and categories say about a table
is in `llmrec.sid_vocab.health`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from llmrec.sid_vocab.quantizer import FittedQuantizer
from llmrec.sid_vocab.table import LEVEL_LETTERS, SIDTable

_TITLES_SHOWN = 5


@dataclass(frozen=True)
class LevelHealth:
    """How one level uses its codebook."""

    level: str
    """Its letter."""
    codebook_size: int
    used: int
    """Codes that at least one item has."""
    entropy: float
    """Of the distribution of items over codes, in bits."""
    perplexity: float
    """2 ** entropy: the number of codes that would be as informative if used equally."""
    gini: float
    """Of the items per code, unused codes included: 0 where all codes have as many, near 1 where one has all."""
    reconstruction_error: float | None
    """Squared error with this and the levels before, as a share of the vectors' variance; None without a quantiser."""


@dataclass(frozen=True)
class CodeGroup:
    """Items below a code, or with the same SID."""

    tokens: str
    """The common prefix as text, ``<a_12>``."""
    num_items: int
    titles: tuple[str, ...]
    """The first few, in row order."""


@dataclass(frozen=True)
class Apart:
    """Collisions and reconstruction of a part of the items."""

    items: int
    collision_rate: float | None
    """Share of them whose codes before the suffix another item (of any part) has; None for no items."""
    reconstruction_error: float | None
    """With all levels, as a share of all items' mean variance; None without a quantiser."""


@dataclass(frozen=True)
class HealthReport:
    """Everything `health_report` measures; collisions are counted before the suffix."""

    rows_fingerprint: str
    """Of the table."""
    num_items: int
    codebook_sizes: tuple[int, ...]
    has_suffix: bool
    distinct: int
    """Different code tuples without the suffix (before any re-assignment)."""
    colliding_items: int
    """Items whose codes without the suffix (before any re-assignment) another item has, too."""
    collision_rate: float
    """`colliding_items` as a share of all items."""
    largest_bucket: int
    hourglass: float | None
    """How much the narrowest inner level falls behind the outer ones (Kuai et al. 2024): the lower of the first and
    the last quantised level's entropy minus the lowest of those between, each as a share of its codebook's bits. Above
    0 there is a waist; None for fewer than three quantised levels."""
    levels: tuple[LevelHealth, ...]
    """All levels, the suffix included."""
    cold: Apart | None
    """Items without train events: how new items will fare. None where popularity is unknown."""
    warm: Apart | None
    """All others."""
    biggest_buckets: tuple[CodeGroup, ...]
    """The most crowded SIDs (without the suffix, before any re-assignment) of two items or more."""
    first_codes: tuple[CodeGroup, ...]
    """The most frequent first-level codes."""
    notes: tuple[str, ...]
    """What was left out or done differently while the table was built."""

    def as_dict(self) -> dict[str, Any]:
        """Plain lists, texts and numbers for JSON."""
        return as_plain(self)


def health_report(
    table: SIDTable,
    titles: Sequence[str],
    *,
    quantised: np.ndarray | None = None,
    vectors: np.ndarray | None = None,
    quantizer: FittedQuantizer | None = None,
    popularity: np.ndarray | None = None,
    notes: Sequence[str] = (),
    examples: int = 5,
) -> HealthReport:
    """Measure `table`, retired items included.

    Args:
        table: the table.
        titles: (n_items,) in the order of the table's rows, for people.
        quantised: (n_items, levels before the suffix) the quantiser's own codes, which collisions are counted in; by
            default those of the table.
        vectors: (n_items, dim) what was quantised, in the same order.
        quantizer: what quantised it; with `vectors` it gives the reconstruction errors.
        popularity: (n_items,) train counts: sets cold items apart.
        notes: passed on.
        examples: how many buckets and first codes to show.
    """
    own = table.codes[:, : table.num_levels - table.has_suffix]
    quantised = own if quantised is None else quantised
    rows, counts = np.unique(quantised, axis=0, return_counts=True)
    crowded = np.argsort(-counts, kind="stable")[:examples]
    errors = _reconstruction_errors(own, vectors, quantizer)
    totals = [float(error.mean()) for error in errors]
    cold = None if popularity is None else popularity == 0
    first_counts = np.bincount(table.codes[:, 0], minlength=table.codebook_sizes[0])
    first = np.argsort(-first_counts, kind="stable")[:examples]
    levels = tuple(
        _level_health(LEVEL_LETTERS[level], table.codes[:, level], size, totals[level] if level < len(totals) else None)
        for level, size in enumerate(table.codebook_sizes)
    )
    last = errors[-1] if errors else None
    return HealthReport(
        rows_fingerprint=table.rows_fingerprint,
        num_items=table.num_items,
        codebook_sizes=table.codebook_sizes,
        has_suffix=table.has_suffix,
        distinct=len(rows),
        colliding_items=int(counts[counts > 1].sum()),
        collision_rate=float(counts[counts > 1].sum() / table.num_items),
        largest_bucket=int(counts.max()),
        hourglass=_hourglass(levels[: own.shape[1]]),
        levels=levels,
        cold=None if cold is None else _apart(quantised, cold, last),
        warm=None if cold is None else _apart(quantised, ~cold, last),
        biggest_buckets=tuple(_group(quantised, rows[i], titles) for i in crowded if counts[i] > 1),
        first_codes=tuple(_group(quantised, np.array([code]), titles) for code in first if first_counts[code]),
        notes=tuple(notes),
    )


def as_plain(report: Any) -> dict[str, Any]:
    """A report's dataclass as plain lists, texts and numbers for JSON."""
    plain: dict[str, Any] = _plain(asdict(report))
    return plain


def prefix_text(prefix: Sequence[int]) -> str:
    """The tokens of the first codes of a SID: ``<a_12><b_7>``."""
    return "".join(f"<{letter}_{code}>" for letter, code in zip(LEVEL_LETTERS, prefix, strict=False))


def _level_health(letter: str, codes: np.ndarray, size: int, error: float | None) -> LevelHealth:
    counts = np.bincount(codes, minlength=size)
    shares = counts[counts > 0] / len(codes)
    entropy = max(0.0, float(-(shares * np.log2(shares)).sum()))
    return LevelHealth(letter, size, len(shares), entropy, 2**entropy, _gini(counts), error)


def _gini(counts: np.ndarray) -> float:
    ascending = np.sort(counts).astype(np.float64)
    places = np.arange(1, len(counts) + 1)
    weighted = float((places * ascending).sum())
    return 2 * weighted / (len(counts) * float(ascending.sum())) - (len(counts) + 1) / len(counts)


def _hourglass(levels: Sequence[LevelHealth]) -> float | None:
    if len(levels) < 3 or min(level.codebook_size for level in levels) < 2:
        return None
    filled = [level.entropy / float(np.log2(level.codebook_size)) for level in levels]
    return min(filled[0], filled[-1]) - min(filled[1:-1])


def _reconstruction_errors(
    codes: np.ndarray, vectors: np.ndarray | None, quantizer: FittedQuantizer | None
) -> list[np.ndarray]:
    """Per level the (n_items,) squared errors with the levels so far, as a share of the items' mean variance."""
    if vectors is None or quantizer is None:
        return []
    variance = float(np.square(vectors - vectors.mean(axis=0)).sum(axis=1).mean())
    prefixes = (codes[:, : level + 1] for level in range(codes.shape[1]))
    return [np.square(vectors - quantizer.reconstruct(prefix)).sum(axis=1) / variance for prefix in prefixes]


def _apart(codes: np.ndarray, part: np.ndarray, errors: np.ndarray | None) -> Apart:
    if not part.any():
        return Apart(0, None, None)
    numbers = np.unique(codes, axis=0, return_inverse=True)[1].reshape(-1)
    collides = np.bincount(numbers)[numbers] > 1
    error = None if errors is None else float(errors[part].mean())
    return Apart(int(part.sum()), float(collides[part].mean()), error)


def _group(codes: np.ndarray, prefix: np.ndarray, titles: Sequence[str]) -> CodeGroup:
    members = np.flatnonzero((codes[:, : len(prefix)] == prefix).all(axis=1))
    return CodeGroup(prefix_text(prefix.tolist()), len(members), tuple(titles[row] for row in members[:_TITLES_SHOWN]))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(child) for key, child in value.items()}
    return [_plain(child) for child in value] if isinstance(value, tuple | list) else value
