"""PQ, OPQ and RQ-OPQ: conformance, an oracle in the subspaces, what turning brings, and errors."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest

from llmrec.config import build_config
from llmrec.errors import ConfigError, InputError
from llmrec.sid_vocab.product import ProductConfig, ProductQuantizer
from llmrec.sid_vocab.quantizer import FittedQuantizer, Quantizer
from llmrec.sid_vocab.quantizers import make_quantizer
from llmrec.sid_vocab.rq_kmeans import RQKMeansConfig
from llmrec.sid_vocab.rq_opq import RQOPQ, RQOPQConfig
from llmrec.testing.quantizer_conformance import QuantizerConformance


class TestPQ(QuantizerConformance):
    def make(self, num_levels: int, codebook_size: int, seed: int) -> Quantizer:
        return make_quantizer(ProductConfig(name="pq", num_levels=num_levels, codebook_size=codebook_size, seed=seed))


class TestOPQ(QuantizerConformance):
    def make(self, num_levels: int, codebook_size: int, seed: int) -> Quantizer:
        return make_quantizer(ProductConfig(num_levels=num_levels, codebook_size=codebook_size, seed=seed))


class TestRQOPQ(QuantizerConformance):
    def make(self, num_levels: int, codebook_size: int, seed: int) -> Quantizer:
        return make_quantizer(RQOPQConfig(num_levels=num_levels, codebook_size=codebook_size, seed=seed))


def stretched(num_items: int = 400, dim: int = 10) -> np.ndarray:
    """Correlated numbers of very different spread, away from the origin."""
    rng = np.random.default_rng(3)
    turn = np.linalg.qr(rng.normal(size=(dim, dim)))[0]
    vectors: np.ndarray = (rng.normal(size=(num_items, dim)) * np.geomspace(4, 0.1, dim)) @ turn + 2
    return vectors.astype(np.float32)


def error(fitted: FittedQuantizer, vectors: np.ndarray) -> float:
    return float(np.square(vectors - fitted.reconstruct(fitted.encode(vectors))).mean())


@pytest.mark.parametrize("name", ["pq", "opq"])
def test_codes_are_the_nearest_codewords_of_all_combinations(name: Literal["pq", "opq"]) -> None:
    vectors = stretched()
    fitted = ProductQuantizer(ProductConfig(name=name, num_levels=3, codebook_size=4)).fit(vectors)
    combinations = np.array(np.meshgrid(*[range(4)] * 3, indexing="ij")).reshape(3, -1).T
    rebuilt = fitted.reconstruct(combinations)
    distances = np.square(vectors[:, None] - rebuilt[None]).sum(axis=2)
    # greedy level by level is the best of all 64: the pieces are at right angles
    np.testing.assert_array_equal(combinations[distances.argmin(axis=1)], fitted.encode(vectors))


def test_pieces_are_at_right_angles_and_of_unequal_width_where_need_be() -> None:
    fitted = ProductQuantizer(ProductConfig(num_levels=3, codebook_size=8)).fit(stretched())
    first, second, third = (book - book.mean(axis=0) for book in fitted.codebooks)
    for one, other in ((first, second), (first, third), (second, third)):
        np.testing.assert_allclose(one @ other.T, 0, atol=1e-4)
    assert [np.linalg.matrix_rank(book, tol=1e-3) for book in (first, second, third)] == [4, 3, 3]


def test_turning_helps_and_residual_levels_before_it_help_more() -> None:
    vectors = stretched()
    shape = {"num_levels": 4, "codebook_size": 16}
    plain = error(ProductQuantizer(ProductConfig(name="pq", **shape)).fit(vectors), vectors)
    dealt = error(ProductQuantizer(ProductConfig(rotations=0, **shape)).fit(vectors), vectors)
    turned = error(ProductQuantizer(ProductConfig(rotations=10, **shape)).fit(vectors), vectors)
    assert turned < 0.9 * plain
    assert turned < 1.02 * dealt
    assert error(RQOPQ(RQOPQConfig(**shape)).fit(vectors), vectors) < plain


def test_residual_levels_of_rq_opq_are_those_of_rq_kmeans() -> None:
    vectors = stretched()
    ours = RQOPQ(RQOPQConfig(num_levels=4, codebook_size=[16, 8, 4, 6])).fit(vectors)
    residual = make_quantizer(RQKMeansConfig(num_levels=2, codebook_size=[16, 8])).fit(vectors)
    for mine, theirs in zip(ours.codebooks, residual.codebooks, strict=False):
        np.testing.assert_array_equal(mine, theirs)
    assert [len(book) for book in ours.codebooks] == [16, 8, 4, 6]


def test_errors_say_what_to_change() -> None:
    vectors = stretched()
    with pytest.raises(InputError, match="10 numbers cannot be cut into 12 pieces"):
        ProductQuantizer(ProductConfig(num_levels=12, codebook_size=4)).fit(vectors)
    constant = vectors.copy()
    constant[:, :5] = 1
    with pytest.raises(InputError, match="same in piece 1 of 2") as caught:
        ProductQuantizer(ProductConfig(name="pq", num_levels=2, codebook_size=4)).fit(constant)
    assert "use opq" in str(caught.value)
    assert len(ProductQuantizer(ProductConfig(num_levels=2, codebook_size=4)).fit(constant).codebooks) == 2
    with pytest.raises(ConfigError, match="leaves no residual level"):
        build_config(RQOPQConfig, {"num_levels": 2, "product_levels": 2}, source="recipe")
    with pytest.raises(InputError, match="cannot fill a codebook of 512"):
        RQOPQ(RQOPQConfig(codebook_size=512)).fit(vectors)
    with pytest.raises(InputError, match="nothing is left to quantise"):
        RQOPQ(RQOPQConfig(num_levels=3, codebook_size=[400, 4, 4])).fit(vectors)
