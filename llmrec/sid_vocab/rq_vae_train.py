"""The training loop of RQ-VAE (`rq_vae.py` says what and why).

Loss of a batch: squared error of the reconstruction, and per level ``|sg(r) - e|^2 + beta |r - sg(e)|^2`` for residual
r and its code e (TIGER, Rajput et al. 2023, section 3.1; sg stops the gradient). The decoder's gradient passes straight
through the codes.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from torch import nn
from torch.nn import functional

from llmrec.sid_vocab.rq_kmeans import kmeans, nearest
from llmrec.sid_vocab.rq_vae import RQVAEConfig

_BETTER = 0.999  # an epoch counts as better below this share of the best loss so far

Arrays = tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...]]


@dataclass(frozen=True)
class Trained:
    """What training leaves, as arrays."""

    codebooks: tuple[np.ndarray, ...]
    """Per level (codebook_size, latent_size) float32."""
    encoder: Arrays
    """Weights (in, out) and biases of its layers."""
    decoder: Arrays
    """Likewise."""


class _Model(nn.Module):
    """Encoder, codebooks, decoder."""

    def __init__(self, dim: int, config: RQVAEConfig) -> None:
        super().__init__()
        widths = [dim, *config.hidden_sizes, config.latent_size]
        self.encoder, self.decoder = _perceptron(widths), _perceptron(widths[::-1])
        self.books = nn.ParameterList(
            nn.Parameter(torch.zeros(size, config.latent_size)) for size in config.codebook_sizes
        )

    def autoencode(self, batch: torch.Tensor) -> torch.Tensor:
        """Loss without codes."""
        return functional.mse_loss(self.decoder(self.encoder(batch)), batch)

    def quantise(self, batch: torch.Tensor, commitment: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss with codes, and the (n, num_levels) codes."""
        latent = self.encoder(batch)
        residual, total, codes = latent, torch.zeros_like(latent), []
        loss = latent.new_zeros(())
        for book in self.books:
            code = torch.cdist(residual.detach(), book.detach()).argmin(dim=1)
            chosen = book[code]
            loss = loss + functional.mse_loss(chosen, residual.detach())
            loss = loss + commitment * functional.mse_loss(residual, chosen.detach())
            residual = residual - chosen.detach()
            total = total + chosen.detach()
            codes.append(code)
        rebuilt = self.decoder(latent + (total - latent).detach())
        return loss + functional.mse_loss(rebuilt, batch), torch.stack(codes, dim=1)


def train(vectors: np.ndarray, config: RQVAEConfig) -> Trained:
    """Train on (n, dim) float32 `vectors`, deterministically for ``config.seed``."""
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(config.seed)
        model = _Model(vectors.shape[1], config)
        _run(model, torch.from_numpy(vectors), config)
    return Trained(
        codebooks=tuple(book.detach().numpy().copy() for book in model.books),
        encoder=_arrays(model.encoder),
        decoder=_arrays(model.decoder),
    )


def _run(model: _Model, vectors: torch.Tensor, config: RQVAEConfig) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate)
    best_loss, best, waited = float("inf"), copy.deepcopy(model.state_dict()), 0
    with Progress(console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("training RQ-VAE", total=config.warmup_epochs + config.epochs)
        for epoch in range(config.warmup_epochs + config.epochs):
            coding = epoch >= config.warmup_epochs
            if epoch == config.warmup_epochs:
                _start_books(model, vectors, config)
            total, seen = 0.0, []
            for rows in torch.split(torch.randperm(len(vectors)), config.batch_size):
                if coding:
                    loss, codes = model.quantise(vectors[rows], config.commitment)
                    seen.append(codes)
                else:
                    loss = model.autoencode(vectors[rows])
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                total += float(loss.detach()) * len(rows)
            progress.advance(bar)
            if not coding:
                continue
            if total < _BETTER * best_loss:
                best_loss, best, waited = total, copy.deepcopy(model.state_dict()), 0
            else:
                waited += 1
            if waited >= config.patience:
                break
            _revive(model, vectors, torch.cat(seen))
    model.load_state_dict(best)


def _start_books(model: _Model, vectors: torch.Tensor, config: RQVAEConfig) -> None:
    """Residual k-means on the latents."""
    with torch.no_grad():
        residual = model.encoder(vectors).double().numpy()
        for level, book in enumerate(model.books):
            centroids = kmeans(residual, len(book), config.iterations, config.seed + level)
            book.copy_(torch.from_numpy(centroids))
            residual = residual - centroids[nearest(residual, centroids)]


def _revive(model: _Model, vectors: torch.Tensor, codes: torch.Tensor) -> None:
    """Move the codes that no item of the epoch took to residuals of random items."""
    with torch.no_grad():
        unused = [torch.bincount(codes[:, level], minlength=len(book)) == 0 for level, book in enumerate(model.books)]
        if not any(bool(mask.any()) for mask in unused):
            return
        rows = torch.randint(len(vectors), (max(len(book) for book in model.books),))
        residual = model.encoder(vectors[rows])
        for book, mask in zip(model.books, unused, strict=True):
            dead = torch.nonzero(mask)[:, 0]
            chosen = torch.cdist(residual, book).argmin(dim=1)
            rest = residual - book[chosen]
            book[dead] = residual[: len(dead)]
            residual = rest


def _perceptron(widths: list[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for number, (inner, outer) in enumerate(pairwise(widths)):
        if number:
            layers.append(nn.ReLU())
        layers.append(nn.Linear(inner, outer))
    return nn.Sequential(*layers)


def _arrays(network: nn.Sequential) -> Arrays:
    linear = [layer for layer in network if isinstance(layer, nn.Linear)]
    return (
        tuple(np.ascontiguousarray(layer.weight.detach().numpy().T) for layer in linear),
        tuple(layer.bias.detach().numpy().copy() for layer in linear),
    )
