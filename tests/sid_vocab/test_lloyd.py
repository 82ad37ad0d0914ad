"""k-means against faiss's and against plain float64; what is skipped must not be missed."""

from __future__ import annotations

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec.sid_vocab import lloyd
from llmrec.sid_vocab.lloyd import Lloyd


def clustered(num: int, dim: int = 12, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rows: np.ndarray = rng.normal(size=(20, dim))[rng.integers(0, 20, num)] + 0.4 * rng.normal(size=(num, dim))
    return rows.astype(np.float32)


def by_faiss(vectors: np.ndarray, size: int, iterations: int, seed: int, start: np.ndarray | None = None) -> np.ndarray:
    made = faiss.Kmeans(vectors.shape[1], size, niter=iterations, seed=seed, min_points_per_centroid=1)
    made.train(vectors, init_centroids=start)
    return np.array(made.centroids).reshape(size, -1)


def brute_force(vectors: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    centroids = centroids.astype(np.float64)
    scores = np.square(centroids).sum(axis=1) / 2 - vectors.astype(np.float64) @ centroids.T
    found: np.ndarray = scores.argmin(axis=1)
    return found


@pytest.mark.parametrize("num", [16, 400, 5000])  # as many as codes; all; a sample of 256 per code
def test_the_same_as_faiss(num: int) -> None:
    vectors = clustered(num)
    np.testing.assert_allclose(Lloyd(vectors, 16, seed=3).run(8), by_faiss(vectors, 16, 8, 3), atol=1e-5)


def test_given_centroids_are_the_start() -> None:
    vectors, start = clustered(400), clustered(16, seed=1)
    made = Lloyd(vectors, 16, 0, start).run(4)
    np.testing.assert_allclose(made, by_faiss(vectors, 16, 4, 0, start), atol=1e-5)
    assert not np.shares_memory(start, made)


@pytest.mark.parametrize("iterations", [1, 2, 9])
def test_empty_clusters_are_filled_as_faiss_does(iterations: int) -> None:
    """Each vector five times: some start rows are equal, and on a tie the lower code takes all."""
    vectors = np.repeat(clustered(40), 5, axis=0)
    made = Lloyd(vectors, 32, seed=1).run(iterations)
    np.testing.assert_allclose(made, by_faiss(vectors, 32, iterations, 1), atol=1e-5)


@given(seed=st.integers(0, 2**32), size=st.integers(2, 12), scale=st.sampled_from([1e-4, 0.05, 2.0]))
@settings(max_examples=60, deadline=None)
def test_codes_stay_those_of_all_distances_while_some_centroids_move(seed: int, size: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    vectors = rng.integers(-3, 4, size=(60, 3)).astype(np.float32)  # many are equal
    centroids = rng.normal(size=(size, 3)).astype(np.float32)
    nearest = lloyd._Nearest(vectors)
    for _ in range(8):
        np.testing.assert_array_equal(nearest.to(centroids), brute_force(vectors, centroids))
        moved = rng.random(size) < 0.4
        centroids = centroids + (scale * rng.normal(size=(size, 3)) * moved[:, None]).astype(np.float32)


def test_few_columns_are_computed_when_few_centroids_move(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, widths = clustered(2000), []
    matmul = np.matmul

    def counted(left: np.ndarray, right: np.ndarray, out: np.ndarray) -> np.ndarray:
        widths.append(right.shape[1])
        product: np.ndarray = matmul(left, right, out=out)
        return product

    monkeypatch.setattr(np, "matmul", counted)
    run = Lloyd(vectors, 40, seed=0)
    run.run(25)
    assert max(widths) == 40
    assert min(widths) < 20
    np.testing.assert_array_equal(run.codes(), brute_force(vectors, run.centroids))


def test_products_made_otherwise_give_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of another size stand for other threads and libraries: sums of another order."""
    vectors = np.concatenate([clustered(1500, 48), clustered(300, 48)])
    whole = Lloyd(vectors, 32, seed=0).run(12)
    monkeypatch.setattr(lloyd, "_SCORES", 100)
    np.testing.assert_array_equal(Lloyd(vectors, 32, seed=0).run(12), whole)


def test_it_ends_when_nothing_moves() -> None:
    vectors = np.repeat(np.eye(4, dtype=np.float32), 9, axis=0) * 5
    start = np.eye(4, dtype=np.float32)
    np.testing.assert_array_equal(Lloyd(vectors, 4, 0, start).run(10**9), 5 * start)
