"""The networks of RQ-VAE and the loss of a batch (`rq_vae.py` says what and why).

Squared error of the reconstruction, and per level ``|sg(r) - e|^2 + beta |r - sg(e)|^2`` for residual r and its code e
(TIGER, Rajput et al. 2023, section 3.1; sg stops the gradient). The decoder's gradient, and that of the contrasts,
passes straight through the codes to the encoder.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional

from llmrec.sid_vocab.behaviour_signal import BehaviourSignal
from llmrec.sid_vocab.rq_vae_config import RQVAEConfig
from llmrec.sid_vocab.rq_vae_losses import Partners, cluster_codes, contrast, diversity


@dataclass(frozen=True)
class Coded:
    """A batch with codes."""

    codes: torch.Tensor
    """(n, num_levels)."""
    quantised: torch.Tensor
    """(n, latent_size) sum of the codes, with the latent's gradient."""
    loss: torch.Tensor
    """Of codebooks and commitment, over all levels."""


class Model(nn.Module):
    """Encoder, codebooks, decoder; with `behaviour_size`, a projection of latents to behaviour vectors."""

    def __init__(self, dim: int, config: RQVAEConfig, behaviour_size: int = 0) -> None:
        super().__init__()
        widths = [dim, *config.hidden_sizes, config.latent_size]
        self.encoder, self.decoder = _perceptron(widths), _perceptron(widths[::-1])
        self.books = nn.ParameterList(
            nn.Parameter(torch.zeros(size, config.latent_size)) for size in config.codebook_sizes
        )
        self.to_behaviour = nn.Linear(config.latent_size, behaviour_size, bias=False) if behaviour_size else None

    def autoencode(self, batch: torch.Tensor) -> torch.Tensor:
        """Loss without codes."""
        return functional.mse_loss(self.decoder(self.encoder(batch)), batch)

    def code(self, batch: torch.Tensor, commitment: float, kept: torch.Tensor | None = None) -> Coded:
        """Quantise (n, dim) vectors.

        Args:
            batch: the vectors.
            commitment: weight of the commitment loss.
            kept: (n,) how many first levels of each row go into `Coded.quantised`; None for all.
        """
        latent = self.encoder(batch)
        residual, total, codes = latent, torch.zeros_like(latent), []
        loss = latent.new_zeros(())
        for level, book in enumerate(self.books):
            code = torch.cdist(residual.detach(), book.detach()).argmin(dim=1)
            chosen = book[code]
            loss = loss + functional.mse_loss(chosen, residual.detach())
            loss = loss + commitment * functional.mse_loss(residual, chosen.detach())
            residual = residual - chosen.detach()
            total = total + (chosen if kept is None else chosen * (kept > level)[:, None]).detach()
            codes.append(code)
        return Coded(torch.stack(codes, dim=1), latent + (total - latent).detach(), loss)


class Objective:
    """The loss of a batch of items, with what the config adds to TIGER's.

    Args:
        model: what learns.
        vectors: (n_items, dim) float32.
        config: weights of the terms.
        behaviour: of the same items, where the config needs it.
    """

    def __init__(
        self, model: Model, vectors: torch.Tensor, config: RQVAEConfig, behaviour: BehaviourSignal | None
    ) -> None:
        self._model, self._vectors, self._config = model, vectors, config
        self._clusters: list[torch.Tensor] = []
        if behaviour is not None:
            self._acts = torch.from_numpy(behaviour.vectors.astype("float32"))
            self._partners = Partners(behaviour.pairs, len(vectors))

    def start_epoch(self) -> None:
        """Cluster the codes anew, as LETTER does."""
        if self._config.diversity:
            books = [book.detach().numpy() for book in self._model.books]
            self._clusters = [
                torch.from_numpy(cluster_codes(book, self._config.diversity_clusters, self._config.seed))
                for book in books
            ]

    def __call__(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss of the items `rows` (n,), and their (n, num_levels) codes."""
        config, model, batch = self._config, self._model, self._vectors[rows]
        levels = len(model.books)
        kept = torch.randint(1, levels + 1, (len(rows),)) if config.progressive_masking else None
        coded = model.code(batch, config.commitment, kept)
        loss = coded.loss + functional.mse_loss(model.decoder(coded.quantised), batch)
        if config.diversity:
            terms = [
                diversity(book, coded.codes[:, level], clusters)
                for level, (book, clusters) in enumerate(zip(model.books, self._clusters, strict=True))
            ]
            loss = loss + config.diversity * torch.stack(terms).mean()
        if model.to_behaviour is not None:
            acts = self._acts[rows]
            known = acts.any(dim=1)
            if int(known.sum()) > 1:
                drawn = model.to_behaviour(coded.quantised[known])
                loss = loss + config.alignment * contrast(drawn, acts[known], config.temperature)
        if config.cooccurrence:
            places, partners = self._partners.draw(rows)
            if len(places) > 1:
                lengths = None if kept is None else kept[places]
                others = model.code(self._vectors[partners], config.commitment, lengths).quantised
                # neither a partner that two items share nor an item itself is a negative
                ignored = (partners[:, None] == partners) | (rows[places][:, None] == partners)
                ignored.fill_diagonal_(False)
                term = contrast(coded.quantised[places], others, config.temperature, ignored)
                loss = loss + config.cooccurrence * term
        return loss, coded.codes


def _perceptron(widths: list[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for number, (inner, outer) in enumerate(pairwise(widths)):
        if number:
            layers.append(nn.ReLU())
        layers.append(nn.Linear(inner, outer))
    return nn.Sequential(*layers)
