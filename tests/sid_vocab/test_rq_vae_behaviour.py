"""LETTER's and PLUM's additions to RQ-VAE: conformance, each term by hand, and what each does to the codes."""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
import pytest
import torch

from llmrec.errors import DataError, InputError
from llmrec.sid_vocab.behaviour_signal import BehaviourSignal
from llmrec.sid_vocab.quantizer import Quantizer
from llmrec.sid_vocab.quantizers import fit_quantizer, learns_from_behaviour, make_quantizer
from llmrec.sid_vocab.rq_kmeans import RQKMeansConfig
from llmrec.sid_vocab.rq_vae import RQVAE, VAECodebooks
from llmrec.sid_vocab.rq_vae_config import RQVAEConfig
from llmrec.sid_vocab.rq_vae_losses import Partners, cluster_codes, contrast, diversity
from llmrec.sid_vocab.rq_vae_model import Model
from llmrec.testing.quantizer_conformance import QuantizerConformance

ITEMS = 240


def small(**changes: object) -> RQVAEConfig:
    settings = {"num_levels": 2, "codebook_size": 8, "latent_size": 8, "hidden_sizes": [32], "epochs": 40}
    return RQVAEConfig.model_validate(settings | {"learning_rate": 5e-3, "patience": 100} | changes)


def group_of(num_items: int) -> np.ndarray:
    """What behaviour knows: four groups."""
    return np.random.default_rng(9).integers(0, 4, num_items)


def signal(num_items: int = ITEMS, silent: int = 0) -> BehaviourSignal:
    """Vectors and neighbours by group; the first `silent` items have neither."""
    rng = np.random.default_rng(5)
    group = group_of(num_items)
    vectors = np.eye(4)[group] + 0.1 * rng.normal(size=(num_items, 4))
    vectors[:silent] = 0
    mates = [rng.choice(np.flatnonzero(group[silent:] == group[row])) + silent for row in range(silent, num_items)]
    pairs = np.stack([np.arange(silent, num_items), mates], axis=1)
    return BehaviourSignal(vectors.astype(np.float32), pairs[pairs[:, 0] != pairs[:, 1]])


def texts(num_items: int = ITEMS) -> np.ndarray:
    """Much that no group shares, and the group of behaviour as a whisper that reconstruction alone passes over."""
    rng = np.random.default_rng(1)
    rows = [rng.normal(size=(num_items, 12)), np.eye(4)[group_of(num_items)]]
    return np.concatenate(rows, axis=1).astype(np.float32)


def fitted(**changes: object) -> VAECodebooks:
    return RQVAE(small(**changes)).fit(texts(), signal())


def purity(codes: np.ndarray) -> float:
    """Share of items that are of the most frequent group of their first code."""
    group = group_of(len(codes))
    return sum(np.bincount(group[codes[:, 0] == code]).max() for code in np.unique(codes[:, 0])) / len(codes)


