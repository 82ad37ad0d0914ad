"""Ranking metrics for one held-out item per user, and the tests that compare two models on the same users.

A model's answer is reduced to a `Placement` (where each user's target item stands), a placement to per-user
values, and those to a mean with its standard error. One target a user, ranked over the whole catalogue:
Recall@k equals the hit rate, the ideal DCG is 1, and the reciprocal rank is the target's.

Items that share a Semantic ID come out of a generator at once, in no order. Such a bucket holds as many places as it
has items, and the metric is its average over them: no free hit for putting everything into one bucket.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from llmrec.errors import InputError

Gain = Callable[[np.ndarray], np.ndarray]
PerUser = dict[str, np.ndarray]


@dataclass(frozen=True)
class Placement:
    """Where each user's target item stands: at the places ``first .. first + size - 1``, counted from 1.

    Attributes:
        first: (num_users,) int64; 0 means that the target is not in the ranking (a miss).
        size: (num_users,) int64 >= 1; more than 1 where the target shares its places with other items.
    """

    first: np.ndarray
    size: np.ndarray

    @classmethod
    def of_ranks(cls, ranks: np.ndarray | Sequence[int]) -> Placement:
        """Placement of targets that share their place with no other item; a rank of 0 is a miss."""
        first = np.asarray(ranks, dtype=np.int64)
        return cls(first, np.ones_like(first))

    def __len__(self) -> int:
        return len(self.first)


def rank_of_target(scores: np.ndarray, targets: np.ndarray, excluded: Sequence[np.ndarray] | None = None) -> Placement:
    """Rank each user's target among all items: 1 + #{score greater} + #{equal score and lower index}.

    Args:
        scores: (num_users, num_items), higher is better.
        targets: (num_users,) item indices.
        excluded: per user the item indices that leave the ranking (the history, in filtered mode; repeats are
            fine). They do not count as competitors, and a target among them is a miss.

    Raises:
        InputError: shapes disagree, a target is no column of `scores`, or a score is NaN.
    """
    scores, targets = np.asarray(scores), np.asarray(targets)
    if scores.ndim != 2 or targets.shape != scores.shape[:1]:
        raise InputError(f"scores of shape {scores.shape} do not fit targets of shape {targets.shape}")
    if excluded is not None and len(excluded) != len(targets):
        raise InputError(f"{len(excluded)} lists of excluded items for {len(targets)} users")
    if targets.size and not 0 <= targets.min() <= targets.max() < scores.shape[1]:
        raise InputError(f"targets run from {targets.min()} to {targets.max()}, scores have {scores.shape[1]} items")
    if np.isnan(scores).any():
        raise InputError("scores hold NaN", hint="the model has diverged or divides by zero; NaN has no rank")

    users = np.arange(len(targets))
    own = scores[users, targets][:, None]
    lower = np.arange(scores.shape[1])[None, :] < targets[:, None]
    ahead = (scores > own) | ((scores == own) & lower)
    missing = np.zeros(len(targets), dtype=bool)
    for user, items in enumerate(excluded or ()):
        ahead[user, items] = False
        missing[user] = bool(np.any(np.asarray(items) == targets[user]))
    return Placement.of_ranks(np.where(missing, 0, 1 + ahead.sum(axis=1)))


def ranks_from_lists(
    lists: Sequence[np.ndarray | Sequence[int | Sequence[int] | np.ndarray]], targets: np.ndarray
) -> Placement:
    """Place each user's target in the list that a generator gave; absent is a miss, short lists are not padded.

    Args:
        lists: per user, best first: item indices, or buckets of item indices where items share a SID. A bucket is
            given whole (without items that a filter removed), not cut at the end of the list.
        targets: (num_users,) item indices.

    Raises:
        InputError: an item comes twice in one list, a bucket is empty, or the numbers of users differ.
    """
    if len(lists) != len(targets):
        raise InputError(f"{len(lists)} lists for {len(targets)} targets")
    first = np.zeros(len(targets), dtype=np.int64)
    size = np.ones(len(targets), dtype=np.int64)
    for user, (entries, target) in enumerate(zip(lists, targets, strict=True)):
        seen: set[int] = set()
        for entry in entries:
            bucket = [int(item) for item in np.atleast_1d(entry)]
            place = len(seen) + 1
            seen.update(bucket)
            if not bucket or len(seen) != place - 1 + len(bucket):
                raise InputError(
                    f"list {user} holds an empty bucket or an item twice, at place {place}",
                    hint="remove duplicates before ranking; the first place counts",
                )
            if int(target) in bucket:
                first[user], size[user] = place, len(bucket)
    return Placement(first, size)


# A gain is the value of one place (1, 2, ...); miss handling and buckets are the business of `per_user_metrics`.
def _recall(cutoff: int, places: np.ndarray) -> np.ndarray:
    return (places <= cutoff).astype(np.float64)


def _ndcg(cutoff: int, places: np.ndarray) -> np.ndarray:
    return np.where(places <= cutoff, 1.0 / np.log2(1.0 + places), 0.0)


def _reciprocal_rank(cutoff: int, places: np.ndarray) -> np.ndarray:
    return np.where(places <= cutoff, 1.0 / places, 0.0)


METRICS: dict[str, Gain] = {
    "Recall@1": partial(_recall, 1),
    "Recall@5": partial(_recall, 5),
    "Recall@10": partial(_recall, 10),
    "Recall@20": partial(_recall, 20),
    "NDCG@5": partial(_ndcg, 5),
    "NDCG@10": partial(_ndcg, 10),
    "NDCG@20": partial(_ndcg, 20),
    "MRR@20": partial(_reciprocal_rank, 20),
}
"""The reported metrics: name to the gain of a place. Recall@k is the hit rate HR@k, as there is one target a user."""

MAX_CUTOFF = 20  # no metric looks further, so a generator needs no more candidates than this


def per_user_metrics(placement: Placement) -> PerUser:
    """Every metric of `METRICS` for every user: name to (num_users,) float64 between 0 and 1."""
    hit = placement.first > 0
    first = np.where(hit, placement.first, 1)
    values = {}
    for name, gain in METRICS.items():
        total = np.zeros(len(placement))
        for offset in range(min(int(placement.size.max(initial=0)), MAX_CUTOFF)):
            total += np.where(hit & (offset < placement.size), gain(first + offset), 0.0)
        values[name] = total / placement.size
    return values


def mean_over_seeds(runs: Sequence[PerUser]) -> PerUser:
    """Each user's mean over runs that differ in their seed alone; the users' order must be the same."""
    if not runs or len({len(values) for run in runs for values in run.values()}) != 1:
        raise InputError("runs to average must be there and hold the same users")
    return {name: np.mean([run[name] for run in runs], axis=0) for name in runs[0]}


def summarise(per_user: Mapping[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """Mean and standard error over users: ``{metric: {"value": mean, "se": std / sqrt(num_users)}}``.

    The standard error (n - 1 in the standard deviation) of a single user is NaN.

    Raises:
        InputError: there are no users.
    """
    summary = {}
    for name, values in per_user.items():
        if len(values) == 0:
            raise InputError(f"{name} has no users to average over")
        spread = float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")
        summary[name] = {"value": float(np.mean(values)), "se": spread / float(np.sqrt(len(values)))}
    return summary


@dataclass(frozen=True)
class PairedTest:
    """Outcome of a two-sided test of two models on the same users.

    Attributes:
        difference: mean of a minus mean of b.
        p_value: probability of a difference at least as large if the models were exchangeable.
        num_different: users on whom the models differ; the others carry no evidence.
    """

    difference: float
    p_value: float
    num_different: int


def sign_flip_test(a: np.ndarray, b: np.ndarray, flips: int = 10_000, seed: int = 0) -> PairedTest:
    """Two-sided paired permutation test on the mean difference of per-user values (random sign flips).

    The p-value is (1 + #{flipped sum at least as large}) / (flips + 1), so it is never 0 and the test is valid for
    any number of flips (Phipson and Smyth 2010).

    Args:
        a: (num_users,) values of one model, for instance NDCG@10.
        b: (num_users,) values of the other, same users in the same order.
        flips: number of random sign vectors.
        seed: of the sign vectors; same seed, same p-value.
    """
    difference = _paired(a, b)
    moved = difference[difference != 0]
    observed = abs(moved.sum())
    tolerance = 1e-12 * np.abs(moved).sum()  # a flip that equals the observed sum up to rounding counts as equal
    rng = np.random.default_rng(seed)
    at_least = 0
    for start in range(0, flips, 500):  # 500 sign vectors at a time bound the memory at 4 kB per user
        signs = rng.integers(0, 2, size=(min(500, flips - start), len(moved)), dtype=np.int8) * 2 - 1
        at_least += int((np.abs(signs @ moved) >= observed - tolerance).sum())
    return PairedTest(float(difference.mean()), (1 + at_least) / (flips + 1), len(moved))


def mcnemar_exact(hits_a: np.ndarray, hits_b: np.ndarray) -> PairedTest:
    """Two-sided exact McNemar test on hits (Recall@k of single users): a binomial test on the discordant pairs.

    Raises:
        InputError: a value is neither 0 nor 1 (shared places give fractions: use `sign_flip_test`).
    """
    difference = _paired(hits_a, hits_b)
    if not all(np.isin(hits, (0, 1)).all() for hits in (hits_a, hits_b)):
        raise InputError("McNemar's test takes hits of 0 or 1", hint="use sign_flip_test for fractional values")
    discordant = int((difference != 0).sum())
    fewer = min(int((difference > 0).sum()), int((difference < 0).sum()))
    term = tail = 1  # exact integers: C(n, 0) and the sum of C(n, 0..fewer)
    for k in range(fewer):
        term = term * (discordant - k) // (k + 1)
        tail += term
    return PairedTest(float(difference.mean()), min(1.0, 2 * tail / 2**discordant), discordant)


def holm(p_values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Holm's step-down adjustment of a table of p-values, in the given order (family-wise error)."""
    raw = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(raw, kind="stable")
    stepped = np.maximum.accumulate(raw[order] * np.arange(len(raw), 0, -1))
    adjusted = np.empty_like(raw)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


def _paired(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.shape != b.shape or a.ndim != 1 or not len(a):
        raise InputError(f"a paired test needs the same users on both sides, given shapes {a.shape} and {b.shape}")
    difference: np.ndarray = a - b
    return difference
