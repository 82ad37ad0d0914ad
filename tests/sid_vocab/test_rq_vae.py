"""RQ-VAE: conformance, a forward pass against torch, use of the codebooks, early stop, errors."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from llmrec.config import build_config
from llmrec.errors import ConfigError, InputError
from llmrec.sid_vocab.quantizer import Quantizer
from llmrec.sid_vocab.quantizers import make_quantizer
from llmrec.sid_vocab.rq_vae import RQVAE, Layers
from llmrec.sid_vocab.rq_vae_config import RQVAEConfig
from llmrec.sid_vocab.rq_vae_model import Model
from llmrec.sid_vocab.rq_vae_train import _revive
from llmrec.testing.quantizer_conformance import QuantizerConformance


def small(**changes: object) -> RQVAEConfig:
    settings = {"num_levels": 3, "codebook_size": 8, "latent_size": 8, "hidden_sizes": [32], "epochs": 80}
    return RQVAEConfig.model_validate(settings | {"learning_rate": 5e-3} | changes)


class TestRQVAE(QuantizerConformance):
    def make(self, num_levels: int, codebook_size: int, seed: int) -> Quantizer:
        return make_quantizer(small(num_levels=num_levels, codebook_size=codebook_size, seed=seed))


def clustered(num_items: int = 300, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rows: np.ndarray = rng.normal(size=(10, 16))[np.arange(num_items) % 10] + 0.4 * rng.normal(size=(num_items, 16))
    return rows.astype(np.float32)


def test_numpy_layers_compute_what_torch_computes() -> None:
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.ReLU(), torch.nn.Linear(7, 3))
    linear = [layer for layer in network if isinstance(layer, torch.nn.Linear)]
    ours = Layers(
        tuple(layer.weight.detach().numpy().T for layer in linear),
        tuple(layer.bias.detach().numpy() for layer in linear),
    )
    values = np.random.default_rng(0).normal(size=(4, 5))
    theirs = network(torch.from_numpy(values).float()).detach().numpy()
    np.testing.assert_allclose(ours(values), theirs, rtol=1e-4, atol=1e-5)


def test_most_codes_are_used_and_most_variance_is_explained() -> None:
    vectors = clustered()
    fitted = RQVAE(small(num_levels=2, codebook_size=16, epochs=150)).fit(vectors)
    codes = fitted.encode(vectors)
    assert min(len(np.unique(codes[:, level])) for level in range(2)) >= 13
    unexplained = np.square(vectors - fitted.reconstruct(codes)).sum() / np.square(vectors - vectors.mean(axis=0)).sum()
    assert unexplained < 0.3
    assert [book.shape for book in fitted.codebooks] == [(16, 8), (16, 8)]


def test_units_do_not_matter_and_the_seed_does() -> None:
    vectors, config = clustered(120), small(epochs=5)
    fitted = RQVAE(config).fit(vectors)
    grown = RQVAE(config).fit(vectors * 64)
    np.testing.assert_array_equal(fitted.encode(vectors), grown.encode(vectors * 64))
    other = RQVAE(config.model_copy(update={"seed": 1})).fit(vectors)
    assert not np.array_equal(fitted.codebooks[0], other.codebooks[0])


def test_training_leaves_the_random_state_alone_and_stops_early(capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    RQVAE(small(epochs=100000, patience=2)).fit(clustered(60))  # would take an hour without the early stop
    torch.testing.assert_close(torch.rand(3), expected)
    assert capsys.readouterr().out == ""


def test_unused_codes_move_to_where_items_are() -> None:
    torch.manual_seed(0)
    model, vectors = Model(16, small()), torch.from_numpy(clustered())
    with torch.no_grad():
        model.books[0][3] = 1000.0
    codes = torch.zeros((len(vectors), 3), dtype=torch.int64)
    codes[:, 1:] = torch.arange(len(vectors))[:, None] % 8
    kept = model.books[1].detach().clone()
    _revive(model, vectors, codes)
    assert float(model.books[0][3].detach().abs().max()) < 100
    torch.testing.assert_close(model.books[1].detach(), kept)


def test_errors_say_what_to_change() -> None:
    with pytest.raises(InputError, match="cannot fill a codebook of 64"):
        RQVAE(small(codebook_size=64)).fit(clustered(40))
    for wrong in ({"hidden_sizes": []}, {"hidden_sizes": [0]}, {"learning_rate": 0}, {"latent_size": 0}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            build_config(RQVAEConfig, wrong, source="recipe")


def test_the_seam_needs_no_torch() -> None:
    assert "torch" not in (sys.modules["llmrec.sid_vocab.rq_vae"].__dict__)
