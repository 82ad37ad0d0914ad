"""Text and behaviour in one vector: distances of the concatenation; what a contrastive head learns and what not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec.errors import DataError, InputError
from llmrec.sid_vocab.fusion import AlignConfig, AlignmentHead, align, concat, fit_alignment
from llmrec.sid_vocab.vectors import normalise

CONFIG = AlignConfig(hidden_size=32, batch_size=64, epochs=80, learning_rate=1e-2, seed=3)


def world(num_items: int = 240, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Text whose weak half decides who uses an item: behaviour is a turned copy of the last eight columns."""
    rng = np.random.default_rng(seed)
    text = rng.normal(size=(num_items, 16)) * np.repeat([1.0, 0.4], 8)
    turn = np.linalg.qr(np.random.default_rng(9).normal(size=(8, 8)))[0]
    return text.astype(np.float32), (text[:, 8:] @ turn).astype(np.float32)


def distances(vectors: np.ndarray) -> np.ndarray:
    return np.square(vectors[:, None] - vectors[None]).sum(axis=-1)


@given(seed=st.integers(0, 2**32), weight=st.floats(0, 1))
@settings(max_examples=40, deadline=None)
def test_concatenation_weighs_the_distances(seed: int, weight: float) -> None:
    rng = np.random.default_rng(seed)
    text, acts = rng.normal(size=(5, 7)), rng.normal(size=(5, 3))
    fused = concat(text, acts, weight)
    assert fused.notes == ()
    np.testing.assert_allclose(np.linalg.norm(fused.vectors, axis=1), 1, rtol=1e-5)
    expected = (1 - weight) * distances(normalise(text)) + weight * distances(normalise(acts))
    np.testing.assert_allclose(distances(fused.vectors), expected, atol=1e-5)


def test_items_without_behaviour_keep_their_text() -> None:
    text, acts = world(6)
    acts[4] = 0
    for weight in (0.3, 1.0):
        fused = concat(text, acts, weight)
        np.testing.assert_allclose(fused.vectors[4], [*normalise(text)[4], *[0] * 8], rtol=1e-6)
        assert fused.notes == ("1 items without train behaviour are placed by text alone",)
    np.testing.assert_array_equal(concat(text, acts, 1.0).vectors[0, :16], 0)


def test_the_head_brings_new_items_to_their_users() -> None:
    fitted = fit_alignment(*world(), CONFIG)
    assert fitted.held_out_loss < 0.1 * fitted.chance
    assert fitted.note.startswith("text was aligned to behaviour (loss of held-out items")
    text, acts = world(100, seed=5)  # items that the fit never saw
    wanted = distances(normalise(acts))[np.triu_indices(100, 1)]
    before = np.corrcoef(distances(normalise(text))[np.triu_indices(100, 1)], wanted)[0, 1]
    after = np.corrcoef(distances(fitted.head.text(text))[np.triu_indices(100, 1)], wanted)[0, 1]
    assert after > before + 0.6


def test_behaviour_that_text_cannot_tell_is_called_so() -> None:
    text, acts = world()
    fitted = fit_alignment(text, np.random.default_rng(1).permutation(acts), CONFIG)
    assert fitted.held_out_loss > 0.95 * fitted.chance
    assert fitted.epoch < 80  # it is stopped before it learns by heart
    assert fitted.note.startswith("alignment learned nothing")


def test_a_seed_decides_the_head() -> None:
    import torch

    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    one = fit_alignment(*world(), CONFIG)
    assert torch.rand(1) == expected  # the caller's random state was left alone
    two = fit_alignment(*world(), CONFIG)
    np.testing.assert_array_equal(one.head.first, two.head.first)
    np.testing.assert_array_equal(one.head.second, two.head.second)
    other = fit_alignment(*world(), CONFIG.model_copy(update={"seed": 4}))
    assert not np.array_equal(one.head.first, other.head.first)


def test_aligned_vectors_mix_in_one_space() -> None:
    text, acts = world()
    acts[[0, 7]] = 0
    head = fit_alignment(text, acts, CONFIG).head
    alone, half, all_behaviour = (align(head, text, acts, weight) for weight in (0.0, 0.5, 1.0))
    assert half.vectors.shape == text.shape
    assert half.notes == ("2 items without train behaviour are placed by text alone",)
    np.testing.assert_allclose(np.linalg.norm(half.vectors, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(alone.vectors, head.text(text), atol=1e-6)
    np.testing.assert_allclose(all_behaviour.vectors[1:7], head.acts(acts)[1:7], atol=1e-6)
    np.testing.assert_allclose(all_behaviour.vectors[[0, 7]], head.text(text[[0, 7]]), atol=1e-6)


def test_a_head_is_kept_and_a_broken_one_refused(tmp_path: Path) -> None:
    text, acts = world(60)
    head = fit_alignment(text, acts, CONFIG.model_copy(update={"epochs": 2})).head
    path = tmp_path / "head.safetensors"
    head.save(path)
    np.testing.assert_array_equal(AlignmentHead.load(path).text(text), head.text(text))
    np.testing.assert_array_equal(head.text(text[3:4])[0], head.text(text)[3])
    with pytest.raises(InputError, match="takes vectors of 16 numbers, these have 15"):
        head.text(text[:, :15])
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(InputError, match="cannot be read"):
        AlignmentHead.load(path)
    with pytest.raises(InputError, match="cannot be read"):
        AlignmentHead.load(tmp_path / "none.safetensors")


def test_what_cannot_be_fused() -> None:
    text, acts = world(60)
    acts[10:] = 0
    with pytest.raises(InputError, match="Only 10 of 60 items have train behaviour"):
        fit_alignment(text, acts, CONFIG)
    for use in (lambda bad: concat(text, bad, 0.5), lambda bad: fit_alignment(text, bad, CONFIG)):
        with pytest.raises(DataError) as caught:
            use(np.full((5, 2), np.nan))
        assert len(caught.value.problems) == 2
