"""Finite scalar quantisation: a token is a few numbers, each rounded to one of a few values (Mentzer et al. 2023).

RecGPT (Jiang et al. 2025) tokenises items of any domain that way: there is no codebook to learn, hence none to
collapse. Level i codes `grid` many numbers; its codebook is the product grid, ``8 x 6 x 5 = 240`` codes by default
(Mentzer et al., table 1, for about 256).

Departures: both papers train an encoder network whose outputs are bounded by tanh and rounded with a straight-through
gradient. Ours is linear and closed-form: the numbers are the principal components, widest first, and each one's step is
the one of least squared error, with the outermost values as bounds. Nothing is trained, so a fit takes a second and
depends on no seed; the levels go from coarse to fine. Few components of a vector survive (9 by default).

A grid along principal axes is a codebook in the input space like any other, and rounding is its nearest codeword, so
`ResidualCodebooks` does all the rest.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from llmrec.config import Config
from llmrec.errors import InputError
from llmrec.sid_vocab.rq_kmeans import ResidualCodebooks, numbered, require_enough

_STEPS = np.geomspace(0.05, 4.0, 120)  # in standard deviations; Max (1960) has 0.59 for 8 values and 1.6 for 2

Values = Annotated[int, Field(ge=2, le=256)]


class FSQConfig(Config):
    """Settings of `FSQ`."""

    name: Literal["fsq"] = "fsq"
    """Which quantiser this is."""
    num_levels: int = Field(default=3, ge=1, le=25)
    """Tokens of a SID; a suffix level against collisions comes on top."""
    grid: list[Values] = Field(default=[8, 6, 5], min_length=1)
    """Values of each number of a token. Their product is the codebook size; more numbers keep more of the vector."""

    @model_validator(mode="after")
    def _not_too_many_codes(self) -> Self:
        if math.prod(self.grid) > 65536:
            raise ValueError(f"grid {self.grid} makes {math.prod(self.grid)} codes, more than 65536")
        return self

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Codes of each level."""
        return (math.prod(self.grid),) * self.num_levels


class FSQ:
    """Rounded principal components.

    Example:
        >>> FSQ(FSQConfig(num_levels=2, grid=[3, 2])).fit(np.random.rand(50, 8)).encode(np.random.rand(3, 8)).shape
        (3, 2)
    """

    def __init__(self, config: FSQConfig) -> None:
        self.config = config

    def fit(self, vectors: np.ndarray) -> ResidualCodebooks:
        """Find axes and steps for (n, dim) vectors.

        Raises:
            DataError: NaN, infinity, zero rows or a wrong shape.
            InputError: fewer different vectors than codes, or vectors that vary in fewer directions than are rounded.
        """
        grid, count = self.config.grid, self.config.num_levels * len(self.config.grid)
        require_enough(vectors, (math.prod(grid),))
        mean = vectors.mean(axis=0, dtype=np.float64)
        centred = vectors.astype(np.float64) - mean
        variances, axes = np.linalg.eigh(centred.T @ centred / len(centred))
        rank = int((variances > 1e-12 * variances[-1]).sum())
        if rank < count:
            raise InputError(
                f"The vectors vary in {rank} directions, {count} are to be rounded.",
                hint=f"set num_levels to at most {rank // len(grid)}" if rank >= len(grid) else "shorten grid",
            )
        books = []
        for level in range(self.config.num_levels):
            columns = [axes[:, -1 - level * len(grid) - number] for number in range(len(grid))]
            points = [_points(centred @ axis, values) for axis, values in zip(columns, grid, strict=True)]
            book = np.array(list(itertools.product(*points))) @ np.array(columns)
            books.append((book + (mean if level == 0 else 0)).astype(np.float32))
        return ResidualCodebooks(tuple(books))

    def restore(self, state: Mapping[str, np.ndarray]) -> ResidualCodebooks:
        """The fitted quantiser whose `state` this is."""
        return ResidualCodebooks(numbered(state, "codebook", self.config.num_levels))


def _points(numbers: np.ndarray, values: int) -> np.ndarray:
    """(values,) equally spaced points around zero, at the step of least squared error for (n,) `numbers`."""
    steps = _STEPS * numbers.std()
    offset = (values - 1) / 2
    errors = [
        float(np.square(numbers - step * (np.clip(np.round(numbers / step + offset), 0, values - 1) - offset)).mean())
        for step in steps
    ]
    points: np.ndarray = steps[int(np.argmin(errors))] * (np.arange(values) - offset)
    return points
