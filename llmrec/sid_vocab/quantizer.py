"""The quantiser seam: what turns item vectors into codes. `quantizers` lists the built-in ones.

A catalogue is coded by `FittedQuantizer.encode_jointly`, an item that comes later by `FittedQuantizer.encode`. Where
codebooks alone do not say how to encode (prices, network weights), the rest is in `FittedQuantizer.state`, which
`quantizer_files` keeps beside the table.

One that learns from behaviour, too, is a `llmrec.sid_vocab.behaviour_signal.BehaviourQuantizer`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np


class FittedQuantizer(Protocol):
    """Codebooks and what they do to vectors; the same vector always gets the same codes."""

    @property
    def codebooks(self) -> tuple[np.ndarray, ...]:
        """Per level (codebook_size, dim) float32."""
        ...

    def encode(self, vectors: np.ndarray) -> np.ndarray:
        """(n, dim) vectors to (n, num_levels) int32 codes; a row's codes do not depend on the other rows."""
        ...

    def encode_jointly(self, vectors: np.ndarray) -> np.ndarray:
        """(n, dim) vectors of a whole catalogue to (n, num_levels) int32 codes.

        A quantiser that balances looks at all rows here, so that a row's codes may depend on the others and on their
        order; for every other one it is `encode`.
        """
        ...

    def reconstruct(self, codes: np.ndarray) -> np.ndarray:
        """(n, k) codes of the first k levels to (n, dim) float32 vectors, in the space of the input."""
        ...

    def state(self) -> dict[str, np.ndarray]:
        """All numbers that `Quantizer.restore` needs, codebooks included, by name."""
        ...


class Quantizer(Protocol):
    """Learns codebooks from vectors; deterministic for a seed."""

    def fit(self, vectors: np.ndarray) -> FittedQuantizer:
        """Fit to (n, dim) vectors. Raises DataError or InputError where they cannot be quantised as configured."""
        ...

    def restore(self, state: Mapping[str, np.ndarray]) -> FittedQuantizer:
        """The fitted quantiser whose `FittedQuantizer.state` this is; InputError where something is missing."""
        ...
