"""The built-in quantisers as one visible list, told apart by the ``name`` of their settings.

A new quantiser is one file with a config (its ``name`` a Literal) and a class that satisfies
`llmrec.sid_vocab.quantizer.Quantizer`, an entry in `QUANTIZERS` and in `QuantizerConfig`, and a test that subclasses
`llmrec.testing.quantizer_conformance`. `fit_quantizer` knows which of them learn from behaviour.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, get_args

import numpy as np
from pydantic import BeforeValidator, ValidationError
from pydantic_core import ErrorDetails, InitErrorDetails

from llmrec.config import Config
from llmrec.sid_vocab.balanced import BalancedRQKMeans, BalancedRQKMeansConfig
from llmrec.sid_vocab.behaviour_signal import BehaviourQuantizer, BehaviourSignal
from llmrec.sid_vocab.fsq import FSQ, FSQConfig
from llmrec.sid_vocab.per_source import PerSource, PerSourceConfig
from llmrec.sid_vocab.product import ProductConfig, ProductQuantizer
from llmrec.sid_vocab.quantizer import FittedQuantizer, Quantizer
from llmrec.sid_vocab.rq_kmeans import RQKMeans, RQKMeansConfig
from llmrec.sid_vocab.rq_opq import RQOPQ, RQOPQConfig
from llmrec.sid_vocab.rq_vae import RQVAE
from llmrec.sid_vocab.rq_vae_config import RQVAEConfig
from llmrec.sid_vocab.sinkhorn import SinkhornRQKMeans, SinkhornRQKMeansConfig

_Config = (
    RQKMeansConfig
    | BalancedRQKMeansConfig
    | SinkhornRQKMeansConfig
    | ProductConfig
    | RQOPQConfig
    | FSQConfig
    | RQVAEConfig
    | PerSourceConfig
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
        raise ValueError(f"no quantizer is called {name!r}; {_advice(str(name), _CONFIG_OF)}")
    config = _CONFIG_OF[name]
    try:
        return config.model_validate(given)
    except ValidationError as error:
        lines = [_explained(line, config, name) for line in error.errors(include_url=False)]
        raise ValidationError.from_exception_data(error.title, lines) from error


def _explained(line: ErrorDetails, config: type[Config], name: str) -> InitErrorDetails:
    """An unknown key with the nearest one of this quantiser; the recipe's own errors cannot know which it is."""
    details: InitErrorDetails = {"type": line["type"], "loc": line["loc"], "input": line["input"]}
    if line["type"] == "extra_forbidden":
        told = f"unknown key; {_advice(str(line['loc'][-1]), config.model_fields, f' for {name}')}"
        return {**details, "type": "value_error", "ctx": {"error": ValueError(told)}}
    return {**details, "ctx": line["ctx"]} if "ctx" in line else details


def _advice(key: str, known: Iterable[str], where: str = "") -> str:
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"there are{where} {', '.join(known)}"


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
    "per-source": PerSource,
}
"""Built-in quantisers by name."""


def make_quantizer(config: QuantizerConfig) -> Quantizer:
    """The quantiser that `config` describes."""
    return QUANTIZERS[config.name](config)


def learns_from_behaviour(config: QuantizerConfig) -> bool:
    """Whether `fit_quantizer` needs a `BehaviourSignal` for `config`."""
    quantizer = make_quantizer(config)
    return isinstance(quantizer, BehaviourQuantizer) and quantizer.behaviour_need is not None


def fit_quantizer(
    config: QuantizerConfig, vectors: np.ndarray, behaviour: BehaviourSignal | None = None
) -> FittedQuantizer:
    """Fit what `config` describes to (n, dim) vectors, and to the behaviour of the same items where it learns from it.

    Raises:
        DataError: vectors or behaviour that cannot be used.
        InputError: vectors that cannot be quantised as configured, or behaviour that is needed and missing.
    """
    quantizer = make_quantizer(config)
    if isinstance(quantizer, BehaviourQuantizer):
        return quantizer.fit(vectors, behaviour)
    return quantizer.fit(vectors)
