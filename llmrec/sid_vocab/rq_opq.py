"""RQ-OPQ: residual levels for what items have in common, then product codes for what is left (OneSearch, Chen et al.
2025, section 3.2).

The residual levels are a hierarchy, coarse to fine; the last ones, equals among themselves, code the item's own traits,
which one more residual level would describe with one token. OneSearch has three residual and two product levels (the
default here) and balances the residual ones. Departures: plain RQ-KMeans for these, and no keyword enhancement of the
vectors, which is a matter of the embeddings.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Self

import numpy as np
from pydantic import Field, model_validator

from llmrec.sid_vocab.product import product_levels
from llmrec.sid_vocab.rq_kmeans import (
    LevelsConfig,
    ResidualCodebooks,
    mean_energy,
    numbered,
    require_enough,
    require_rest,
    residual_levels,
)


class RQOPQConfig(LevelsConfig):
    """Settings of `RQOPQ`."""

    name: Literal["rq-opq"] = "rq-opq"
    """Which quantiser this is."""
    num_levels: int = Field(default=5, ge=2, le=25)
    """Levels in all; a suffix level against collisions comes on top."""
    product_levels: int = Field(default=2, ge=1)
    """How many of them, the last ones, are product codes of the residual."""
    rotations: int = Field(default=10, ge=0)
    """Times that the product part clusters and turns, in turn."""

    @model_validator(mode="after")
    def _some_residual_levels(self) -> Self:
        if self.product_levels >= self.num_levels:
            raise ValueError(
                f"product_levels {self.product_levels} leaves no residual level of num_levels {self.num_levels}; "
                "use opq for product codes alone"
            )
        return self


class RQOPQ:
    """Residual k-means, then OPQ.

    Example:
        >>> fitted = RQOPQ(RQOPQConfig(num_levels=4, codebook_size=4)).fit(np.random.rand(50, 8))
        >>> fitted.encode(np.random.rand(3, 8)).shape
        (3, 4)
    """

    def __init__(self, config: RQOPQConfig) -> None:
        self.config = config

    def fit(self, vectors: np.ndarray) -> ResidualCodebooks:
        """Cluster (n, dim) vectors; raises as `RQKMeans.fit` and `ProductQuantizer.fit`."""
        config, sizes = self.config, self.config.codebook_sizes
        count = config.num_levels - config.product_levels
        require_enough(vectors, sizes)
        coarse = ResidualCodebooks(residual_levels(vectors, sizes[:count], config.iterations, config.seed))
        rest = vectors - coarse.reconstruct(coarse.encode(vectors)).astype(np.float64)
        require_rest(rest, mean_energy(vectors), sizes[:count])
        fine = product_levels(rest, sizes[count:], config.iterations, config.seed + count, config.rotations)
        return ResidualCodebooks((*coarse.codebooks, *fine))

    def restore(self, state: Mapping[str, np.ndarray]) -> ResidualCodebooks:
        """The fitted quantiser whose `state` this is."""
        return ResidualCodebooks(numbered(state, "codebook", self.config.num_levels))
