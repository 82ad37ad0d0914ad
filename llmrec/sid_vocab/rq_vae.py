"""RQ-VAE: an autoencoder whose latent vectors are quantised level by level (TIGER, Rajput et al. 2023, section 3.1).

Codes live in a small learned space instead of the encoder's: 32 numbers by default, as in TIGER. Codebooks start from
residual k-means on the latents, and a code that no item of an epoch took moves to where items are; without the two,
most of a codebook is never used. Departures from TIGER and LC-Rec (Zheng et al. 2024, section III-B), whose thousands
of epochs are for GPUs (150 epochs on 3,168 x 384 vectors take 26 CPU seconds and use 99.9 % of 3 x 256 codes):

* A few epochs of plain autoencoding come before the k-means start, so that it clusters latents that mean something.
* AdamW as in LC-Rec, and training stops when the loss does.
* Vectors are centred and scaled by one number. The networks are small, and encoding runs in numpy in float64, so that
  an item gets the same codes alone and in a batch, with no torch in the way.

Two papers' additions are options, off by default. They act on training alone; encoding reads the vector as ever.

* **LETTER** (Wang et al. 2024): `alignment` draws the quantised latent to the item's behaviour vector and away from
  others' (its alpha), `diversity` draws codes of a cluster together, so that crowded codes spread (its beta). Weights
  in `letter.yaml` are those of the authors' training script. Departures: a learned projection takes the latent to the
  width of behaviour vectors, and cosines with a temperature stand for LETTER's plain products, so that the scale of
  neither side matters; clusters have a cap, but no floor; every level takes its nearest code, where their last level
  is assigned by Sinkhorn; codebook losses are summed over levels, not averaged.
* **PLUM's SID-v2** (He et al. 2025): codebooks that shrink with depth (`codebook_size` lists one size per level; theirs
  has 2048 / 2^(level - 1) codes), `progressive_masking` (only the first r levels rebuild the vector, for a random r,
  so that prefixes mean something on their own), and `cooccurrence`, a contrast between items that users had together.
  How r is drawn, what is contrasted, which items co-occur, and the weight and temperature are not known to us from the
  paper. We draw r uniformly per item; the contrast reads the sum of the same r codes of both items; two items co-occur
  when a train user had one right after the other, and one such neighbour is drawn per item and epoch; the neighbours of
  the other items in the batch are negatives. PLUM encodes each modality by itself; here the vectors come fused.

The codebooks alone do not encode: network weights are part of `state`. Training is in `rq_vae_train.py`, the loss in
`rq_vae_model.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from llmrec.sid_vocab.behaviour_signal import BehaviourQuantizer, BehaviourSignal
from llmrec.sid_vocab.rq_kmeans import (
    ResidualCodebooks,
    greedy_codes,
    numbered,
    require_enough,
    require_width,
)
from llmrec.sid_vocab.rq_vae_config import RQVAEConfig
from llmrec.sid_vocab.state import part


@dataclass(frozen=True, eq=False)
class Layers:
    """A multilayer perceptron: ReLU after every layer but the last."""

    weights: tuple[np.ndarray, ...]
    """Per layer (in, out) float32."""
    biases: tuple[np.ndarray, ...]
    """Per layer (out,) float32."""

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """(n, in) to (n, out) float64."""
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            values = values @ weight.astype(np.float64) + bias
            if layer < len(self.weights) - 1:
                values = np.maximum(values, 0)
        return values


@dataclass(frozen=True, eq=False)
class VAECodebooks:
    """A fitted RQ-VAE."""

    latent: ResidualCodebooks
    """Codebooks of the latent space."""
    encoder: Layers
    decoder: Layers
    mean: np.ndarray
    """(dim,) float64, taken from the vectors first."""
    scale: float
    """Divides them then."""

    @property
    def codebooks(self) -> tuple[np.ndarray, ...]:
        """Per level (codebook_size, latent_size) float32."""
        return self.latent.codebooks

    def encode(self, vectors: np.ndarray) -> np.ndarray:
        """(n, dim) vectors to (n, num_levels) int32 codes: the nearest ones of the latent, greedily.

        Raises:
            DataError: vectors with NaN, infinity or of zero length.
            InputError: vectors of another width than those of the fit.
        """
        require_width(vectors, len(self.mean))
        latents = self.encoder((vectors.astype(np.float64) - self.mean) / self.scale)
        return greedy_codes(latents, self.latent.codebooks)

    def encode_jointly(self, vectors: np.ndarray) -> np.ndarray:
        """The same as `encode`: no row minds the others."""
        return self.encode(vectors)

    def reconstruct(self, codes: np.ndarray) -> np.ndarray:
        """(n, k) codes of the first k levels to (n, dim) float32: the decoder's reading of the sum of their codes."""
        decoded = self.decoder(self.latent.reconstruct(codes).astype(np.float64))
        vectors: np.ndarray = (decoded * self.scale + self.mean).astype(np.float32)
        return vectors

    def state(self) -> dict[str, np.ndarray]:
        """Codebooks, network weights, mean and scale by name."""
        arrays = self.latent.state() | {"mean": self.mean, "scale": np.array([self.scale])}
        for network, layers in (("encoder", self.encoder), ("decoder", self.decoder)):
            arrays |= {f"{network}_weight_{layer}": weight for layer, weight in enumerate(layers.weights)}
            arrays |= {f"{network}_bias_{layer}": bias for layer, bias in enumerate(layers.biases)}
        return arrays


