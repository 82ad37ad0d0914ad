"""The training loop of RQ-VAE (`rq_vae.py` says what and why, `rq_vae_model.py` has the loss): plain autoencoding, a
k-means start, then codes until the loss stands still, while unused ones are revived.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from torch import nn

from llmrec.sid_vocab.behaviour_signal import BehaviourSignal
from llmrec.sid_vocab.rq_kmeans import kmeans, nearest
from llmrec.sid_vocab.rq_vae_config import RQVAEConfig
from llmrec.sid_vocab.rq_vae_model import Model, Objective

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


def train(vectors: np.ndarray, config: RQVAEConfig, behaviour: BehaviourSignal | None = None) -> Trained:
    """Train on (n, dim) float32 `vectors` and what the config needs of `behaviour`, deterministically for the seed."""
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(config.seed)
        aligned = behaviour is not None and config.alignment > 0
        model = Model(vectors.shape[1], config, behaviour.vectors.shape[1] if behaviour and aligned else 0)
        rows = torch.from_numpy(vectors)
        _run(model, rows, Objective(model, rows, config, behaviour), config)
    return Trained(
        codebooks=tuple(book.detach().numpy().copy() for book in model.books),
        encoder=_arrays(model.encoder),
        decoder=_arrays(model.decoder),
    )


def _run(model: Model, vectors: torch.Tensor, objective: Objective, config: RQVAEConfig) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate)
    best_loss, best, waited = float("inf"), copy.deepcopy(model.state_dict()), 0
    with Progress(console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("training RQ-VAE", total=config.warmup_epochs + config.epochs)
        for epoch in range(config.warmup_epochs + config.epochs):
            coding = epoch >= config.warmup_epochs
            if epoch == config.warmup_epochs:
                _start_books(model, vectors, config)
            if coding:
                objective.start_epoch()
            total, seen = 0.0, []
            for rows in torch.split(torch.randperm(len(vectors)), config.batch_size):
                if coding:
                    loss, codes = objective(rows)
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


def _start_books(model: Model, vectors: torch.Tensor, config: RQVAEConfig) -> None:
    """Residual k-means on the latents."""
    with torch.no_grad():
        residual = model.encoder(vectors).double().numpy()
        for level, book in enumerate(model.books):
            centroids = kmeans(residual, len(book), config.iterations, config.seed + level)
            book.copy_(torch.from_numpy(centroids))
            residual = residual - centroids[nearest(residual, centroids)]


def _revive(model: Model, vectors: torch.Tensor, codes: torch.Tensor) -> None:
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


def _arrays(network: nn.Sequential) -> Arrays:
    linear = [layer for layer in network if isinstance(layer, nn.Linear)]
    return (
        tuple(np.ascontiguousarray(layer.weight.detach().numpy().T) for layer in linear),
        tuple(layer.bias.detach().numpy().copy() for layer in linear),
    )
