"""Benchmark ``sid``: the vectors, that both sides do the same work, and memory that is really counted."""

import numpy as np
import pytest

from llmrec.bench import sid as bench
from llmrec.bench.runner import load_targets


@pytest.fixture(scope="module")
def small():
    return bench.SIDBench(3000, 2)


def test_vectors_are_unit_and_repeatable():
    vectors = bench.item_vectors(3000)
    assert vectors.shape == (3000, bench.DIM)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    again = vectors.copy()
    bench.item_vectors.cache_clear()
    np.testing.assert_array_equal(bench.item_vectors(3000), again)


def test_both_sides_see_one_sample():
    vectors = bench.item_vectors(3000)
    assert bench.sample_of(vectors, 3000) is vectors
    sample = bench.sample_of(vectors, 500)
    assert sample.shape == (500, bench.DIM)
    np.testing.assert_array_equal(sample, bench.sample_of(vectors, 500))


def test_errors_are_mean_squares_and_both_sides_quantise_alike(small):
    vectors = small.vectors
    assert bench.mean_square(vectors, lambda rows: np.zeros_like(rows)) == pytest.approx(1 / bench.DIM, rel=1e-5)
    ours, theirs = small.error_ours(), small.error_theirs()
    assert 0 < ours < 1 / bench.DIM
    assert ours == pytest.approx(theirs, rel=0.2)  # two iterations: the start centroids still show
    books = small.their_codebooks()
    with_their_books = bench.mean_square(vectors, lambda rows: books.reconstruct(books.encode(rows)))
    assert with_their_books == pytest.approx(theirs, rel=1e-5)
    assert small.beam_error_ours() < ours
    assert small.beam_error_theirs() < theirs


def test_all_times_are_an_items_microseconds(small):
    for measured in (small.encode_ours(), small.encode_theirs(1), small.beam_ours(), small.encode_theirs(5)):
        assert 0 < measured < 1e5


def test_memory_counts_the_vectors_and_is_bounded(small, monkeypatch):
    assert small.input_megabytes() == pytest.approx(3000 * 384 * 4 / 1e6)
    monkeypatch.setattr(bench.sys, "executable", "false")  # a process that fails
    assert small.peak_megabytes() == bench._MOST_MEMORY * small.input_megabytes()


def test_quick_has_the_same_cases_and_leaves_memory_out():
    quick, whole = bench.cases(True), bench.cases(False)
    assert [case.name for case in quick] == [case.name for case in whole]
    assert {case.name for case in whole} == set(load_targets()["sid"])
    assert [case.name for case in quick if case.skip] == ["peak memory"]
    assert not any(case.skip for case in whole)
