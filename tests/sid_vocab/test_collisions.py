"""Collisions: suffixes unique, dense, with spare codes; re-assignment unique and nearest; transport; sharing."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from llmrec.errors import InputError
from llmrec.sid_vocab.collisions import CollisionConfig, group_rows, number_in_bucket, resolve_collisions
from llmrec.sid_vocab.rq_kmeans import ResidualCodebooks
from llmrec.sid_vocab.transport import one_code_each

CODES = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3)), min_size=1, max_size=60)
REASSIGN = CollisionConfig(strategy="reassign")
SINKHORN = CollisionConfig(strategy="sinkhorn")


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


@given(rows=CODES, width=st.integers(0, 2))
def test_groups_hold_every_row_once_beside_its_equals(rows: list[tuple[int, int]], width: int) -> None:
    codes = np.array(rows)[:, :width]
    groups = group_rows(codes)
    assert sorted(np.concatenate(groups).tolist()) == list(range(len(rows)))
    assert len(groups) == len({tuple(row) for row in codes.tolist()})
    for group in groups:
        assert (codes[group] == codes[group[0]]).all()
        assert (np.diff(group) > 0).all()


@given(rows=CODES)
def test_share_changes_nothing(rows: list[tuple[int, int]]) -> None:
    resolved = resolve_collisions(np.array(rows), (3, 4), CollisionConfig(strategy="share"))
    assert (resolved.codebook_sizes, resolved.has_suffix, resolved.moved) == ((3, 4), False, 0)
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


# -- re-assignment -----------------------------------------------------------------------------------------------------


def crowded(seed: int, num_items: int, sizes: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, ResidualCodebooks]:
    """Vectors around a few codes, so that many collide; and their codes."""
    rng = np.random.default_rng(seed)
    fitted = ResidualCodebooks(tuple(rng.normal(size=(size, 5)).astype(np.float32) for size in sizes))
    vectors = rng.normal(size=(3, 5))[rng.integers(0, 3, num_items)] + 0.05 * rng.normal(size=(num_items, 5))
    return vectors, fitted.encode(vectors), fitted


def by_hand(
    codes: np.ndarray, size: int, popularity: np.ndarray, vectors: np.ndarray, fitted: ResidualCodebooks
) -> np.ndarray:
    """The rule, item by item: the most popular first, owners of a bucket stay, the rest take the nearest free code."""
    order = sorted(range(len(codes)), key=lambda row: (-popularity[row], row))
    owners: dict[tuple, int] = {}
    for row in order:
        owners.setdefault(tuple(codes[row]), row)
    given = codes.copy()
    taken = set(owners)
    for row in order:
        if owners[tuple(codes[row])] == row:
            continue
        prefix = tuple(codes[row][:-1])
        free = [code for code in range(size) if (*prefix, code) not in taken]
        candidates = np.array([(*prefix, code) for code in free])
        nearest = free[int(np.square(vectors[row] - fitted.reconstruct(candidates)).sum(axis=1).argmin())]
        given[row, -1] = nearest
        taken.add((*prefix, nearest))
    return given


@given(
    seed=st.integers(0, 10_000),
    num_items=st.integers(1, 24),
    sizes=st.sampled_from([(24,), (3, 24), (2, 3, 25)]),
)
def test_reassigned_items_take_the_nearest_free_code(seed: int, num_items: int, sizes: tuple[int, ...]) -> None:
    vectors, codes, fitted = crowded(seed, num_items, sizes)
    popularity = np.random.default_rng(seed).integers(0, 5, num_items)
    resolved = resolve_collisions(codes, sizes, REASSIGN, popularity, vectors=vectors, quantizer=fitted)
    assert (resolved.codebook_sizes, resolved.has_suffix) == (sizes, False)
    assert len(set(map(tuple, resolved.codes.tolist()))) == num_items
    assert resolved.moved == num_items - len(set(map(tuple, codes.tolist())))
    assert int((resolved.codes != codes).any(axis=1).sum()) == resolved.moved
    np.testing.assert_array_equal(resolved.codes, by_hand(codes, sizes[-1], popularity, vectors, fitted))


@pytest.mark.parametrize("config", [REASSIGN, SINKHORN])
def test_too_few_codes_for_the_catalogue_name_the_size_that_does(config: CollisionConfig) -> None:
    vectors, codes, fitted = crowded(3, 30, (2, 6))
    needed = int(np.bincount(codes[:, 0]).max())
    assert needed > 6
    with pytest.raises(InputError, match=rf"30 items cannot get 30 SIDs by collisions.strategy {config.strategy}") as e:
        resolve_collisions(codes, (2, 6), config, vectors=vectors, quantizer=fitted)
    assert f"set codebook_size to [2, {needed}]" in str(e.value)
    # With that size it works: the first level, and with it every prefix, stays as it is.
    more = np.random.default_rng(1).normal(size=(needed, 5)).astype(np.float32)
    wider = ResidualCodebooks((fitted.codebooks[0], more))
    again = resolve_collisions(wider.encode(vectors), (2, needed), config, vectors=vectors, quantizer=wider)
    assert len(set(map(tuple, again.codes.tolist()))) == 30


@pytest.mark.parametrize("config", [REASSIGN, SINKHORN])
def test_moving_needs_vectors(config: CollisionConfig) -> None:
    with pytest.raises(InputError, match=f"{config.strategy} needs the vectors"):
        resolve_collisions(np.array([[0, 1]]), (3, 4), config)


# -- transport ---------------------------------------------------------------------------------------------------------


@given(
    seed=st.integers(0, 10_000),
    num_items=st.integers(1, 24),
    sizes=st.sampled_from([(24,), (3, 24), (2, 3, 25)]),
)
def test_transport_moves_colliding_items_alone_and_gives_each_a_sid(
    seed: int, num_items: int, sizes: tuple[int, ...]
) -> None:
    vectors, codes, fitted = crowded(seed, num_items, sizes)
    resolved = resolve_collisions(codes, sizes, SINKHORN, vectors=vectors, quantizer=fitted)
    assert (resolved.codebook_sizes, resolved.has_suffix) == (sizes, False)
    assert len(set(map(tuple, resolved.codes.tolist()))) == num_items
    np.testing.assert_array_equal(resolved.codes[:, :-1], codes[:, :-1])
    counts = Counter(map(tuple, codes.tolist()))
    alone = np.array([counts[row] == 1 for row in map(tuple, codes.tolist())])
    np.testing.assert_array_equal(resolved.codes[alone], codes[alone])
    assert resolved.moved == int((resolved.codes != codes).any(axis=1).sum())
    again = resolve_collisions(codes, sizes, SINKHORN, vectors=vectors, quantizer=fitted)
    np.testing.assert_array_equal(again.codes, resolved.codes)


@pytest.mark.parametrize(("num_rows", "num_columns"), [(1, 1), (3, 3), (5, 50), (20, 24), (60, 200), (64, 64)])
def test_transport_is_near_the_exact_assignment_and_beats_taking_turns(num_rows: int, num_columns: int) -> None:
    rng = np.random.default_rng(0)
    ours = exact = turns = 0.0
    for _ in range(8):
        rows = 0.3 * rng.normal(size=(num_rows, 8)) + rng.normal(size=8)
        costs = np.square(rows[:, None] - 0.7 * rng.normal(size=(num_columns, 8))).sum(axis=2)
        chosen = one_code_each(costs)
        assert len(set(chosen.tolist())) == num_rows
        ours += costs[np.arange(num_rows), chosen].sum()
        exact += costs[linear_sum_assignment(costs)].sum()
        free = np.ones(num_columns, bool)
        for row in costs:
            column = int(np.where(free, row, np.inf).argmin())
            free[column] = False
            turns += row[column]
    assert ours <= 1.02 * exact
    assert ours <= turns


def test_equal_items_take_the_nearest_codes_between_them_in_order() -> None:
    costs = np.tile([3.0, 1.0, 2.0, 9.0], (3, 1))
    assert one_code_each(costs).tolist() == [1, 2, 0]
    assert sorted(one_code_each(np.ones((3, 5))).tolist()) == [0, 1, 2]
