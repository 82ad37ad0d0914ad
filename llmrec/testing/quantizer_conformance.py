"""What every quantiser must do: subclass `QuantizerConformance` in a test and say how to make one.

Example:
    >>> class TestMine(QuantizerConformance):
    ...     def make(self, num_levels, codebook_size, seed):
    ...         return Mine(MineConfig(num_levels=num_levels, codebook_size=codebook_size, seed=seed))
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from llmrec.errors import LLMRecError
from llmrec.sid_vocab.quantizer import FittedQuantizer, Quantizer
from llmrec.sid_vocab.table import SIDTable


class QuantizerConformance:
    """Shapes, ranges, determinism, independence of rows, falling error, errors that say what is wrong."""

    num_items, dim, num_levels, codebook_size = 150, 12, 3, 8

    def make(self, num_levels: int, codebook_size: int, seed: int) -> Quantizer:
        """The quantiser under test; to be overridden."""
        raise NotImplementedError

    def vectors(self, seed: int = 0) -> np.ndarray:
        """(num_items, dim) float32 vectors in six clusters."""
        rng = np.random.default_rng(seed)
        centres = rng.normal(size=(6, self.dim))
        rows: np.ndarray = centres[rng.integers(0, 6, self.num_items)] + 0.3 * rng.normal(
            size=(self.num_items, self.dim)
        )
        return rows.astype(np.float32)

    def fit(self, seed: int = 0) -> FittedQuantizer:
        """A quantiser fitted to `vectors`."""
        return self.make(self.num_levels, self.codebook_size, seed).fit(self.vectors())

    def test_codes_have_the_promised_shape_and_range(self) -> None:
        """(n, num_levels) int32 within the codebooks, for vectors of the fit and for new ones."""
        fitted = self.fit()
        assert [book.shape[0] for book in fitted.codebooks] == [self.codebook_size] * self.num_levels
        assert all(book.ndim == 2 and book.dtype == np.float32 for book in fitted.codebooks)
        for vectors in (self.vectors(), self.vectors(seed=1)):
            codes = fitted.encode(vectors)
            assert codes.shape == (self.num_items, self.num_levels)
            assert codes.dtype == np.int32
            assert codes.min() >= 0
            assert codes.max() < self.codebook_size

    def test_the_same_seed_gives_the_same_codebooks(self) -> None:
        """Two fits are bit-identical, and encoding does not change the vectors it is given."""
        one, two = self.fit(), self.fit()
        vectors = self.vectors()
        for ours, theirs in zip(one.codebooks, two.codebooks, strict=True):
            np.testing.assert_array_equal(ours, theirs)
        np.testing.assert_array_equal(one.encode(vectors), two.encode(vectors))
        np.testing.assert_array_equal(vectors, self.vectors())

    def test_codes_do_not_depend_on_the_other_rows(self) -> None:
        """A new item alone gets the codes that it gets in a batch."""
        fitted, vectors = self.fit(), self.vectors(seed=2)
        together = fitted.encode(vectors)
        np.testing.assert_array_equal(np.concatenate([fitted.encode(row[None]) for row in vectors]), together)
        np.testing.assert_array_equal(fitted.encode(vectors[::-1])[::-1], together)

    def test_each_level_brings_the_reconstruction_nearer(self) -> None:
        """The first level beats the mean vector, all levels beat the first, prefixes are accepted."""
        fitted, vectors = self.fit(), self.vectors()
        codes = fitted.encode(vectors)
        errors = [float(np.square(vectors - vectors.mean(axis=0)).mean())]
        for level in range(1, self.num_levels + 1):
            rebuilt = fitted.reconstruct(codes[:, :level])
            assert rebuilt.shape == vectors.shape
            errors.append(float(np.square(vectors - rebuilt).mean()))
        assert errors[1] < 0.8 * errors[0]
        assert all(later < earlier for earlier, later in pairwise(errors))

    def test_codes_and_codebooks_make_a_table(self) -> None:
        """`SIDTable` accepts what the quantiser gives."""
        fitted = self.fit()
        table = SIDTable(
            item_ids=tuple(str(row) for row in range(self.num_items)),
            codes=fitted.encode(self.vectors()),
            codebook_sizes=(self.codebook_size,) * self.num_levels,
            codebooks=fitted.codebooks,
        )
        assert table.num_tokens == self.codebook_size * self.num_levels

    def test_bad_vectors_are_refused(self) -> None:
        """NaN, infinity, zero rows, too few, all the same: an error of ours, not a crash or nonsense."""
        for value in (np.nan, np.inf, 0.0):
            broken = self.vectors()
            broken[7] = value
            with pytest.raises(LLMRecError, match="row 7"):
                self.make(self.num_levels, self.codebook_size, 0).fit(broken)
            with pytest.raises(LLMRecError, match="row 7"):
                self.fit().encode(broken)
        for bad in (self.vectors()[: self.codebook_size - 1], np.ones((self.num_items, self.dim)), self.vectors()[0]):
            with pytest.raises(LLMRecError):
                self.make(self.num_levels, self.codebook_size, 0).fit(bad)

    def test_vectors_of_another_width_are_refused(self) -> None:
        """Encoding names both widths."""
        with pytest.raises(LLMRecError, match=str(self.dim)):
            self.fit().encode(self.vectors()[:, :-1])
