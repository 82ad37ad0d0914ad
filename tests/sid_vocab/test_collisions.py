"""The suffix level: unique, dense, in row order, with spare codes."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmrec.errors import InputError
from llmrec.sid_vocab.collisions import CollisionConfig, number_in_bucket, resolve_collisions

CODES = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3)), min_size=1, max_size=60)


@given(rows=CODES, spare=st.floats(0, 3))
def test_suffix_makes_every_row_unique(rows: list[tuple[int, int]], spare: float) -> None:
    resolved = resolve_collisions(np.array(rows), (3, 4), CollisionConfig(spare=spare))
    assert resolved.has_suffix
    assert resolved.codebook_sizes[:2] == (3, 4)
    assert len(set(map(tuple, resolved.codes.tolist()))) == len(rows)
    np.testing.assert_array_equal(resolved.codes[:, :2], rows)
    biggest = max(Counter(rows).values())
    size = resolved.codebook_sizes[2]
    assert size >= biggest * (1 + spare)
    assert size // 2 < biggest * (1 + spare) or size == 2
    assert size & (size - 1) == 0


@given(rows=CODES)
def test_suffix_counts_in_row_order(rows: list[tuple[int, int]]) -> None:
    seen: Counter = Counter()
    for row, number in zip(rows, number_in_bucket(np.array(rows)).tolist(), strict=True):
        assert number == seen[row]
        seen[row] += 1


@given(rows=CODES)
def test_share_changes_nothing(rows: list[tuple[int, int]]) -> None:
    resolved = resolve_collisions(np.array(rows), (3, 4), CollisionConfig(strategy="share"))
    assert (resolved.codebook_sizes, resolved.has_suffix) == ((3, 4), False)
    np.testing.assert_array_equal(resolved.codes, rows)


def test_stated_suffix_size() -> None:
    codes = np.array([[0, 1]] * 5 + [[1, 1]])
    assert resolve_collisions(codes, (3, 4), CollisionConfig(suffix_size=5)).codebook_sizes == (3, 4, 5)
    with pytest.raises(InputError, match="suffix_size 4 cannot tell 5 items") as caught:
        resolve_collisions(codes, (3, 4), CollisionConfig(suffix_size=4))
    assert "at least 5" in str(caught.value)


def test_the_suffix_counts_from_the_most_popular_item_down() -> None:
    codes = np.array([[1, 2], [0, 0], [1, 2], [1, 2]])
    resolved = resolve_collisions(codes, (3, 4), CollisionConfig(), np.array([5, 1, 9, 5]))
    assert resolved.codes[:, 2].tolist() == [1, 0, 0, 2]