class RQVAE(BehaviourQuantizer):
    """Residual-quantised autoencoder.

    Example:
        >>> fitted = RQVAE(RQVAEConfig(num_levels=2, codebook_size=4, epochs=5)).fit(np.random.rand(50, 8))
        >>> fitted.encode(np.random.rand(3, 8)).shape
        (3, 2)
    """

    def __init__(self, config: RQVAEConfig) -> None:
        self.config = config

    @property
    def behaviour_need(self) -> str | None:
        """`alignment` or `cooccurrence`, whichever is above 0."""
        weights = {"alignment": self.config.alignment, "cooccurrence": self.config.cooccurrence}
        return next((f"quantizer.{name} {weight:g}" for name, weight in weights.items() if weight), None)

    def fit(self, vectors: np.ndarray, behaviour: BehaviourSignal | None = None) -> VAECodebooks:
        """Train on (n, dim) vectors, with a progress bar on standard error.

        Raises:
            DataError: NaN, infinity, zero rows or a wrong shape.
            InputError: fewer different vectors than codes, or behaviour that is needed and missing.
        """
        from llmrec.sid_vocab.rq_vae_train import train

        require_enough(vectors, self.config.codebook_sizes)
        signal = self.required(behaviour, len(vectors))
        mean = vectors.mean(axis=0, dtype=np.float64)
        scale = float((vectors - mean).std())
        trained = train(((vectors - mean) / scale).astype(np.float32), self.config, signal)
        return VAECodebooks(
            latent=ResidualCodebooks(trained.codebooks),
            encoder=Layers(*trained.encoder),
            decoder=Layers(*trained.decoder),
            mean=mean,
            scale=scale,
        )

    def restore(self, state: Mapping[str, np.ndarray]) -> VAECodebooks:
        """The fitted quantiser whose `state` this is."""
        count = len(self.config.hidden_sizes) + 1
        return VAECodebooks(
            latent=ResidualCodebooks(numbered(state, "codebook", self.config.num_levels)),
            encoder=Layers(numbered(state, "encoder_weight", count), numbered(state, "encoder_bias", count)),
            decoder=Layers(numbered(state, "decoder_weight", count), numbered(state, "decoder_bias", count)),
            mean=part(state, "mean"),
            scale=float(part(state, "scale")[0]),
        )
