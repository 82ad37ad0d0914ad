"""What every quantiser must do: subclass `QuantizerConformance` in a test and say how to make one.

One that learns from behaviour overrides `behaviour`, too, and where it wants columns of its own, `vectors`.

Example:
    >>> class TestMine(QuantizerConformance):
    ...     def make(self, num_levels, codebook_size, seed):
    ...         return Mine(MineConfig(num_levels=num_levels, codebook_size=codebook_size, seed=seed))
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from llmrec.errors import InputError, LLMRecError
from llmrec.sid_vocab.behaviour_signal import BehaviourQuantizer, BehaviourSignal
from llmrec.sid_vocab.quantizer import FittedQuantizer, Quantizer
from llmrec.sid_vocab.quantizers import QUANTIZERS
from llmrec.sid_vocab.table import SIDTable

SMALL_QUANTIZERS: dict[str, dict[str, object]] = {
    name: {"name": name, "num_levels": 3, "codebook_size": 8} for name in QUANTIZERS
} | {
    "fsq": {"name": "fsq", "num_levels": 2, "grid": [4, 2]},
    "rq-vae": {"name": "rq-vae", "codebook_size": 8, "latent_size": 6, "hidden_sizes": [16], "epochs": 3},
    "per-source": {"name": "per-source", "num_levels": 3, "behaviour_levels": 1, "codebook_size": 8},
}
"""Settings of each built-in quantiser for tests of what holds for all of them."""


class QuantizerConformance:
    """Shapes, ranges, determinism, independence of rows, falling error, state, fingerprints, errors that say why."""

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

    def behaviour(self, vectors: np.ndarray) -> BehaviourSignal | None:
        """Behaviour of the items with these (n, dim) vectors, for a quantiser that learns from it."""
        return None

    def fit(self, seed: int = 0) -> FittedQuantizer:
        """A quantiser fitted to `vectors`."""
        return self.fit_to(self.vectors(), seed)

    def fit_to(self, vectors: np.ndarray, seed: int = 0, num_levels: int | None = None) -> FittedQuantizer:
        """A quantiser fitted to `vectors` and `behaviour`."""
        quantizer = self.make(num_levels or self.num_levels, self.codebook_size, seed)
        if isinstance(quantizer, BehaviourQuantizer):
            return quantizer.fit(vectors, self.behaviour(vectors) if vectors.ndim == 2 else None)
        return quantizer.fit(vectors)

    def table(self, fitted: FittedQuantizer, vectors: np.ndarray) -> SIDTable:
        """The table of the items of `vectors`."""
        return SIDTable(
            item_ids=tuple(map(str, range(len(vectors)))),
            codes=fitted.encode_jointly(vectors),
            codebook_sizes=tuple(len(book) for book in fitted.codebooks),
            codebooks=fitted.codebooks,
        )

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
        assert self.table(self.fit(), self.vectors()).num_tokens == self.codebook_size * self.num_levels

    def test_fingerprints_change_with_what_changes_a_code(self) -> None:
        """Tables agree in their fingerprints exactly where they agree in codes and codebooks."""
        vectors = self.vectors()
        longer = self.fit_to(vectors, num_levels=self.num_levels + 1)
        fits = [self.fit(), self.fit(), self.fit(seed=1), self.fit_to(self.vectors(seed=3)), longer]
        tables = [self.table(fitted, vectors) for fitted in fits]
        assert tables[0].vocabulary_fingerprint == tables[1].vocabulary_fingerprint
        assert tables[0].rows_fingerprint == tables[1].rows_fingerprint
        assert len({table.vocabulary_fingerprint for table in tables}) > 2
        for one in tables:
            for two in tables:
                same_codes = np.array_equal(one.codes, two.codes)
                same_books = one.codebook_sizes == two.codebook_sizes and all(
                    np.array_equal(ours, theirs) for ours, theirs in zip(one.codebooks, two.codebooks, strict=True)
                )
                assert (one.rows_fingerprint == two.rows_fingerprint) == same_codes
                assert (one.vocabulary_fingerprint == two.vocabulary_fingerprint) == same_books

    def test_the_state_is_all_that_encoding_needs(self) -> None:
        """A quantiser restored from its state does the same, and one that lacks a part says which."""
        fitted, vectors = self.fit(), self.vectors(seed=2)
        state = fitted.state()
        again = self.make(self.num_levels, self.codebook_size, 0).restore(state)
        codes = fitted.encode(vectors)
        np.testing.assert_array_equal(again.encode(vectors), codes)
        np.testing.assert_array_equal(again.encode_jointly(vectors), fitted.encode_jointly(vectors))
        np.testing.assert_array_equal(again.reconstruct(codes), fitted.reconstruct(codes))
        for name in state:
            rest = {other: array for other, array in state.items() if other != name}
            with pytest.raises(InputError, match=name):
                self.make(self.num_levels, self.codebook_size, 0).restore(rest)

    def test_bad_vectors_are_refused(self) -> None:
        """NaN, infinity, zero rows, too few, all the same: an error of ours, not a crash or nonsense."""
        for value in (np.nan, np.inf, 0.0):
            broken = self.vectors()
            broken[7] = value
            with pytest.raises(LLMRecError, match="row 7"):
                self.fit_to(broken)
            with pytest.raises(LLMRecError, match="row 7"):
                self.fit().encode(broken)
        few = self.codebook_size - 1
        with pytest.raises(InputError, match=rf"{few} items .* cannot fill a codebook of {self.codebook_size} codes"):
            self.fit_to(self.vectors()[:few])
        for bad in (np.ones((self.num_items, self.dim), np.float32), self.vectors()[0]):
            with pytest.raises(LLMRecError):
                self.fit_to(bad)

    def test_a_constant_column_does_no_harm(self) -> None:
        """It tells nothing, so it is refused with a reason, or codes come out as they do for any vectors."""
        vectors = self.vectors()
        vectors[:, 0] = 0.5
        try:
            fitted = self.fit_to(vectors)
        except LLMRecError as error:
            assert error.hint  # noqa: PT017 - both outcomes are fine
            return
        codes = fitted.encode(vectors)
        assert codes.min() >= 0
        assert codes.max() < self.codebook_size
        assert np.isfinite(fitted.reconstruct(codes)).all()
        assert len(np.unique(codes, axis=0)) > self.codebook_size

    def test_vectors_of_another_width_are_refused(self) -> None:
        """Encoding names both widths."""
        with pytest.raises(LLMRecError, match=str(self.dim)):
            self.fit().encode(self.vectors()[:, :-1])
