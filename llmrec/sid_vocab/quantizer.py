"""The quantiser seam: what turns item vectors into codes, and the visible list of the built-in ones.

A new quantiser is one file with a config (its ``name`` a Literal) and a class that satisfies `Quantizer`, an entry in
`QUANTIZERS` and in `QuantizerConfig`, and a test that subclasses `llmrec.testing.quantizer_conformance`.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from llmrec.sid_vocab.rq_kmeans import RQKMeans, RQKMeansConfig


class FittedQuantizer(Protocol):
    """Codebooks and what they do to vectors; the same vector always gets the same codes."""

    @property
    def codebooks(self) -> tuple[np.ndarray, ...]:
        """Per level (codebook_size, dim) float32."""
        ...

    def encode(self, vectors: np.ndarray) -> np.ndarray:
        """(n, dim) vectors to (n, num_levels) int32 codes; a row's codes do not depend on the other rows."""
        ...

    def reconstruct(self, codes: np.ndarray) -> np.ndarray:
        """(n, k) codes of the first k levels to (n, dim) float32 vectors, in the space of the input."""
        ...


class Quantizer(Protocol):
    """Learns codebooks from vectors; deterministic for a seed."""

    def fit(self, vectors: np.ndarray) -> FittedQuantizer:
        """Fit to (n, dim) vectors. Raises DataError or InputError where they cannot be quantised as configured."""
        ...


QuantizerConfig = RQKMeansConfig
"""The configs of the built-in quantisers; a union discriminated by ``name`` once there are two."""

QUANTIZERS: dict[str, type[RQKMeans]] = {"rq-kmeans": RQKMeans}
"""Built-in quantisers by name."""


def make_quantizer(config: QuantizerConfig) -> Quantizer:
    """The quantiser that `config` describes."""
    return QUANTIZERS[config.name](config)
