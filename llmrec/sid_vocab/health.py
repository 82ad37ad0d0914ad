"""What behaviour and categories say about a SID table: lifts beside chance, and what a prefix means.

A good prefix is shared by items that the same people take next, and by items of a kind. Both are measured as a *lift*:
how much more often than by chance.

* **Prefix lift.** Pairs are a user's last train item and the valid target after it, which nothing is fitted on. Pairs
  of equal items and pairs that stand next to each other anywhere in train are left out (behaviour vectors know those);
  they are counted. Chance keeps the popularity of the target: another item of as many train events (0, 1, 2-3, 4-7,
  ...) in its place. That probability is computed exactly, so z has no sampling error of its own.
* **Category lift.** Two random items with the same prefix share a value of an attribute; chance is any two items.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from llmrec.data.catalog import Catalog
from llmrec.data.split import Split
from llmrec.sid_vocab.report import prefix_text
from llmrec.sid_vocab.table import LEVEL_LETTERS, SIDTable

_CATEGORY_PAIRS = 20_000  # random pairs a level and attribute: a share of .1 is known to .002
_TITLES = 8
_TYPICAL = 3


@dataclass(frozen=True)
class Lift:
    """How often pairs agree, beside chance."""

    what: str
    """Levels of the prefix (``a``, ``ab``, ...), after the attribute's name for a category lift."""
    pairs: int
    observed: float
    """Share of the pairs that agree."""
    expected: float
    """The share by chance."""
    lift: float | None
    """`observed` / `expected`; None where chance gives no agreement at all."""
    z: float | None
    """Standard errors between the two; None where chance leaves no room (a share of exactly 0 or 1)."""


@dataclass(frozen=True)
class PairCounts:
    """Where the pairs of the prefix lift come from."""

    users: int
    used: int
    in_train: int
    """Left out: next to each other in train."""
    repeats: int
    """Left out: the same item twice."""
    without_sid: int
    """Left out: an item that the table lacks."""


@dataclass(frozen=True)
class Meaning:
    """What stands below a prefix."""

    tokens: str
    num_items: int
    titles: tuple[str, ...]
    """The most popular ones."""
    typical: tuple[str, ...]
    """Attribute values more frequent here than elsewhere: ``genres Horror: 61 % (all items 8 %)``."""


@dataclass(frozen=True)
class Meanings:
    """What `measure_meaning` finds."""

    pairs: PairCounts
    prefix_lift: tuple[Lift, ...]
    """One per quantised level: prefixes of 1, 2, ... codes."""
    category_lift: tuple[Lift, ...]
    prefixes: tuple[Meaning, ...]


def measure_meaning(
    table: SIDTable,
    split: Split,
    catalog: Catalog,
    *,
    prefixes: Sequence[tuple[int, ...]] = (),
    examples: int = 8,
) -> Meanings:
    """Measure what the codes of `table` mean.

    Args:
        table: the SIDs; items of the split that it lacks are counted.
        split: whose train and valid part are read (never test).
        catalog: titles and attributes; items of the table that it lacks have neither.
        prefixes: codes of the prefixes to explain; by default the `examples` most frequent first codes.
        examples: see `prefixes`.
    """
    codes = table.codes[:, : table.num_levels - table.has_suffix]
    row_of = {item_id: row for row, item_id in enumerate(table.item_ids)}
    rows = np.array([row_of.get(item_id, -1) for item_id in split.items], np.int64)
    popularity = np.zeros(table.num_items, np.int64)
    popularity[rows[rows >= 0]] = split.train_counts()[rows >= 0]
    pairs, counts = valid_pairs(split, rows)
    values = [catalog.attribute_values(item_id) if item_id in catalog else {} for item_id in table.item_ids]
    if not prefixes:
        frequent = np.bincount(codes[:, 0])
        prefixes = [(int(code),) for code in np.argsort(-frequent, kind="stable")[:examples] if frequent[code]]
    titles = [catalog.title(item_id) if item_id in catalog else item_id for item_id in table.item_ids]
    return Meanings(
        pairs=counts,
        prefix_lift=prefix_lift(codes, pairs, popularity),
        category_lift=tuple(
            lift
            for name in catalog.attributes
            for lift in category_lift(codes, [set(one.get(name, ())) for one in values], name)
        ),
        prefixes=tuple(explain_prefix(codes, prefix, titles, values, popularity) for prefix in prefixes),
    )


def valid_pairs(split: Split, rows: np.ndarray) -> tuple[np.ndarray, PairCounts]:
    """Last train item and valid target of every user, as (n, 2) rows of the table, and what was left out.

    Args:
        split: the data.
        rows: (number of split items,) the table's row of each, -1 for items that it lacks.
    """
    train = split.train()
    number = len(split.items)
    neighbours = [sequence[:-1].astype(np.int64) * number + sequence[1:] for sequence in train if len(sequence) > 1]
    seen = np.unique(np.concatenate([np.empty(0, np.int64), *neighbours]))
    pairs = np.stack([np.array([sequence[-1] for sequence in train], np.int64), split.targets("valid")], axis=1)
    forth, back = pairs[:, 0] * number + pairs[:, 1], pairs[:, 1] * number + pairs[:, 0]
    repeats = pairs[:, 0] == pairs[:, 1]
    in_train = ~repeats & (np.isin(forth, seen) | np.isin(back, seen))
    of_table = rows[pairs]
    missing = ~repeats & ~in_train & (of_table < 0).any(axis=1)
    used = ~(repeats | in_train | missing)
    counts = PairCounts(len(pairs), int(used.sum()), int(in_train.sum()), int(repeats.sum()), int(missing.sum()))
    return of_table[used], counts


