"""One level per source: the first codes say what an item reads like, the last ones who uses it (EAGER-LLM, Hong et al.
2025: two levels of text and two of behaviour).

A vector that joins both (``fusion: concat``) lets the louder half decide each code. Here each half has levels of its
own: residual k-means on the text columns, then residual k-means on the behaviour columns, so that a token's meaning has
one source. `BehaviourSignal.vectors` says how many of the last columns are behaviour.

An item without train events has no behaviour to code, today or tomorrow. Its behaviour is guessed from its text by a
ridge regression fitted on the items that have both (the penalty by generalised cross-validation, Golub et al. 1979);
so new items spread over the behaviour codes of items like them, instead of all getting the one nearest to zero.

Departures and open points: EAGER-LLM builds a hierarchy by k-means within each cluster, ours is residual, with one
codebook per level, as everywhere in this package. Text comes first, because a new item's text codes are sure. How the
paper codes items without behaviour, and how it tells items with the same codes apart, we could not find; the latter is
`collisions` here, as for every quantiser (a strategy that moves items sees no behaviour of those that have none, and
puts them near the mean). Codewords lie in the input space with zeros in the columns of the other source, so that the
sum of an item's codes rebuilds its vector.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
from pydantic import Field, model_validator

from llmrec.errors import InputError
from llmrec.sid_vocab.behaviour_signal import BehaviourQuantizer, BehaviourSignal
from llmrec.sid_vocab.rq_kmeans import (
    LevelsConfig,
    ResidualCodebooks,
    greedy_codes,
    numbered,
    require_enough,
    require_width,
    residual_levels,
)
from llmrec.sid_vocab.state import part
from llmrec.sid_vocab.vectors import normalise

_ROWS = 8192  # completed at a time, so that a million vectors are never copied at once
_PENALTIES = np.geomspace(1e-4, 1e3, 15)  # as a share of the mean variance of the text's directions
_CONCAT = "set embeddings.fusion=concat and embeddings.behaviour_weight between 0 and 1"


class PerSourceConfig(LevelsConfig):
    """Settings of `PerSource`."""

    name: Literal["per-source"] = "per-source"
    """Which quantiser this is."""
    num_levels: int = Field(default=4, ge=2, le=25)
    """Levels in all; a suffix level against collisions comes on top."""
    behaviour_levels: int = Field(default=2, ge=1)
    """How many of them, the last ones, code behaviour; the others code text."""

    @model_validator(mode="after")
    def _some_text_levels(self) -> Self:
        if self.behaviour_levels >= self.num_levels:
            raise ValueError(
                f"behaviour_levels {self.behaviour_levels} leaves no level for text of num_levels {self.num_levels}"
            )
        return self


@dataclass(frozen=True, eq=False)
class PerSourceCodebooks(ResidualCodebooks):
    """Codebooks of two sources, and what stands for behaviour where there is none."""

    guess: np.ndarray
    """(text columns + 1, behaviour columns) float64: linear in the text at its usual length, the constant last."""
    lengths: np.ndarray
    """(2,) float64 mean length of text and of behaviour among items that have both."""

    def encode(self, vectors: np.ndarray) -> np.ndarray:
        """(n, dim) vectors to (n, num_levels) int32 codes; behaviour columns that are zero are guessed from the text.

        Raises:
            DataError: vectors with NaN, infinity or of zero length.
            InputError: vectors of another width than those of the fit.
        """
        require_width(vectors, self.codebooks[0].shape[1])
        codes = np.empty((len(vectors), len(self.codebooks)), np.int32)
        for start in range(0, len(vectors), _ROWS):
            rows = slice(start, start + _ROWS)
            codes[rows] = greedy_codes(self._completed(vectors[rows].astype(np.float64)), self.codebooks)
        return codes

    def state(self) -> dict[str, np.ndarray]:
        """Codebooks, the guess and the lengths by name."""
        return super().state() | {"guess": self.guess, "lengths": self.lengths}

    def _completed(self, vectors: np.ndarray) -> np.ndarray:
        columns = len(self.guess) - 1
        silent = ~vectors[:, columns:].any(axis=1)
        if silent.any():
            text = _at_length(vectors[silent, :columns], self.lengths[0])
            acts = _at_length(text @ self.guess[:-1] + self.guess[-1], self.lengths[1])
            vectors[silent] = np.concatenate([text, acts], axis=1)
        return vectors


class PerSource(BehaviourQuantizer):
    """Residual k-means on text and on behaviour, side by side.

    Example:
        >>> text, acts = np.random.rand(50, 8), np.random.rand(50, 4)
        >>> signal = BehaviourSignal(acts, np.empty((0, 2), np.int64))
        >>> fitted = PerSource(PerSourceConfig(codebook_size=4)).fit(np.concatenate([text, acts], axis=1), signal)
        >>> fitted.encode(np.random.rand(3, 12)).shape
        (3, 4)
    """

    def __init__(self, config: PerSourceConfig) -> None:
        self.config = config

    @property
    def behaviour_need(self) -> str:
        """Always: it has levels for it."""
        return f"quantizer.behaviour_levels {self.config.behaviour_levels}"

    def fit(self, vectors: np.ndarray, behaviour: BehaviourSignal | None = None) -> PerSourceCodebooks:
        """Cluster the columns of (n, dim) vectors, of which the last are `behaviour`, zero for items without.

        Raises:
            DataError: NaN, infinity, zero rows or a wrong shape.
            InputError: a source with fewer different vectors than codes, or last columns that are not behaviour.
        """
        config, sizes = self.config, self.config.codebook_sizes
        require_enough(vectors, (2,))
        signal = self.required(behaviour, len(vectors))
        assert signal is not None  # behaviour_need says so
        columns = vectors.shape[1] - signal.vectors.shape[1]
        _require_blocks(vectors, columns, signal)
        known, text_levels = signal.known, config.num_levels - config.behaviour_levels
        if known.sum() < max(sizes[text_levels:]):
            raise InputError(
                f"{int(known.sum())} items with train events (of {len(vectors)} items) cannot fill a codebook of "
                f"{max(sizes[text_levels:])} codes.",
                hint="lower codebook_size, or choose a quantizer that needs no behaviour",
            )
        text, acts = vectors[:, :columns].astype(np.float64), vectors[known, columns:].astype(np.float64)
        require_enough(text, sizes[:text_levels])
        require_enough(acts, sizes[text_levels:])
        lengths = np.array([np.linalg.norm(block, axis=1).mean() for block in (text[known], acts)])
        text[~known] = _at_length(text[~known], lengths[0])
        of_text = residual_levels(text, sizes[:text_levels], config.iterations, config.seed)
        of_acts = residual_levels(acts, sizes[text_levels:], config.iterations, config.seed + text_levels)
        padded = [
            *(np.pad(book, ((0, 0), (0, signal.vectors.shape[1]))) for book in of_text),
            *(np.pad(book, ((0, 0), (columns, 0))) for book in of_acts),
        ]
        return PerSourceCodebooks(tuple(padded), guess=_ridge(text[known], acts), lengths=lengths)

    def restore(self, state: Mapping[str, np.ndarray]) -> PerSourceCodebooks:
        """The fitted quantiser whose `state` this is."""
        books = numbered(state, "codebook", self.config.num_levels)
        return PerSourceCodebooks(books, guess=part(state, "guess"), lengths=part(state, "lengths"))


def _require_blocks(vectors: np.ndarray, columns: int, signal: BehaviourSignal) -> None:
    """Raise InputError unless the columns from `columns` on are the behaviour of `signal`, at any length."""
    if columns < 1:
        raise InputError(
            f"Vectors of {vectors.shape[1]} numbers have no text beside {signal.vectors.shape[1]} of behaviour.",
            hint=_CONCAT,
        )
    if not np.allclose(normalise(vectors[:, columns:]), normalise(signal.vectors), atol=1e-4):
        raise InputError(
            f"The last {vectors.shape[1] - columns} of {vectors.shape[1]} columns are not the items' behaviour.",
            hint=_CONCAT,
        )


def _at_length(rows: np.ndarray, length: float) -> np.ndarray:
    """Rows scaled to one length; zero rows stay zero."""
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    scaled: np.ndarray = rows * (length / np.where(norms > 0, norms, 1))
    return scaled


def _ridge(given: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """(p + 1, q) weights, the constant last, that take (n, p) rows to (n, q) rows, at the penalty of least GCV."""
    count = len(given)
    mean_given, mean_wanted = given.mean(axis=0), wanted.mean(axis=0)
    centred, targets = given - mean_given, wanted - mean_wanted
    energies, axes = np.linalg.eigh(centred.T @ centred)
    energies = energies.clip(min=0)
    along = axes.T @ (centred.T @ targets)
    explained = np.square(along).sum(axis=1)
    best, weights = np.inf, np.zeros((given.shape[1], wanted.shape[1]))
    for penalty in _PENALTIES * max(float(energies.mean()), 1e-12):
        inverse = 1 / (energies + penalty)
        rest = float(np.square(targets).sum() - (explained * (2 * inverse - energies * inverse**2)).sum())
        freedom = 1 - (1 + float((energies * inverse).sum())) / count  # left over, as a share of the rows
        score = rest / freedom**2 if freedom > 0 else np.inf
        if score < best:
            best, weights = score, axes @ (inverse[:, None] * along)
    return np.concatenate([weights, (mean_wanted - mean_given @ weights)[None]])
