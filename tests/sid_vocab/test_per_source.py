"""One level per source: conformance, each code from its own columns, and behaviour guessed where there is none."""

from __future__ import annotations

import numpy as np
import pytest

from llmrec.config import build_config
from llmrec.errors import ConfigError, InputError
from llmrec.sid_vocab.behaviour_signal import BehaviourSignal
from llmrec.sid_vocab.build import SIDConfig
from llmrec.sid_vocab.fusion import concat
from llmrec.sid_vocab.per_source import PerSource, PerSourceConfig, _ridge
from llmrec.sid_vocab.quantizer import Quantizer
from llmrec.sid_vocab.quantizers import fit_quantizer, make_quantizer
from llmrec.sid_vocab.vectors import normalise
from llmrec.testing.quantizer_conformance import QuantizerConformance

NO_PAIRS = np.empty((0, 2), np.int64)
COLUMNS, SIZE = 10, 6  # of text, of behaviour


def blocks(num_items: int = 200, silent: int = 0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Text, and behaviour that is a turned part of it plus noise; zero for the first `silent` items."""
    rng = np.random.default_rng(seed)
    text = rng.normal(size=(num_items, COLUMNS))
    turn = np.linalg.qr(np.random.default_rng(77).normal(size=(SIZE, SIZE)))[0]
    acts = text[:, :SIZE] @ turn + 0.1 * rng.normal(size=(num_items, SIZE))
    acts[:silent] = 0
    return normalise(text), normalise(acts)


def fit(text: np.ndarray, acts: np.ndarray, weight: float = 0.5, **changes: object):  # type: ignore[no-untyped-def]
    config = PerSourceConfig.model_validate({"codebook_size": 8} | changes)
    return PerSource(config).fit(concat(text, acts, weight).vectors, BehaviourSignal(acts, NO_PAIRS))


class TestPerSource(QuantizerConformance):
    """The last four columns of the twelve are behaviour, and quieter than the rest."""

    def make(self, num_levels: int, codebook_size: int, seed: int) -> Quantizer:
        return make_quantizer(
            PerSourceConfig(num_levels=num_levels, behaviour_levels=1, codebook_size=codebook_size, seed=seed)
        )

    def behaviour(self, vectors: np.ndarray) -> BehaviourSignal:
        return BehaviourSignal(vectors[:, 8:], NO_PAIRS)


def test_each_level_reads_its_own_columns() -> None:
    text, acts = blocks()
    fitted = fit(text, acts)
    vectors = concat(text, acts, 0.5).vectors
    codes = fitted.encode(vectors)
    assert all(not book[:, COLUMNS:].any() for book in fitted.codebooks[:2])
    assert all(not book[:, :COLUMNS].any() for book in fitted.codebooks[2:])
    other_acts = concat(text, acts[::-1], 0.5).vectors
    np.testing.assert_array_equal(fitted.encode(other_acts)[:, :2], codes[:, :2])
    np.testing.assert_array_equal(fitted.encode(other_acts)[:, 2:], codes[::-1, 2:])


def test_the_weight_does_not_decide_the_codes() -> None:
    text, acts = blocks()
    quiet, loud = (fit(text, acts, weight) for weight in (0.1, 0.8))
    same = quiet.encode(concat(text, acts, 0.1).vectors) == loud.encode(concat(text, acts, 0.8).vectors)
    assert same.mean() > 0.95  # but for rounding on the way to the centroids


def test_items_without_behaviour_get_the_codes_of_what_their_text_predicts() -> None:
    text, acts = blocks(400, silent=100)
    truth = blocks(400)[1]
    fitted = fit(text, acts)
    cold = fitted.encode(concat(text, acts, 0.5).vectors)[:100]
    warm = fitted.encode(concat(text, truth, 0.5).vectors)[:100]
    np.testing.assert_array_equal(cold[:, :2], warm[:, :2])  # text at full length or not: the same codes
    assert (cold[:, 2] == warm[:, 2]).mean() > 0.6  # one of eight by chance
    assert len(np.unique(cold[:, 2])) == 8
    # A new item is coded as an old one without behaviour, alone or among others.
    new = concat(text[:100], np.zeros((100, SIZE), np.float32), 0.5).vectors
    np.testing.assert_array_equal(fitted.encode(new), cold)
    np.testing.assert_array_equal(fitted.encode(new[3:4]), cold[3:4])
    np.testing.assert_array_equal(fitted.encode_jointly(new), cold)


def test_silent_items_do_not_pull_the_behaviour_levels() -> None:
    text, acts = blocks(400, silent=200)
    alone = fit(text[200:], acts[200:])
    for ours, theirs in zip(fit(text, acts).codebooks[2:], alone.codebooks[2:], strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_the_ridge_agrees_with_normal_equations_and_gives_up_on_noise() -> None:
    rng = np.random.default_rng(0)
    given = rng.normal(size=(300, 5))
    wanted = given @ rng.normal(size=(5, 3)) + 2
    weights = _ridge(given, wanted)
    np.testing.assert_allclose(given @ weights[:-1] + weights[-1], wanted, atol=1e-2)
    noise = rng.normal(size=(300, 3))
    flat = _ridge(given, noise)
    assert np.abs(flat[:-1]).max() < 0.05
    np.testing.assert_allclose(given.mean(axis=0) @ flat[:-1] + flat[-1], noise.mean(axis=0))
    assert np.isfinite(_ridge(given[:4], wanted[:4])).all()  # fewer rows than columns


def test_errors_say_what_to_change() -> None:
    text, acts = blocks()
    vectors = concat(text, acts, 0.5).vectors
    config = PerSourceConfig(codebook_size=8)
    with pytest.raises(InputError, match="behaviour_levels 2 learns from behaviour, but there are no train"):
        fit_quantizer(config, vectors)
    with pytest.raises(InputError, match="last 6 of 16 columns are not the items' behaviour") as caught:
        fit_quantizer(config, vectors, BehaviourSignal(acts[::-1], NO_PAIRS))
    assert "fusion=concat" in str(caught.value)
    with pytest.raises(InputError, match="no text beside 6"):
        fit_quantizer(config, acts, BehaviourSignal(acts, NO_PAIRS))
    acts[5:] = 0
    with pytest.raises(InputError, match=r"5 items with train events \(of 200 items\) cannot fill a codebook of 8"):
        fit(text, acts)
    with pytest.raises(ConfigError, match="behaviour_levels 4 leaves no level for text of num_levels 4"):
        build_config(PerSourceConfig, {"behaviour_levels": 4}, source="recipe")


@pytest.mark.parametrize(
    "embeddings", [{}, {"fusion": "none"}, {"behaviour_weight": 1}, {"fusion": "align", "behaviour_weight": 0.5}]
)
def test_a_recipe_must_join_both_sources(embeddings: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"set embeddings\.fusion: concat"):
        build_config(SIDConfig, {"embeddings": embeddings, "quantizer": {"name": "per-source"}}, source="recipe")
    both = {"embeddings": {"behaviour_weight": 0.5}, "quantizer": {"name": "per-source"}}
    assert build_config(SIDConfig, both, source="recipe").needs_behaviour