def prefix_lift(codes: np.ndarray, pairs: np.ndarray, popularity: np.ndarray) -> tuple[Lift, ...]:
    """How much more often pairs share their first 1, 2, ... codes than popularity-matched pairs do.

    Args:
        codes: (n_items, levels).
        pairs: (n, 2) rows of different items; the second is the one that chance replaces.
        popularity: (n_items,) train counts.
    """
    bins = np.floor(np.log2(np.maximum(popularity, 0.5))).astype(np.int64) + 1  # 0, 1, 2-3, 4-7, ...
    sizes = np.bincount(bins)
    return tuple(
        _prefix_lift(LEVEL_LETTERS[: level + 1], _numbered(codes[:, : level + 1]), pairs, bins, sizes)
        for level in range(codes.shape[1])
    )


def category_lift(codes: np.ndarray, values: Sequence[Collection[str]], name: str, *, seed: int = 0) -> list[Lift]:
    """How much more often two items with the same first 1, 2, ... codes share a value than any two items.

    Args:
        codes: (n_items, levels).
        values: per item, its values of one attribute; items without any take no part.
        name: of the attribute.
        seed: of the random pairs.
    """
    known = np.array([row for row, one in enumerate(values) if one], np.int64)
    if len(known) < 2:
        return []
    rng = np.random.default_rng(seed)
    sets = [set(values[row]) for row in known]
    chance = _agreement(sets, _random_pairs(np.zeros(len(known), np.int64), rng))
    lifts = []
    for level in range(codes.shape[1]):
        pairs = _random_pairs(_numbered(codes[known, : level + 1]), rng)
        if not len(pairs):
            break  # no two items have such a prefix in common, nor a longer one
        observed = _agreement(sets, pairs)
        pooled = (observed + chance) / 2
        spread = math.sqrt(2 * pooled * (1 - pooled) / _CATEGORY_PAIRS)
        lifts.append(
            Lift(
                f"{name} {LEVEL_LETTERS[: level + 1]}",
                len(pairs),
                observed,
                chance,
                observed / chance if chance else None,
                (observed - chance) / spread if spread else None,
            )
        )
    return lifts


def explain_prefix(
    codes: np.ndarray,
    prefix: tuple[int, ...],
    titles: Sequence[str],
    values: Sequence[dict[str, tuple[str, ...]]],
    popularity: np.ndarray,
) -> Meaning:
    """The most popular titles below `prefix`, and the attribute values that are more frequent there than elsewhere."""
    members = np.flatnonzero((codes[:, : len(prefix)] == np.array(prefix)).all(axis=1))
    shown = members[np.argsort(-popularity[members], kind="stable")][:_TITLES]
    everywhere = Counter((name, one) for item in values for name, found in item.items() for one in found)
    here = Counter((name, one) for row in members for name, found in values[row].items() for one in found)
    shares = [(key, count / len(members), everywhere[key] / len(values)) for key, count in here.items() if count > 1]
    # By the information a member gives about the value: frequent here and rare elsewhere.
    shares.sort(key=lambda entry: (-entry[1] * math.log(entry[1] / entry[2]), entry[0]))
    typical = [f"{name} {one}: {own:.0%} (all items {all_:.0%})" for (name, one), own, all_ in shares if own > all_]
    return Meaning(prefix_text(prefix), len(members), tuple(titles[row] for row in shown), tuple(typical[:_TYPICAL]))


def _prefix_lift(letters: str, prefixes: np.ndarray, pairs: np.ndarray, bins: np.ndarray, sizes: np.ndarray) -> Lift:
    before, after = pairs[:, 0], pairs[:, 1]
    # Items of each popularity with each prefix, looked up for the target's popularity and the first item's prefix.
    span = int(prefixes.max()) + 1
    keys, counts = np.unique(bins * span + prefixes, return_counts=True)
    wanted = bins[after] * span + prefixes[before]
    places = np.searchsorted(keys, wanted).clip(max=len(keys) - 1)
    alike = np.where(keys[places] == wanted, counts[places], 0)
    itself = bins[before] == bins[after]  # an item does not stand in for its own successor
    chance = (alike - itself) / (sizes[bins[after]] - itself)
    hits = prefixes[before] == prefixes[after]
    if not len(pairs):
        return Lift(letters, 0, 0.0, 0.0, None, None)
    observed, expected = float(hits.mean()), float(chance.mean())
    spread = math.sqrt(float((chance * (1 - chance)).sum())) / len(pairs)
    return Lift(
        letters,
        len(pairs),
        observed,
        expected,
        observed / expected if expected else None,
        (observed - expected) / spread if spread else None,
    )


def _numbered(codes: np.ndarray) -> np.ndarray:
    """(n,) a number for each different row."""
    numbers: np.ndarray = np.unique(codes, axis=0, return_inverse=True)[1].reshape(-1)
    return numbers


def _random_pairs(groups: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(n, 2) pairs of different rows of one group, each pair as likely as any other; empty where there are none."""
    order = np.argsort(groups, kind="stable")
    sizes = np.bincount(groups)
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    weights = (sizes * (sizes - 1)).astype(np.float64)
    if not weights.sum():
        return np.empty((0, 2), np.int64)
    chosen = rng.choice(len(sizes), size=_CATEGORY_PAIRS, p=weights / weights.sum())
    one = rng.integers(0, sizes[chosen])
    other = (one + rng.integers(1, sizes[chosen])) % sizes[chosen]
    pairs: np.ndarray = order[np.stack([starts[chosen] + one, starts[chosen] + other], axis=1)]
    return pairs


def _agreement(sets: Sequence[set[str]], pairs: np.ndarray) -> float:
    return sum(not sets[one].isdisjoint(sets[other]) for one, other in pairs.tolist()) / len(pairs)
