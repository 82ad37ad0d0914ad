"""Fast encoding against oracles: greedy in float64, a beam in plain Python, all combinations."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec.errors import DataError, InputError
from llmrec.sid_vocab.beam_encode import encode_beam, encode_greedy
from llmrec.sid_vocab.rq_kmeans import ResidualCodebooks


def world(seed: int, sizes: tuple[int, ...], num: int = 40, dim: int = 6) -> tuple[np.ndarray, list[np.ndarray]]:
    rng = np.random.default_rng(seed)
    books = [(rng.normal(size=(size, dim)) / (level + 1)).astype(np.float32) for level, size in enumerate(sizes)]
    return rng.normal(size=(num, dim)).astype(np.float32), books


def greedy_by_hand(vectors: np.ndarray, books: list[np.ndarray]) -> np.ndarray:
    codes, residual = [], vectors.astype(np.float64)
    for book in books:
        nearest = np.square(residual[:, None] - book[None].astype(np.float64)).sum(axis=2).argmin(axis=1)
        codes.append(nearest)
        residual = residual - book[nearest]
    return np.stack(codes, axis=1)


def beam_by_hand(vector: np.ndarray, books: list[np.ndarray], num_beams: int) -> tuple[int, ...]:
    beams: list[tuple[int, ...]] = [()]
    for level, book in enumerate(books):
        grown = [(*beam, code) for beam in beams for code in range(len(book))]

        def left(codes: tuple[int, ...]) -> float:
            rebuilt = sum(books[at][code].astype(np.float64) for at, code in enumerate(codes))
            return float(np.square(vector - rebuilt).sum())

        beams = sorted(grown, key=left)[:num_beams]
        assert len(beams[0]) == level + 1
    return beams[0]


@given(seed=st.integers(0, 2**32), sizes=st.lists(st.integers(2, 40), min_size=1, max_size=4))
@settings(max_examples=40, deadline=None)
def test_greedy_is_that_of_float64(seed: int, sizes: list[int]) -> None:
    vectors, books = world(seed, tuple(sizes))
    codes = encode_greedy(vectors, books)
    assert codes.dtype == np.int32
    np.testing.assert_array_equal(codes, greedy_by_hand(vectors, books))


def test_rows_that_float32_cannot_decide_are_looked_at_again() -> None:
    """Vectors in the middle between two centroids, up to float64; alone, in a batch, twice: the same codes."""
    rng = np.random.default_rng(0)
    book = rng.normal(size=(64, 48)).astype(np.float32)
    pairs = np.array([rng.choice(64, 2, replace=False) for _ in range(3000)])
    middle = (book[pairs[:, 0]].astype(np.float64) + book[pairs[:, 1]]) / 2
    middle += 1e-9 * rng.normal(size=middle.shape)
    books = [book, (book[::-1] / 3).astype(np.float32)]
    codes = encode_greedy(middle, books)
    np.testing.assert_array_equal(codes, greedy_by_hand(middle, books))
    np.testing.assert_array_equal(ResidualCodebooks(tuple(books)).encode(middle), codes)
    np.testing.assert_array_equal(np.concatenate([encode_greedy(row[None], books) for row in middle[:50]]), codes[:50])


def test_exact_ties_take_the_lower_code() -> None:
    book = np.array([[1, 0], [-1, 0], [1, 0]], np.float32)
    assert encode_greedy(np.array([[2.0, 0], [0, 1]]), [book]).tolist() == [[0], [0]]


@given(
    seed=st.integers(0, 2**32), num_beams=st.integers(1, 6), sizes=st.lists(st.integers(2, 9), max_size=3, min_size=1)
)
@settings(max_examples=30, deadline=None)
def test_beam_is_that_of_plain_python(seed: int, num_beams: int, sizes: list[int]) -> None:
    vectors, books = world(seed, tuple(sizes), num=6)
    expected = [beam_by_hand(vector, books, num_beams) for vector in vectors]
    assert encode_beam(vectors, books, num_beams).tolist() == [list(codes) for codes in expected]


def test_a_wide_beam_finds_the_best_of_all_and_a_narrow_one_lies_between() -> None:
    vectors, books = world(1, (5, 4, 6), num=30)
    fitted = ResidualCodebooks(tuple(books))
    every = np.array(list(product(range(5), range(4), range(6))))
    left = np.square(vectors[:, None] - fitted.reconstruct(every)[None]).sum(axis=2)
    np.testing.assert_array_equal(encode_beam(vectors, books, 120), every[left.argmin(axis=1)])

    def error(codes: np.ndarray) -> float:
        return float(np.square(vectors - fitted.reconstruct(codes), dtype=np.float64).sum())

    assert (
        error(encode_beam(vectors, books, 120))
        <= error(encode_beam(vectors, books, 5))
        < error(encode_greedy(vectors, books))
    )


def test_grouped_candidates_of_large_codebooks() -> None:
    """256 codes and 5 beams take the way through group minima; several blocks of rows."""
    vectors, books = world(2, (256, 256, 256), num=1100, dim=12)
    codes = encode_beam(vectors, books, 5)
    for row in range(0, 1100, 275):
        assert tuple(codes[row]) == beam_by_hand(vectors[row], books, 5)
    np.testing.assert_array_equal(encode_beam(vectors[:300], books, 1), encode_greedy(vectors[:300], books))


def test_what_cannot_be_encoded() -> None:
    vectors, books = world(0, (4, 4))
    for encode in (encode_greedy, encode_beam):
        for value in (np.nan, np.inf, 0.0):
            broken = vectors.copy()
            broken[7] = value
            with pytest.raises(DataError, match="row 7"):
                encode(broken, books)
        with pytest.raises(InputError, match="vectors of 6 numbers, these have 5"):
            encode(vectors[:, :5], books)
        with pytest.raises(DataError, match="shape"):
            encode(vectors[0], books)
        for odd in (vectors[:0], vectors.astype(str)):
            with pytest.raises(DataError, match="must be numbers of shape"):
                encode(odd, books)
    with pytest.raises(InputError, match="num_beams is 0"):
        encode_beam(vectors, books, 0)
    huge = vectors * 1e25  # squares overflow in float32, the vectors are fine
    assert encode_greedy(huge.astype(np.float32), books).shape == (40, 2)
