"""The quantiser seam: what turns item vectors into codes, and the visible list of the built-in ones.

A new quantiser is one file with a config (its ``name`` a Literal) and a class that satisfies `Quantizer`, an entry in
`QUANTIZERS` and in `QuantizerConfig`, and a test that subclasses `llmrec.testing.quantizer_conformance`.

A catalogue is coded by `FittedQuantizer.encode_jointly`, an item that comes later by `FittedQuantizer.encode`. Where
codebooks alone do not say how to encode (prices, network weights), the rest is in `FittedQuantizer.state`, which
`quantizer_files` keeps beside the table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Protocol, get_args

import numpy as np
from pydantic import BeforeValidator

from llmrec.config import Config
from llmrec.sid_vocab.balanced import BalancedRQKMeans, BalancedRQKMeansConfig
from llmrec.sid_vocab.fsq import FSQ, FSQConfig
from llmrec.sid_vocab.product import ProductConfig, ProductQuantizer
from llmrec.sid_vocab.rq_kmeans import RQKMeans, RQKMeansConfig
from llmrec.sid_vocab.rq_opq import RQOPQ, RQOPQConfig
from llmrec.sid_vocab.rq_vae import RQVAE, RQVAEConfig
from llmrec.sid_vocab.sinkhorn import SinkhornRQKMeans, SinkhornRQKMeansConfig


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


_Config = (
    RQKMeansConfig
    | BalancedRQKMeansConfig
    | SinkhornRQKMeansConfig
    | ProductConfig
    | RQOPQConfig
    | FSQConfig
    | RQVAEConfig
)
_CONFIG_OF: dict[str, type[Config]] = {
    name: config for config in get_args(_Config) for name in get_args(config.model_fields["name"].annotation)
}


def _by_name(given: Any) -> Any:
    """Validate a mapping as the config that its ``name`` says, so that errors are about that one alone."""
    if isinstance(given, get_args(_Config)):
        return given
    if not isinstance(given, Mapping):
        raise ValueError(f"a quantizer is a group of settings, not {given!r}")
    name = given.get("name", "rq-kmeans")
    if name not in _CONFIG_OF:
        raise ValueError(f"no quantizer is called {name!r}; there are {', '.join(_CONFIG_OF)}")
    return _CONFIG_OF[name].model_validate(given)


QuantizerConfig = Annotated[_Config, BeforeValidator(_by_name)]
"""The configs of all built-in quantisers, told apart by ``name``; a mapping without one is RQ-KMeans's."""

QUANTIZERS: dict[str, Callable[[Any], Quantizer]] = {
    "rq-kmeans": RQKMeans,
    "balanced-rq-kmeans": BalancedRQKMeans,
    "sinkhorn-rq-kmeans": SinkhornRQKMeans,
    "pq": ProductQuantizer,
    "opq": ProductQuantizer,
    "rq-opq": RQOPQ,
    "fsq": FSQ,
    "rq-vae": RQVAE,
}
"""Built-in quantisers by name."""


def make_quantizer(config: QuantizerConfig) -> Quantizer:
    """The quantiser that `config` describes."""
    return QUANTIZERS[config.name](config)
