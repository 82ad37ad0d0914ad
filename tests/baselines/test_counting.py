"""Popularity, ItemKNN, EASE and the co-occurrence embeddings against brute force."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec.baselines import (
    BASELINES,
    EASE,
    EASEConfig,
    ItemKNN,
    ItemKNNConfig,
    Popularity,
    cooccurrence_embeddings,
    make_baseline,
)
from llmrec.baselines.itemknn import latest_distinct
from llmrec.errors import ConfigError, InputError

untimed = settings(deadline=None, max_examples=60)  # a busy machine is no failure
NUM_ITEMS = 9
sequences = st.lists(st.integers(0, NUM_ITEMS - 1), max_size=8)
logs = st.lists(sequences, min_size=1, max_size=12).filter(any)


def arrays(rows: list[list[int]]) -> list[np.ndarray]:
    return [np.array(row, dtype=np.int32) for row in rows]


def naive_window(history: list[int], window: int) -> list[int]:
    latest: list[int] = []
    for item in reversed(history):
        if item not in latest and len(latest) < window:
            latest.append(item)
    return latest


def naive_itemknn(train: list[list[int]], histories: list[list[int]], config: ItemKNNConfig) -> np.ndarray:
    owners = [{user for user, row in enumerate(train) if item in row} for item in range(NUM_ITEMS)]
    scores = np.zeros((len(histories), NUM_ITEMS))
    for candidate in range(NUM_ITEMS):
        neighbors = []
        for other in range(NUM_ITEMS):
            together = len(owners[candidate] & owners[other])
            if other != candidate and together:
                norm = math.sqrt(len(owners[candidate])) * math.sqrt(len(owners[other])) + config.shrink
                neighbors.append((-together / norm, other))
        kept = {other: -negative for negative, other in sorted(neighbors)[: config.num_neighbors]}
        for row, history in enumerate(histories):
            scores[row, candidate] = sum(kept.get(i, 0.0) for i in naive_window(history, config.history_window))
    return scores


@untimed
@given(logs)
def test_popularity_counts_each_user_once(train: list[list[int]]) -> None:
    scores = Popularity().fit(arrays(train), NUM_ITEMS).scores(arrays([[0], []]))
    expected = [sum(item in row for row in train) for item in range(NUM_ITEMS)]
    assert scores.tolist() == [expected, expected]


@untimed
@given(
    logs,
    st.lists(sequences, min_size=1, max_size=5),
    st.integers(1, 4),
    st.sampled_from([0.0, 1.5, 10.0]),
    st.integers(1, 4),
)
def test_itemknn_equals_the_naive_loop(
    train: list[list[int]], histories: list[list[int]], neighbors: int, shrink: float, window: int
) -> None:
    config = ItemKNNConfig(num_neighbors=neighbors, shrink=shrink, history_window=window)
    scores = ItemKNN(config).fit(arrays(train), NUM_ITEMS).scores(arrays(histories))
    np.testing.assert_allclose(scores, naive_itemknn(train, histories, config), atol=1e-12)


@untimed
@given(sequences, st.integers(1, 5))
def test_window_keeps_the_latest_distinct_items_in_order(history: list[int], window: int) -> None:
    assert latest_distinct(np.array(history), window).tolist() == naive_window(history, window)[::-1]


@untimed
@given(logs, st.sampled_from([0.5, 3.0, 40.0]))
def test_ease_solves_the_constrained_problem(train: list[list[int]], l2: float) -> None:
    """Each column of B solves its own ridge regression with the diagonal entry fixed at zero, and KKT holds."""
    model = EASE(EASEConfig(l2=l2)).fit(arrays(train), NUM_ITEMS)
    users = np.array([[float(item in row) for item in range(NUM_ITEMS)] for row in train])
    gram = users.T @ users
    for item in range(NUM_ITEMS):
        others = [other for other in range(NUM_ITEMS) if other != item]
        ridge = gram[np.ix_(others, others)] + l2 * np.eye(NUM_ITEMS - 1)
        np.testing.assert_allclose(model.weights[others, item], np.linalg.solve(ridge, gram[others, item]), atol=1e-10)
    # The gradient of the objective vanishes everywhere but on the constrained diagonal.
    gradient = gram @ model.weights - gram + l2 * model.weights
    np.testing.assert_allclose(gradient - np.diag(np.diag(gradient)), 0, atol=1e-9)
    assert np.diag(model.weights).tolist() == [0.0] * NUM_ITEMS


def test_ease_scores_sum_the_window() -> None:
    model = EASE(EASEConfig(l2=1.0, history_window=2)).fit(arrays([[0, 1, 2], [1, 2], [0, 2, 3]]), NUM_ITEMS)
    scores = model.scores(arrays([[0, 1, 3, 3], []]))
    np.testing.assert_allclose(scores[0], model.weights[1] + model.weights[3])
    assert not scores[1].any()


def test_ease_refuses_a_catalogue_it_cannot_invert() -> None:
    with pytest.raises(InputError, match="50000 x 50000"):
        EASE().fit(arrays([[0, 1]]), 50_000)


@pytest.mark.parametrize("name", BASELINES)
def test_what_every_baseline_refuses(name: str) -> None:
    with pytest.raises(InputError, match="no train event"):
        make_baseline(name).fit(arrays([[], []]), 5)
    with pytest.raises(InputError, match="catalogue has 5 items"):
        make_baseline(name).fit(arrays([[0, 5]]), 5)


def test_baselines_are_made_by_name_with_their_settings() -> None:
    made = make_baseline("itemknn", {"shrink": 3})
    assert made.fit(arrays([[0, 1]]), 2).scores(arrays([[0]]))[0, 1] == pytest.approx(1 / 4)
    with pytest.raises(InputError, match="no baseline 'knn'"):
        make_baseline("knn")
    with pytest.raises(ConfigError, match="did you mean 'shrink'"):
        make_baseline("itemknn", {"shrinkage": 3})


def test_import_brings_no_torch() -> None:
    code = "import sys, llmrec.baselines as b; b.make_baseline('sasrec'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


class TestCooccurrence:
    def test_keeps_the_cosines_of_the_best_low_rank_approximation(self) -> None:
        rng = np.random.default_rng(0)
        train = [rng.integers(0, 20, 8).astype(np.int32) for _ in range(40)]
        users = np.array([[float(item in row) for item in range(20)] for row in train])
        scaled = users / np.sqrt(np.outer(users.sum(axis=1), users.sum(axis=0)))
        left, singular, right = np.linalg.svd(scaled)
        approximation = left[:, :6] * singular[:6] @ right[:6]
        columns = approximation / np.linalg.norm(approximation, axis=0)
        vectors = cooccurrence_embeddings(train, 20, embedding_size=6)
        np.testing.assert_allclose(vectors @ vectors.T, columns.T @ columns, atol=1e-5)

    def test_rows_are_unit_or_zero_and_runs_agree(self) -> None:
        train = arrays([[0, 1, 2], [1, 2, 5], [2, 5, 6], [0, 6], [5, 6, 1]])
        vectors = cooccurrence_embeddings(train, NUM_ITEMS, embedding_size=3, seed=1)
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), [1, 1, 1, 0, 0, 1, 1, 0, 0], atol=1e-6)
        assert vectors.dtype == np.float32
        np.testing.assert_array_equal(vectors, cooccurrence_embeddings(train, NUM_ITEMS, embedding_size=3, seed=1))
        np.testing.assert_allclose(vectors, cooccurrence_embeddings(train, NUM_ITEMS, 3, seed=2), atol=1e-5)

    def test_more_dimensions_than_the_matrix_has_are_zero(self) -> None:
        vectors = cooccurrence_embeddings(arrays([[0, 1], [1, 2]]), 4, embedding_size=8)
        assert vectors.shape == (4, 8)
        assert not vectors[:, 2:].any()
        np.testing.assert_allclose(vectors[0] @ vectors[2], 0, atol=1e-6)
        np.testing.assert_allclose(vectors[0] @ vectors[1], math.sqrt(0.5), atol=1e-6)
