"""A bonus per item: bounds are maxima, searches rank by score plus bonus, and exact search stays exact."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec.decode.beam import beam_search
from llmrec.decode.exact import exact_search
from llmrec.decode.item_bonus import BonusExpander, ItemBonus, collect_with_bonus, log_factors, popularity_debias
from llmrec.decode.trie import SIDTrie
from llmrec.errors import InputError
from tests.decode.table_expander import TableExpander, random_trie


def distinct_trie(rng, num_levels, num_items, alive=None):
    """Random SIDs, no two equal."""
    sizes = [int(size) for size in rng.integers(2, 6, num_levels)]
    numbers = rng.permutation(int(np.prod(sizes)))[:num_items]
    codes = np.stack(np.unravel_index(numbers, sizes), axis=1)
    return SIDTrie.build(codes, sizes, None if alive is None else alive[: len(codes)])


def brute_force(expander, values, allowed, top_k):
    """Rows and totals of the best items: every living item is scored and sorted."""
    trie, scores = expander.trie, expander.leaf_scores(0, allowed)
    rows = [row for leaf in scores for row in trie.members(leaf, allowed).tolist()]
    totals = {row: scores[int(trie.leaf_of[row])] + values[row] for row in rows}
    best = sorted(totals, key=lambda row: (-totals[row], trie.leaf_of[row], row))[:top_k]
    return best, [totals[row] for row in best]


def test_a_bound_is_the_largest_bonus_of_a_living_item_below():
    rng = np.random.default_rng(0)
    alive = rng.random(60) < 0.7
    trie = random_trie(num_items=60, codebook_sizes=(4, 4, 4), alive=alive)
    values = rng.standard_normal(60)
    bonus = ItemBonus.build(trie, values)
    node = trie.leaf_of.astype(np.int64)
    for level in range(3, -1, -1):
        for one in range(trie.num_nodes(level)):
            below = values[(node == one) & alive]
            assert bonus.bound(level, np.array([one]))[0] == (below.max() if below.size else -np.inf)
        node = trie.parents(level, node) if level else node
    np.testing.assert_array_equal(bonus.of_rows(np.array([7, 3])), values[[7, 3]])


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    num_levels=st.integers(1, 5),
    scale=st.sampled_from([0.0, 0.3, 3.0, 100.0]),
    normalise=st.sampled_from(["legal", "vocab"]),
)
def test_exact_with_a_bonus_equals_brute_force(seed, num_levels, scale, normalise):
    rng = np.random.default_rng(seed)
    trie = distinct_trie(rng, num_levels, 40, alive=rng.random(40) < 0.8)
    expander = TableExpander(trie, normalise=normalise, seed=seed)
    values = scale * rng.standard_normal(trie.num_items)
    allowed = trie.exclusion(np.flatnonzero(rng.random(trie.num_items) < 0.3))
    bonus = ItemBonus.build(trie, values)
    (found,) = exact_search(BonusExpander(expander, bonus), [allowed], top_k=7, num_expanded=3)
    rows, totals = brute_force(expander, values, allowed, 7)
    assert found.items.tolist() == rows
    np.testing.assert_allclose(found.scores + (bonus.bounds[0][0] if rows else 0), totals, atol=1e-9)


def test_steps_stay_at_most_zero_and_only_they_change():
    trie = random_trie(num_items=50, codebook_sizes=(4, 4, 4))
    inner = TableExpander(trie, normalise="vocab", num_prompts=2)
    bonus = ItemBonus.build(trie, 5 * np.random.default_rng(1).standard_normal(50))
    allowed = trie.exclusion(np.arange(0, 50, 3))
    wanted = [(np.array([0, 1, 1, 2, 2]), np.array([0, 0, 2, 1, 3]))] * 2
    plain = inner.expand(wanted, [None, allowed])
    for one, other in zip(plain, BonusExpander(inner, bonus).expand(wanted, [None, allowed], top=1), strict=True):
        np.testing.assert_array_equal(one.node, other.node)
        np.testing.assert_array_equal(one.owner, other.owner)
        assert (other.gain <= 0).all()
    assert inner.asked_top[-1] is None  # the model's best child need not be the best


@pytest.mark.parametrize("scale", [0.0, 2.0])
def test_items_of_shared_sids_rank_by_their_own_bonus(scale):
    rng = np.random.default_rng(3)
    trie = random_trie(num_items=60, codebook_sizes=(3, 3, 2), seed=1)  # 18 SIDs at most
    expander = TableExpander(trie, seed=2)
    values = scale * rng.standard_normal(60)
    allowed = trie.exclusion([int(values.argmax()), 5, 6])
    bonus = ItemBonus.build(trie, values)
    leaves = np.array(sorted(expander.leaf_scores(0, allowed)))
    scores = np.array([expander.leaf_scores(0, allowed)[leaf] for leaf in leaves.tolist()])
    found = collect_with_bonus(
        bonus,
        allowed,
        leaves,
        scores + bonus.of_leaves(leaves, allowed) - bonus.bounds[0][0],
        top_k=12,
        normalise="legal",
        num_forwards=1,
    )
    rows, totals = brute_force(expander, values, allowed, 12)
    assert found.items.tolist() == rows
    np.testing.assert_allclose(found.ranked_by, totals)
    np.testing.assert_allclose(found.scores, np.array(totals) - values[rows], atol=1e-12)
    for row, bucket in zip(found.items, found.bucket_of, strict=True):
        assert row in found.buckets[bucket]
        np.testing.assert_array_equal(found.buckets[bucket], trie.members(trie.leaf_of[row], allowed))


def test_a_bonus_of_zero_changes_nothing():
    trie = random_trie(num_items=50, codebook_sizes=(5, 5, 5))
    expander = TableExpander(trie, normalise="vocab")
    (plain,) = beam_search(expander, [None], num_beams=6, top_k=6)
    (same,) = beam_search(BonusExpander(expander, ItemBonus.build(trie, np.zeros(50))), [None], num_beams=6, top_k=6)
    np.testing.assert_array_equal(plain.items, same.items)
    np.testing.assert_array_equal(plain.scores, same.scores)


def test_a_large_bonus_pulls_an_item_through_a_narrow_beam():
    rng = np.random.default_rng(0)
    trie = distinct_trie(rng, 3, 40)
    expander = TableExpander(trie, seed=4)
    (plain,) = exact_search(expander, [None], top_k=trie.num_items)
    last = plain.items[-1]
    values = np.zeros(trie.num_items)
    values[last] = 50.0
    (found,) = beam_search(BonusExpander(expander, ItemBonus.build(trie, values)), [None], num_beams=1, top_k=1)
    assert found.items.tolist() == [last]


def test_a_bonus_belongs_to_one_version():
    trie = random_trie()
    bonus = ItemBonus.build(trie, np.zeros(trie.num_items))
    with pytest.raises(InputError, match="another version"):
        BonusExpander(TableExpander(trie.with_alive(np.arange(trie.num_items) > 3)), bonus)


@pytest.mark.parametrize("values", [np.zeros(3), np.full(12, np.nan), np.full(12, -np.inf), np.array(["a"] * 12)])
def test_unusable_values_are_refused(values):
    with pytest.raises(InputError, match="one finite number for each of the 12 rows"):
        ItemBonus.build(random_trie(), values)


def test_popularity_debias_undoes_a_popularity_prior():
    counts = np.array([0, 9, 99])
    np.testing.assert_allclose(popularity_debias(counts, 1.0), [0, -np.log(10), -np.log(100)])
    assert (popularity_debias(counts, 0.0) == 0).all()
    for wrong in ([-1, 2], [np.nan, 1]):
        with pytest.raises(InputError, match="counts of at least 0"):
            popularity_debias(np.array(wrong), 1.0)


def test_log_factors_rank_by_probability_times_factor():
    np.testing.assert_allclose(log_factors(np.array([1.0, 2.0])), [0, np.log(2)])
    with pytest.raises(InputError, match="first is row 1"):
        log_factors(np.array([1.0, 0.0]))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), scale=st.sampled_from([0.3, 3.0]))
def test_exact_and_a_wide_beam_rank_items_of_shared_sids_by_their_own_bonus(seed, scale):
    rng = np.random.default_rng(seed)
    trie = random_trie(num_items=60, codebook_sizes=(4, 3, 3), seed=seed, alive=rng.random(60) < 0.8)
    expander = TableExpander(trie, seed=seed, spread=2.0)
    values = scale * rng.standard_normal(60)
    allowed = trie.exclusion(np.flatnonzero(rng.random(60) < 0.2))
    bonus = ItemBonus.build(trie, values)
    rows, totals = brute_force(expander, values, allowed, 7)
    (exact,) = exact_search(expander, [allowed], top_k=7, num_expanded=2, bonus=bonus)
    (beam,) = beam_search(expander, [allowed], num_beams=60, top_k=7, bonus=bonus)
    for found in (exact, beam):
        assert found.items.tolist() == rows
        np.testing.assert_allclose(found.ranked_by, totals)
