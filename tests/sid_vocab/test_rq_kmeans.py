"""RQ-KMeans: the conformance class, a brute-force oracle and its errors."""

from __future__ import annotations

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec.config import build_config
from llmrec.errors import ConfigError, InputError
from llmrec.sid_vocab.quantizer import Quantizer
from llmrec.sid_vocab.quantizers import QUANTIZERS, make_quantizer
from llmrec.sid_vocab.rq_kmeans import ResidualCodebooks, RQKMeans, RQKMeansConfig, greedy_codes
from llmrec.testing.quantizer_conformance import QuantizerConformance


class TestRQKMeans(QuantizerConformance):
    def make(self, num_levels: int, codebook_size: int, seed: int) -> Quantizer:
        return make_quantizer(RQKMeansConfig(num_levels=num_levels, codebook_size=codebook_size, seed=seed))


@given(
    seed=st.integers(0, 2**32),
    num_levels=st.integers(1, 4),
    codebook_size=st.integers(2, 20),
    num_items=st.integers(1, 40),
)
@settings(max_examples=60, deadline=None)
def test_encode_equals_brute_force(seed: int, num_levels: int, codebook_size: int, num_items: int) -> None:
    rng = np.random.default_rng(seed)
    fitted = ResidualCodebooks(tuple(rng.normal(size=(num_levels, codebook_size, 5)).astype(np.float32)))
    vectors = rng.normal(size=(num_items, 5))
    codes = fitted.encode(vectors)
    for vector, row in zip(vectors, codes, strict=True):
        residual = vector.copy()
        for book, code in zip(fitted.codebooks, row, strict=True):
            distances = [float(np.square(residual - centroid).sum()) for centroid in book]
            assert code == int(np.argmin(distances))
            residual = residual - book[code]
        np.testing.assert_allclose(vector - residual, fitted.reconstruct(row[None])[0], rtol=1e-5, atol=1e-5)


def test_levels_are_those_of_faiss_on_what_is_left() -> None:
    vectors = np.random.default_rng(0).normal(size=(600, 8)).astype(np.float32)
    fitted = RQKMeans(RQKMeansConfig(num_levels=3, codebook_size=12, iterations=6, seed=5)).fit(vectors)
    residual = vectors.astype(np.float64)
    for level, book in enumerate(fitted.codebooks):
        clustering = faiss.Kmeans(8, 12, niter=6, seed=5 + level, min_points_per_centroid=1)
        clustering.train(residual.astype(np.float32))
        np.testing.assert_allclose(book, np.array(clustering.centroids).reshape(12, 8), atol=1e-5)
        residual -= book[np.square(residual[:, None] - book[None]).sum(axis=2).argmin(axis=1)]


def test_what_a_network_made_may_be_zero() -> None:
    book = np.array([[3, 0], [1, 0], [-1, -2]], np.float32)
    assert greedy_codes(np.zeros((2, 2)), [book]).tolist() == [[1], [1]]


def test_clear_clusters_are_found() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), 30)
    vectors = 10 * np.eye(4)[labels] + rng.normal(scale=0.1, size=(120, 4))
    codes = RQKMeans(RQKMeansConfig(num_levels=1, codebook_size=4, seed=2)).fit(vectors).encode(vectors)[:, 0]
    assert len({(label, code) for label, code in zip(labels, codes, strict=True)}) == 4


def test_sizes_may_differ_by_level_and_the_seed_matters() -> None:
    vectors = np.random.default_rng(0).normal(size=(80, 6))
    config = RQKMeansConfig(num_levels=2, codebook_size=[16, 4])
    fitted = RQKMeans(config).fit(vectors)
    assert [book.shape for book in fitted.codebooks] == [(16, 6), (4, 6)]
    other = RQKMeans(config.model_copy(update={"seed": 1})).fit(vectors)
    assert not np.array_equal(fitted.codebooks[0], other.codebooks[0])


def test_errors_say_what_to_change() -> None:
    vectors = np.random.default_rng(0).normal(size=(40, 6))
    with pytest.raises(InputError, match=r"40 items \(40 different vectors\) cannot fill a codebook of 64"):
        RQKMeans(RQKMeansConfig(codebook_size=64)).fit(vectors)
    with pytest.raises(InputError, match=r"80 items \(10 different vectors\)"):
        RQKMeans(RQKMeansConfig(codebook_size=16)).fit(np.tile(vectors[:10], (8, 1)))
    with pytest.raises(InputError, match="All 40 vectors are the same"):
        RQKMeans(RQKMeansConfig(codebook_size=8)).fit(np.ones((40, 6)))
    with pytest.raises(InputError, match="nothing is left to quantise") as caught:
        RQKMeans(RQKMeansConfig(num_levels=2, codebook_size=40)).fit(vectors)
    assert "num_levels to 1" in str(caught.value)


def test_config_errors() -> None:
    with pytest.raises(ConfigError, match="lists 2 sizes for num_levels 3"):
        build_config(RQKMeansConfig, {"codebook_size": [8, 8]}, source="recipe")
    with pytest.raises(ConfigError, match="did you mean 'codebook_size'"):
        build_config(RQKMeansConfig, {"codebook_sise": 8}, source="recipe")


def test_rq_kmeans_is_a_built_in() -> None:
    assert RQKMeansConfig().name in QUANTIZERS
