"""Metrics against brute force and ir-measures; tests of significance against enumeration and scipy."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec.errors import InputError
from llmrec.metrics import (
    METRICS,
    Placement,
    holm,
    mcnemar_exact,
    mean_over_seeds,
    per_user_metrics,
    rank_of_target,
    ranks_from_lists,
    sign_flip_test,
    summarise,
)

untimed = settings(deadline=None, max_examples=60)  # a busy machine is no failure


def value_at(name: str, place: int) -> float:
    """The value of a target at `place`, from the definition."""
    kind, cutoff = name.split("@")
    if place == 0 or place > int(cutoff):
        return 0.0
    return {"Recall": 1.0, "NDCG": 1 / math.log2(place + 1), "MRR": 1 / place}[kind]


@st.composite
def scored_users(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    users, items = draw(st.integers(1, 6)), draw(st.integers(1, 30))
    rows = st.lists(st.sampled_from([-np.inf, -1.0, 0.0, 0.5, 2.0]), min_size=items, max_size=items)
    scores = np.array(draw(st.lists(rows, min_size=users, max_size=users)))
    index = st.integers(0, items - 1)
    targets = np.array(draw(st.lists(index, min_size=users, max_size=users)))
    excluded = draw(st.lists(st.lists(index, max_size=8), min_size=users, max_size=users))
    return scores, targets, [np.array(row, dtype=np.int32) for row in excluded]


@untimed
@given(scored_users())
def test_rank_equals_place_in_sorted_list(world: tuple[np.ndarray, np.ndarray, list[np.ndarray]]) -> None:
    scores, targets, excluded = world
    placement = rank_of_target(scores, targets, excluded)
    for user, target in enumerate(targets):
        left = [item for item in range(scores.shape[1]) if item not in excluded[user]]
        ordered = sorted(left, key=lambda item: (-scores[user, item], item))
        expected = ordered.index(target) + 1 if target in ordered else 0
        assert placement.first[user] == expected


@untimed
@given(scored_users())
def test_dense_ranking_and_list_agree(world: tuple[np.ndarray, np.ndarray, list[np.ndarray]]) -> None:
    scores, targets, _ = world
    lists = np.argsort(-scores, axis=1, kind="stable")
    np.testing.assert_array_equal(ranks_from_lists(lists, targets).first, rank_of_target(scores, targets).first)


def test_excluded_repeats_count_once_and_scores_stay() -> None:
    scores = np.array([[3.0, 2.0, 1.0, 0.0]])
    placement = rank_of_target(scores, np.array([3]), [np.array([0, 0, 0, 2])])
    assert placement.first.tolist() == [2]
    assert scores.tolist() == [[3.0, 2.0, 1.0, 0.0]]


@pytest.mark.parametrize(
    ("scores", "targets", "excluded"),
    [
        (np.zeros((2, 3)), np.array([0]), None),
        (np.zeros((1, 3)), np.array([3]), None),
        (np.zeros((1, 3)), np.array([-1]), None),
        (np.array([[0.0, np.nan]]), np.array([0]), None),
        (np.zeros((1, 3)), np.array([0]), [np.array([1]), np.array([2])]),
    ],
)
def test_unusable_scores_are_refused(scores: np.ndarray, targets: np.ndarray, excluded: list | None) -> None:
    with pytest.raises(InputError):
        rank_of_target(scores, targets, excluded)


@untimed
@given(st.lists(st.integers(0, 40), min_size=1, max_size=20))
def test_metrics_equal_their_definition(ranks: list[int]) -> None:
    values = per_user_metrics(Placement.of_ranks(ranks))
    assert list(values) == list(METRICS)
    for name, column in values.items():
        assert column.tolist() == [value_at(name, rank) for rank in ranks]


@untimed
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 45)), min_size=1, max_size=10))
def test_shared_places_are_averaged(places: list[tuple[int, int]]) -> None:
    first, size = (np.array(column) for column in zip(*places, strict=True))
    values = per_user_metrics(Placement(first, size))
    for name, column in values.items():
        expected = [sum(value_at(name, f + o) for o in range(s)) / s if f else 0.0 for f, s in places]
        np.testing.assert_allclose(column, expected, atol=1e-12)


@untimed
@given(st.integers(0, 2**32 - 1))
def test_bucket_value_is_the_mean_over_its_random_orders(seed: int) -> None:
    """One bucket of the whole catalogue is worth what a random ranking is worth: no free hit."""
    rng = np.random.default_rng(seed)
    items = rng.permutation(6)
    buckets = [items[:1], items[1:4], items[4:]]
    target = int(rng.integers(0, 6))
    orders = [
        [*items[:1], *middle, *last]
        for middle in itertools.permutations(items[1:4])
        for last in itertools.permutations(items[4:])
    ]
    averaged = per_user_metrics(ranks_from_lists(orders, np.full(len(orders), target)))
    shared = per_user_metrics(ranks_from_lists([buckets], np.array([target])))
    for name in METRICS:
        assert shared[name][0] == pytest.approx(averaged[name].mean())


def test_lists_miss_short_and_empty() -> None:
    placement = ranks_from_lists([[4, [7, 2], 5], [1], [], np.array([3, 9])], np.array([5, 2, 0, 9]))
    assert placement.first.tolist() == [4, 0, 0, 2]
    assert placement.size.tolist() == [1, 1, 1, 1]
    shared = ranks_from_lists([[4, [7, 2], 5]], np.array([2]))
    assert (shared.first.tolist(), shared.size.tolist()) == ([2], [2])


@pytest.mark.parametrize("entries", [[1, 2, 1], [[1, 1]], [1, [2, 1]], [1, []]])
def test_lists_with_duplicates_are_refused(entries: list) -> None:
    with pytest.raises(InputError, match="list 0"):
        ranks_from_lists([entries], np.array([2]))


def test_lists_need_a_target_each() -> None:
    with pytest.raises(InputError, match="2 lists for 1"):
        ranks_from_lists([[1], [2]], np.array([1]))


def test_agrees_with_ir_measures() -> None:
    import ir_measures

    rng = np.random.default_rng(5)
    scores = rng.standard_normal((50, 30))
    targets = rng.integers(0, 30, 50)
    lists = [row[:20] for row in np.argsort(-scores, axis=1)]
    qrels = [ir_measures.Qrel(str(user), str(target), 1) for user, target in enumerate(targets)]
    run = [
        ir_measures.ScoredDoc(str(user), str(item), -float(place))
        for user, row in enumerate(lists)
        for place, item in enumerate(row)
    ]
    ours = per_user_metrics(ranks_from_lists(lists, targets))
    theirs = {
        "Recall@1": "R@1",
        "Recall@5": "R@5",
        "Recall@10": "R@10",
        "Recall@20": "R@20",
        "NDCG@5": "nDCG@5",
        "NDCG@10": "nDCG@10",
        "NDCG@20": "nDCG@20",
        "MRR@20": "RR",
    }
    assert list(theirs) == list(METRICS)
    for name, measure in theirs.items():
        oracle = {m.query_id: m.value for m in ir_measures.iter_calc([ir_measures.parse_measure(measure)], qrels, run)}
        np.testing.assert_allclose(ours[name], [oracle[str(user)] for user in range(50)], atol=1e-9, err_msg=name)


def test_summary_has_mean_and_standard_error() -> None:
    summary = summarise({"Recall@1": np.array([1.0, 0.0, 0.0, 1.0])})
    assert summary["Recall@1"]["value"] == 0.5
    assert summary["Recall@1"]["se"] == pytest.approx(math.sqrt(1 / 3) / 2)
    assert math.isnan(summarise({"Recall@1": np.array([1.0])})["Recall@1"]["se"])
    with pytest.raises(InputError, match="no users"):
        summarise({"Recall@1": np.array([])})


def test_seeds_are_averaged_user_by_user() -> None:
    runs = [{"MRR@20": np.array([1.0, 0.0])}, {"MRR@20": np.array([0.5, 0.5])}]
    assert mean_over_seeds(runs)["MRR@20"].tolist() == [0.75, 0.25]
    with pytest.raises(InputError):
        mean_over_seeds([runs[0], {"MRR@20": np.array([1.0])}])


@pytest.mark.parametrize("shift", [0.0, 0.3, 0.8])
def test_sign_flips_approach_full_enumeration(shift: float) -> None:
    difference = np.round(np.random.default_rng(3).normal(shift, 1, 10), 1)
    signs = np.array(list(itertools.product([-1, 1], repeat=10)))
    exact = (np.abs(signs @ difference) >= abs(difference.sum()) - 1e-9).mean()
    result = sign_flip_test(difference, np.zeros(10), seed=1)
    assert result.p_value == pytest.approx(exact, abs=0.02)
    assert result.difference == pytest.approx(difference.mean())


def test_sign_flip_is_seeded_symmetric_and_never_zero() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.random(200), rng.random(200)
    assert sign_flip_test(a, b, seed=4) == sign_flip_test(a, b, seed=4)
    assert sign_flip_test(a, b).p_value == sign_flip_test(b, a).p_value
    assert sign_flip_test(a, b).difference == -sign_flip_test(b, a).difference
    assert sign_flip_test(np.ones(200), np.zeros(200)).p_value == pytest.approx(1 / 10_001)
    same = sign_flip_test(a, a)
    assert (same.p_value, same.num_different) == (1.0, 0)


@untimed
@given(st.integers(0, 60), st.integers(0, 60), st.integers(1, 5))
def test_mcnemar_equals_the_binomial_test(only_a: int, only_b: int, both: int) -> None:
    from scipy.stats import binomtest

    a = np.repeat([1, 0, 1], [only_a, only_b, both])
    b = np.repeat([0, 1, 1], [only_a, only_b, both])
    result = mcnemar_exact(a, b)
    expected = binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
    assert result.p_value == pytest.approx(expected)
    assert result.num_different == only_a + only_b
    assert result.difference == pytest.approx((only_a - only_b) / len(a))


def test_mcnemar_refuses_fractions_and_large_tables_work() -> None:
    with pytest.raises(InputError, match="hits of 0 or 1"):
        mcnemar_exact(np.array([0.5, 1.0]), np.array([0.0, 1.0]))
    a = np.repeat([1, 0], [2600, 2400])
    assert mcnemar_exact(a, 1 - a).p_value == pytest.approx(0.0049, abs=2e-4)


def test_paired_tests_need_the_same_users() -> None:
    with pytest.raises(InputError, match="same users"):
        sign_flip_test(np.zeros(3), np.zeros(4))
    with pytest.raises(InputError, match="same users"):
        mcnemar_exact(np.zeros(0), np.zeros(0))


def test_holm_on_a_worked_example() -> None:
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])


@untimed
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_rejects_what_the_step_down_procedure_rejects(p_values: list[float]) -> None:
    adjusted = holm(p_values)
    for level in (0.01, 0.05, 0.2):
        rejected: set[int] = set()
        for step, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
            if p_values[index] * (len(p_values) - step) > level:
                break
            rejected.add(index)
        assert rejected == set(np.flatnonzero(adjusted <= level))
    assert (adjusted >= np.array(p_values)).all()