class BehaviourConformance(QuantizerConformance):
    changes: ClassVar[dict[str, object]]

    def make(self, num_levels: int, codebook_size: int, seed: int) -> Quantizer:
        config = small(num_levels=num_levels, codebook_size=codebook_size, seed=seed, epochs=60, **self.changes)
        return make_quantizer(config)

    def behaviour(self, vectors: np.ndarray) -> BehaviourSignal:
        return signal(len(vectors), silent=min(10, len(vectors) // 2))


class TestLetter(BehaviourConformance):
    changes: ClassVar = {"alignment": 0.01, "diversity": 1e-4, "diversity_clusters": 3}


class TestPlum(BehaviourConformance):
    changes: ClassVar = {"cooccurrence": 0.05, "progressive_masking": True}


# -- terms -------------------------------------------------------------------------------------------------------------


def test_the_contrast_by_hand() -> None:
    anchors = torch.tensor([[2.0, 0.0], [0.0, 3.0], [1.0, 1.0]])
    others = torch.tensor([[5.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    half = math.sqrt(0.5)
    cosines = np.array([[1, 0, -1], [0, 1, 0], [half, half, -half]])
    expected = np.mean([-row[i] / 0.5 + np.log(np.exp(row / 0.5).sum()) for i, row in enumerate(cosines)])
    assert float(contrast(anchors, others, 0.5)) == pytest.approx(expected, rel=1e-5)
    ignored = torch.zeros(3, 3, dtype=torch.bool)
    ignored[2, 0] = True
    rows = [cosines[0], cosines[1], cosines[2][1:]]
    expected = np.mean(
        [-row[min(i, 1) if i else 0] / 0.5 + np.log(np.exp(row / 0.5).sum()) for i, row in enumerate(rows)]
    )
    assert float(contrast(anchors, others, 0.5, ignored)) == pytest.approx(expected, rel=1e-5)


def test_partners_are_neighbours_as_often_as_they_met() -> None:
    pairs = np.array([[0, 1], [0, 1], [2, 0], [3, 3]])[:3]
    partners = Partners(pairs, 5)
    torch.manual_seed(0)
    places, drawn = partners.draw(torch.arange(5))
    assert places.tolist() == [0, 1, 2]  # 3 and 4 met nobody
    assert drawn[1:].tolist() == [0, 0]
    _, many = partners.draw(torch.zeros(3000, dtype=torch.int64))
    assert float((many == 1).float().mean()) == pytest.approx(2 / 3, abs=0.04)
    assert set(many.tolist()) == {1, 2}


@pytest.mark.parametrize(("size", "clusters"), [(16, 4), (9, 10), (3, 10), (2, 1)])
def test_codes_are_clustered_by_nearness_and_none_is_too_big(size: int, clusters: int) -> None:
    rng = np.random.default_rng(0)
    corners = rng.normal(size=(clusters, 3)) * 10
    book = (corners[np.arange(size) % clusters] + 0.1 * rng.normal(size=(size, 3))).astype(np.float32)
    found = cluster_codes(book, clusters, 0)
    count = max(1, min(clusters, size // 2))
    assert np.bincount(found).max() <= math.ceil(size / count)
    if size == 16:
        assert len({(row % 4, code) for row, code in enumerate(found.tolist())}) == 4
    np.testing.assert_array_equal(found, cluster_codes(book, clusters, 0))


def test_diversity_draws_codes_of_a_cluster_together() -> None:
    torch.manual_seed(0)
    book = torch.nn.Parameter(torch.tensor([[1.0, 0.0], [0.6, 0.8], [-1.0, 0.0], [0.0, -1.0]]))
    clusters = torch.tensor([0, 0, 1, 2])
    loss = diversity(book, torch.tensor([0, 3]), clusters)  # code 3 is alone in its cluster: no term
    logits = np.array([0.6, -1.0, 0.0])
    assert float(loss.detach()) == pytest.approx(float(np.log(np.exp(logits).sum()) - 0.6), rel=1e-5)
    loss.backward()  # type: ignore[no-untyped-call]
    assert book.grad is not None
    step = book.detach() - 0.1 * book.grad
    assert float(step[0] @ step[1]) > 0.6
    assert float(step[0] @ step[2]) < -1
    assert float(diversity(book, torch.tensor([3]), clusters)) == 0


# -- what they do ------------------------------------------------------------------------------------------------------


def test_alignment_and_cooccurrence_bring_behaviour_into_the_codes() -> None:
    steps = {"batch_size": 64, "epochs": 60}
    plain = purity(fitted(**steps).encode(texts()))
    assert plain < 0.5
    assert purity(fitted(alignment=1.0, **steps).encode(texts())) > plain + 0.25
    assert purity(fitted(cooccurrence=1.0, **steps).encode(texts())) > plain + 0.25


def test_masked_levels_stay_out_of_the_sum_alone() -> None:
    torch.manual_seed(0)
    model, batch = Model(16, small(num_levels=3)), torch.from_numpy(texts(6))
    with torch.no_grad():
        for book in model.books:
            book.copy_(torch.randn(book.shape))
    kept = torch.tensor([1, 2, 3, 1, 2, 3])
    whole, masked = model.code(batch, 0.25), model.code(batch, 0.25, kept)
    torch.testing.assert_close(masked.codes, whole.codes)
    torch.testing.assert_close(masked.loss, whole.loss)
    for row, levels in enumerate(kept.tolist()):
        expected = torch.stack([model.books[level][whole.codes[row, level]] for level in range(levels)]).sum(dim=0)
        torch.testing.assert_close(masked.quantised[row], expected, rtol=1e-4, atol=1e-5)


def test_codebooks_may_shrink_with_depth() -> None:
    vectors = texts()
    model = RQVAE(small(num_levels=3, codebook_size=[16, 8, 4], epochs=5)).fit(vectors)
    assert [len(book) for book in model.codebooks] == [16, 8, 4]
    assert (model.encode(vectors).max(axis=0) < [16, 8, 4]).all()


def test_each_option_changes_what_is_learned() -> None:
    weights = [
        fitted(epochs=3, batch_size=64, **changes).state()["encoder_weight_0"]
        for changes in (
            {},
            {"alignment": 0.1},
            {"cooccurrence": 0.1},
            {"diversity": 0.1},
            {"diversity": 0.1, "diversity_clusters": 2},
            {"progressive_masking": True},
            {"alignment": 0.1, "temperature": 0.5},
        )
    ]
    assert len({weight.tobytes() for weight in weights}) == len(weights)


def test_new_items_need_no_behaviour_and_silent_ones_are_coded() -> None:
    quiet = RQVAE(small(alignment=0.1, cooccurrence=0.1, epochs=3)).fit(texts(), signal(silent=ITEMS - 2))
    assert quiet.encode(texts(7)).shape == (7, 2)
    nobody = BehaviourSignal(np.zeros((ITEMS, 4), np.float32), np.empty((0, 2), np.int64))
    plain = RQVAE(small(epochs=3)).fit(texts())
    alone = RQVAE(small(alignment=0.1, cooccurrence=0.1, epochs=3)).fit(texts(), nobody)
    np.testing.assert_array_equal(alone.encode(texts()), plain.encode(texts()))


def test_missing_and_foreign_behaviour_is_refused() -> None:
    for changes, told in (({"alignment": 0.01}, "alignment 0.01"), ({"cooccurrence": 2}, "cooccurrence 2")):
        config = small(**changes)
        assert learns_from_behaviour(config)
        with pytest.raises(InputError, match=f"quantizer.{told} learns from behaviour, but there are no train"):
            fit_quantizer(config, texts())
        with pytest.raises(DataError, match="240 items"):
            fit_quantizer(config, texts(), signal(ITEMS - 1))
    odd = signal()
    with pytest.raises(DataError) as caught:
        fit_quantizer(small(alignment=1), texts(), BehaviourSignal(np.full((ITEMS, 2), np.nan), np.array([[0, ITEMS]])))
    assert caught.value.problems == ("NaN or infinity in the vectors", "pairs of rows 0 to 240 for 240 items")
    with pytest.raises(DataError, match=r"pairs of shape \(3,\)"):
        fit_quantizer(small(cooccurrence=1), texts(), BehaviourSignal(odd.vectors, np.arange(3)))
    for config in (small(), small(diversity=0.1), RQKMeansConfig(codebook_size=4)):
        assert not learns_from_behaviour(config)
