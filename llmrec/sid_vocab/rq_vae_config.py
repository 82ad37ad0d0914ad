"""Settings of RQ-VAE; `rq_vae` says what they do and why."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from llmrec.sid_vocab.rq_kmeans import LevelsConfig


class RQVAEConfig(LevelsConfig):
    """Settings of `llmrec.sid_vocab.rq_vae.RQVAE`."""

    name: Literal["rq-vae"] = "rq-vae"
    """Which quantiser this is."""
    latent_size: int = Field(default=32, ge=1)
    """Numbers of a latent vector, in which the codebooks live."""
    hidden_sizes: list[Annotated[int, Field(ge=1)]] = Field(default=[256, 128], min_length=1)
    """Widths of the encoder's hidden layers, ReLU between; the decoder mirrors them. TIGER has 512, 256, 128."""
    commitment: float = Field(default=0.25, ge=0)
    """Weight that draws latents to their codes (beta, TIGER section 3.1)."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Of AdamW."""
    batch_size: int = Field(default=1024, ge=1)
    """Items per step."""
    warmup_epochs: int = Field(default=20, ge=0)
    """Epochs of plain autoencoding before the k-means start."""
    epochs: int = Field(default=300, ge=1)
    """At most so many epochs with codes."""
    patience: int = Field(default=30, ge=1)
    """Training stops after so many epochs without a loss lower by a thousandth; the best epoch is kept."""
    alignment: float = Field(default=0, ge=0)
    """LETTER: weight of the contrast between quantised latents and behaviour vectors."""
    diversity: float = Field(default=0, ge=0)
    """LETTER: weight of the term that spreads items over the codes of a cluster."""
    diversity_clusters: int = Field(default=10, ge=1)
    """LETTER: clusters of a codebook, made anew in each epoch; at most half as many as codes."""
    progressive_masking: bool = False
    """PLUM: rebuild from a random number of first levels, so that prefixes carry meaning without what follows."""
    cooccurrence: float = Field(default=0, ge=0)
    """PLUM: weight of the contrast between items that stand next to each other in train."""
    temperature: float = Field(default=0.1, gt=0)
    """Of the two contrasts; less looks at the nearest negatives alone."""
