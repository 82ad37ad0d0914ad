"""FSQ: conformance, rounding along principal axes, steps and errors."""

from __future__ import annotations

import numpy as np
import pytest

from llmrec.config import build_config
from llmrec.errors import ConfigError, InputError
from llmrec.sid_vocab.fsq import FSQ, FSQConfig
from llmrec.sid_vocab.quantizer import Quantizer
from llmrec.sid_vocab.quantizers import make_quantizer
from llmrec.testing.quantizer_conformance import QuantizerConformance


class TestFSQ(QuantizerConformance):
    def make(self, num_levels: int, codebook_size: int, seed: int) -> Quantizer:
        assert codebook_size == 8
        return make_quantizer(FSQConfig(num_levels=num_levels, grid=[2, 2, 2]))


def gaussian(num_items: int = 2000) -> np.ndarray:
    """Six independent numbers of spread 6, 5, ... 1 around 3."""
    return np.random.default_rng(0).normal(size=(num_items, 6)) * np.arange(6, 0, -1) + 3


def test_codes_are_the_nearest_grid_points_of_all() -> None:
    vectors = gaussian(300)
    fitted = FSQ(FSQConfig(num_levels=2, grid=[4, 3])).fit(vectors)
    combinations = np.array(np.meshgrid(range(12), range(12), indexing="ij")).reshape(2, -1).T
    distances = np.square(vectors[:, None] - fitted.reconstruct(combinations)[None]).sum(axis=2)
    np.testing.assert_array_equal(combinations[distances.argmin(axis=1)], fitted.encode(vectors))


def test_a_grid_lies_along_the_widest_axes_at_the_best_uniform_step() -> None:
    book = FSQ(FSQConfig(num_levels=1, grid=[8])).fit(gaussian()).codebooks[0].astype(np.float64)
    steps = np.diff(book, axis=0)
    lengths = np.linalg.norm(steps, axis=1)
    np.testing.assert_allclose(lengths, lengths[0], rtol=1e-4)
    assert abs(steps[0, 0]) > 0.99 * lengths[0]  # the axis of spread 6
    assert lengths[0] == pytest.approx(0.586 * 6, rel=0.1)  # Max (1960), table II: 8 values of a Gaussian
    np.testing.assert_allclose(book.mean(axis=0), gaussian().mean(axis=0), atol=1e-4)


def test_more_values_and_more_levels_lose_less() -> None:
    vectors, errors = gaussian(), []
    for config in (FSQConfig(num_levels=1, grid=[3, 3]), FSQConfig(num_levels=1, grid=[8, 8]), FSQConfig(grid=[8, 8])):
        fitted = FSQ(config).fit(vectors)
        assert [len(book) for book in fitted.codebooks] == list(config.codebook_sizes)
        errors.append(float(np.square(vectors - fitted.reconstruct(fitted.encode(vectors))).mean()))
    assert errors[0] > errors[1] > errors[2]


def test_errors_say_what_to_change() -> None:
    with pytest.raises(InputError, match="vary in 6 directions, 9 are to be rounded") as caught:
        FSQ(FSQConfig()).fit(gaussian())
    assert "num_levels to at most 2" in str(caught.value)
    with pytest.raises(InputError, match="shorten grid"):
        FSQ(FSQConfig(num_levels=1, grid=[2] * 7)).fit(gaussian())
    with pytest.raises(ConfigError, match="more than 65536"):
        build_config(FSQConfig, {"grid": [256, 256, 2]}, source="recipe")
    with pytest.raises(InputError, match="cannot fill a codebook of 240"):
        FSQ(FSQConfig()).fit(gaussian(200))
