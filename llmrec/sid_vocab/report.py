"""Health report of a SID table: do the codes tell items apart, are the codebooks used, do codes mean something.

What to look for: many collisions before the suffix mean that the last level decides what the model cannot know; a
perplexity far below the codebook size means tokens that are hardly ever trained; titles below one first-level code that
have nothing in common mean vectors that do not separate the catalogue.
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
class HealthReport:
    """Everything `health_report` measures; collisions are counted before the suffix."""

    num_items: int
    codebook_sizes: tuple[int, ...]
    has_suffix: bool
    distinct: int
    """Different code tuples without the suffix."""
    colliding_items: int
    """Items whose codes without the suffix another item has, too."""
    collision_rate: float
    """`colliding_items` as a share of all items."""
    largest_bucket: int
    levels: tuple[LevelHealth, ...]
    """All levels, the suffix included."""
    biggest_buckets: tuple[CodeGroup, ...]
    """The most crowded SIDs (without the suffix) of two items or more."""
    first_codes: tuple[CodeGroup, ...]
    """The most frequent first-level codes."""
    notes: tuple[str, ...]
    """What was left out or done differently while the table was built."""

    def as_dict(self) -> dict[str, Any]:
        """Plain lists, texts and numbers for JSON."""
        plain: dict[str, Any] = _plain(asdict(self))
        return plain


def health_report(
    table: SIDTable,
    titles: Sequence[str],
    *,
    vectors: np.ndarray | None = None,
    quantizer: FittedQuantizer | None = None,
    notes: Sequence[str] = (),
    examples: int = 5,
) -> HealthReport:
    """Measure `table`, retired items included.

    Args:
        table: the table.
        titles: (n_items,) in the order of the table's rows, for people.
        vectors: (n_items, dim) what was quantised, in the same order.
        quantizer: what quantised it; with `vectors` it gives the reconstruction errors.
        notes: passed on.
        examples: how many buckets and first codes to show.
    """
    quantised = table.codes[:, : table.num_levels - table.has_suffix]
    rows, counts = np.unique(quantised, axis=0, return_counts=True)
    crowded = np.argsort(-counts, kind="stable")[:examples]
    errors = _reconstruction_errors(quantised, vectors, quantizer)
    first_counts = np.bincount(table.codes[:, 0], minlength=table.codebook_sizes[0])
    first = np.argsort(-first_counts, kind="stable")[:examples]
    return HealthReport(
        num_items=table.num_items,
        codebook_sizes=table.codebook_sizes,
        has_suffix=table.has_suffix,
        distinct=len(rows),
        colliding_items=int(counts[counts > 1].sum()),
        collision_rate=float(counts[counts > 1].sum() / table.num_items),
        largest_bucket=int(counts.max()),
        levels=tuple(
            _level_health(
                LEVEL_LETTERS[level], table.codes[:, level], size, errors[level] if level < len(errors) else None
            )
            for level, size in enumerate(table.codebook_sizes)
        ),
        biggest_buckets=tuple(_group(quantised, rows[i], titles) for i in crowded if counts[i] > 1),
        first_codes=tuple(_group(quantised, np.array([code]), titles) for code in first if first_counts[code]),
        notes=tuple(notes),
    )


def _level_health(letter: str, codes: np.ndarray, size: int, error: float | None) -> LevelHealth:
    shares = np.bincount(codes, minlength=size) / len(codes)
    shares = shares[shares > 0]
    entropy = max(0.0, float(-(shares * np.log2(shares)).sum()))
    return LevelHealth(letter, size, len(shares), entropy, 2**entropy, error)


def _reconstruction_errors(
    codes: np.ndarray, vectors: np.ndarray | None, quantizer: FittedQuantizer | None
) -> list[float]:
    if vectors is None or quantizer is None:
        return []
    variance = float(np.square(vectors - vectors.mean(axis=0)).sum())
    prefixes = (codes[:, : level + 1] for level in range(codes.shape[1]))
    return [float(np.square(vectors - quantizer.reconstruct(prefix)).sum()) / variance for prefix in prefixes]


def _group(codes: np.ndarray, prefix: np.ndarray, titles: Sequence[str]) -> CodeGroup:
    members = np.flatnonzero((codes[:, : len(prefix)] == prefix).all(axis=1))
    tokens = "".join(f"<{letter}_{code}>" for letter, code in zip(LEVEL_LETTERS, prefix.tolist(), strict=False))
    return CodeGroup(tokens, len(members), tuple(titles[row] for row in members[:_TITLES_SHOWN]))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(child) for key, child in value.items()}
    return [_plain(child) for child in value] if isinstance(value, tuple | list) else value
