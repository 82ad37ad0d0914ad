"""RQ-KMeans with a cap per code and with Sinkhorn assignment: conformance, caps, use and collisions on skewed data."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec.config import build_config
from llmrec.errors import ConfigError, InputError
from llmrec.sid_vocab.balanced import BalancedRQKMeans, BalancedRQKMeansConfig
from llmrec.sid_vocab.capacity import cap_of, cluster_means, settle
from llmrec.sid_vocab.quantizer import Quantizer
from llmrec.sid_vocab.quantizers import QuantizerConfig, make_quantizer
from llmrec.sid_vocab.rq_kmeans import RQKMeansConfig, nearest, training_rows
from llmrec.sid_vocab.sinkhorn import SinkhornRQKMeansConfig
from llmrec.testing.quantizer_conformance import QuantizerConformance


class TestBalanced(QuantizerConformance):
    def make(self, num_levels: int, codebook_size: int, seed: int) -> Quantizer:
        return make_quantizer(BalancedRQKMeansConfig(num_levels=num_levels, codebook_size=codebook_size, seed=seed))


class TestSinkhorn(QuantizerConformance):
    def make(self, num_levels: int, codebook_size: int, seed: int) -> Quantizer:
        return make_quantizer(SinkhornRQKMeansConfig(num_levels=num_levels, codebook_size=codebook_size, seed=seed))


def skewed(num_items: int = 1500, dim: int = 24, seed: int = 0) -> np.ndarray:
    """Clusters of Zipf sizes, a third of the items near-duplicates of another one: what a shop looks like."""
    rng = np.random.default_rng(seed)
    shares = 1 / np.arange(1, 41)
    centres = rng.normal(size=(40, dim))
    vectors = centres[rng.choice(40, num_items, p=shares / shares.sum())] + 0.5 * rng.normal(size=(num_items, dim))
    copies = rng.choice(num_items, num_items // 3, replace=False)
    vectors[copies] = vectors[rng.integers(0, num_items, len(copies))] + 0.01 * rng.normal(size=(len(copies), dim))
    return vectors.astype(np.float32)


def collision_rate(codes: np.ndarray) -> float:
    """Share of items whose codes another item has, too."""
    counts = np.unique(codes, axis=0, return_counts=True)[1]
    return float(counts[counts > 1].sum() / len(codes))


def shapes() -> dict[str, int]:
    return {"num_levels": 3, "codebook_size": 32}


@pytest.mark.parametrize("config", [BalancedRQKMeansConfig(**shapes()), SinkhornRQKMeansConfig(**shapes())])
def test_skewed_data_fill_all_codes_and_collide_less(config: QuantizerConfig) -> None:
    vectors = skewed()
    plain = make_quantizer(RQKMeansConfig(**shapes())).fit(vectors).encode(vectors)
    codes = make_quantizer(config).fit(vectors).encode_jointly(vectors)
    used = [len(np.unique(codes[:, level])) / 32 for level in range(3)]
    assert min(used) >= 0.95
    assert collision_rate(plain) > 0.2  # else the next line says nothing
    assert collision_rate(codes) <= 0.25 * collision_rate(plain)


def test_no_code_holds_more_than_its_cap() -> None:
    vectors = skewed()
    for max_load in (1.0, 1.5):
        config = BalancedRQKMeansConfig(num_levels=2, codebook_size=24, max_load=max_load)
        codes = BalancedRQKMeans(config).fit(vectors).encode_jointly(vectors)
        for level in range(2):
            assert np.bincount(codes[:, level]).max() <= cap_of(max_load, len(vectors), 24)


def test_sinkhorn_prices_even_out_the_loads_of_single_items() -> None:
    vectors, config = skewed(), SinkhornRQKMeansConfig(num_levels=1, codebook_size=32)
    plain = make_quantizer(RQKMeansConfig(num_levels=1, codebook_size=32)).fit(vectors).encode(vectors)[:, 0]
    even = make_quantizer(config).fit(vectors).encode(vectors)[:, 0]
    spread, plain_spread = (np.bincount(codes, minlength=32).std() for codes in (even, plain))
    assert spread < 0.4 * plain_spread


def test_equal_vectors_get_different_last_codes_only_where_asked() -> None:
    vectors = np.repeat(skewed(60), 3, axis=0)
    config = BalancedRQKMeansConfig(num_levels=2, codebook_size=16, max_load=1.4)
    codes = BalancedRQKMeans(config).fit(vectors).encode_jointly(vectors)
    assert collision_rate(codes) == 0
    shared = config.model_copy(update={"distinct": False})
    assert collision_rate(BalancedRQKMeans(shared).fit(vectors).encode_jointly(vectors)) > 0.5


@given(
    seed=st.integers(0, 2**32),
    num_rows=st.integers(1, 60),
    size=st.integers(1, 9),
    num_groups=st.integers(1, 30),
    slack=st.floats(1, 3),
)
@settings(max_examples=150, deadline=None)
def test_settling_keeps_the_cap_and_leaves_nobody_worse_than_an_open_code(
    seed: int, num_rows: int, size: int, num_groups: int, slack: float
) -> None:
    rng = np.random.default_rng(seed)
    vectors, book = rng.normal(size=(num_rows, 3)), rng.normal(size=(size, 3)).astype(np.float32)
    groups = rng.integers(0, num_groups, num_rows)
    cap = cap_of(slack, num_rows, size)
    wanted = nearest(vectors, book)
    settled = settle(vectors, book, wanted, cap)
    loads = np.bincount(settled, minlength=size)
    assert loads.max() <= cap
    # stable: nobody prefers a code that has room, nor one that holds a row farther from it
    distances = np.square(vectors[:, None] - book[None]).sum(axis=2)
    for row, code in enumerate(settled):
        for other in np.flatnonzero(distances[row] < distances[row, code] - 1e-4):
            assert loads[other] == cap
    apart = settle(vectors, book, wanted, num_rows, groups)
    for group in np.unique(groups):
        counts = np.bincount(apart[groups == group])
        assert counts.max() <= -(-int((groups == group).sum()) // size)
    assert np.bincount(settle(vectors, book, wanted, cap, groups), minlength=size).max() <= cap


def test_means_and_samples() -> None:
    vectors = np.array([[0.0, 2.0], [4.0, 0.0], [2.0, 4.0]])
    book = np.full((3, 2), 9, np.float32)
    np.testing.assert_array_equal(cluster_means(vectors, np.array([0, 0, 2]), book), [[2, 1], [9, 9], [2, 4]])
    np.testing.assert_array_equal(training_rows(5, 4, 0), np.arange(5))
    rows = training_rows(2000, 4, 0)
    assert len(np.unique(rows)) == 1024
    np.testing.assert_array_equal(rows, np.sort(rows))


def test_errors_say_what_to_change() -> None:
    with pytest.raises(ConfigError, match="max_load"):
        build_config(BalancedRQKMeansConfig, {"max_load": 0.5}, source="recipe")
    vectors = np.random.default_rng(0).normal(size=(40, 6))
    for config in (BalancedRQKMeansConfig(codebook_size=64), SinkhornRQKMeansConfig(codebook_size=64)):
        with pytest.raises(InputError, match="cannot fill a codebook of 64"):
            make_quantizer(config).fit(vectors)
    for config in (
        BalancedRQKMeansConfig(num_levels=2, codebook_size=40),
        SinkhornRQKMeansConfig(num_levels=2, codebook_size=40),
    ):
        with pytest.raises(InputError, match="nothing is left to quantise"):
            make_quantizer(config).fit(vectors)
