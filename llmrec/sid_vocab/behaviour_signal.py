"""What train interactions say about items, in the form in which a quantiser learns from it.

Most quantisers see item vectors alone. One that also learns from behaviour subclasses `BehaviourQuantizer`;
`llmrec.sid_vocab.build` then makes a `BehaviourSignal` (`behaviour_vectors.behaviour_signal`) and hands it to `fit`.
Encoding never needs it, so new items get codes like old ones.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from llmrec.errors import DataError, InputError
from llmrec.sid_vocab.quantizer import FittedQuantizer


@dataclass(frozen=True, eq=False)
class BehaviourSignal:
    """Of the train part alone; rows are those of the item vectors that it goes with."""

    vectors: np.ndarray
    """(n_items, size) float32 unit vectors, zero rows for items without train events."""
    pairs: np.ndarray
    """(m, 2) int64 rows of two items that a user had one right after the other; a pair may come more than once."""

    @property
    def known(self) -> np.ndarray:
        """(n_items,) bool: has train events."""
        return np.asarray(self.vectors.any(axis=1))

    def require(self, num_items: int) -> None:
        """Raise DataError with everything that is wrong with it beside `num_items` item vectors."""
        problems = []
        if self.vectors.ndim != 2 or len(self.vectors) != num_items:
            problems.append(f"vectors of shape {self.vectors.shape} for {num_items} items")
        if not np.isfinite(self.vectors).all():
            problems.append("NaN or infinity in the vectors")
        if self.pairs.ndim != 2 or self.pairs.shape[1] != 2:
            problems.append(f"pairs of shape {self.pairs.shape}")
        elif self.pairs.size and (self.pairs.min() < 0 or self.pairs.max() >= num_items):
            problems.append(f"pairs of rows {self.pairs.min()} to {self.pairs.max()} for {num_items} items")
        if problems:
            raise DataError("The behaviour signal cannot be used:", problems)


class BehaviourQuantizer(ABC):
    """Base of quantisers whose `fit` takes behaviour beside the vectors."""

    @property
    @abstractmethod
    def behaviour_need(self) -> str | None:
        """The setting that `fit` cannot follow without behaviour, for the error; None where there is none."""

    @abstractmethod
    def fit(self, vectors: np.ndarray, behaviour: BehaviourSignal | None = None) -> FittedQuantizer:
        """Fit to (n, dim) vectors and the behaviour of the same items; see `llmrec.sid_vocab.quantizer.Quantizer`."""

    @abstractmethod
    def restore(self, state: Mapping[str, np.ndarray]) -> FittedQuantizer:
        """The fitted quantiser whose ``state`` this is."""

    def required(self, behaviour: BehaviourSignal | None, num_items: int) -> BehaviourSignal | None:
        """`behaviour` where it is needed, checked; None where it is not.

        Raises:
            DataError: it does not go with `num_items` vectors.
            InputError: it is needed and missing.
        """
        if self.behaviour_need is None:
            return None
        if behaviour is None:
            raise InputError(
                f"{self.behaviour_need} learns from behaviour, but there are no train interactions.",
                hint="fit the table together with a data set, or choose a quantizer that reads vectors alone",
            )
        behaviour.require(num_items)
        return behaviour
