"""Stochastic beams: frequencies equal sampling without replacement, estimates are unbiased, seeds are per prompt."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from llmrec.decode.sample import SampleResult, sample_items
from llmrec.decode.searcher import Searcher
from llmrec.decode.trie import SIDTrie
from llmrec.errors import InputError
from llmrec.testing.search_conformance import search_world
from tests.decode.table_expander import TableExpander, random_trie


def many_samples(expander, count, allowed=None, **options):
    """Samples of one prompt for `count` prompt ids."""
    options = {"top_k": 3, "seed": 0, **options}
    return [sample_items(expander, [allowed], prompt_ids=[i], **options)[0] for i in range(count)]


def ordered_probabilities(probability, top_k):
    """{ordered k-tuple of rows: probability} of drawing without replacement, one after the other."""
    rows = np.flatnonzero(probability).tolist()
    result = {}
    for order in permutations(rows, top_k):
        left, value = 1.0, 1.0
        for row in order:
            value *= probability[row] / left
            left -= probability[row]
        result[order] = value
    return result


def chi_square_excess(counts, expected):
    """How many standard deviations chi-square lies above its mean; cells expected below 5 times are one cell."""
    rare = expected < 5
    counts = np.append(counts[~rare], counts[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    counts, expected = counts[expected > 0], expected[expected > 0]
    freedom = len(counts) - 1
    return (((counts - expected) ** 2 / expected).sum() - freedom) / np.sqrt(2 * freedom)


@pytest.mark.parametrize(
    ("normalise", "temperature", "excluded"),
    [("legal", 1.0, []), ("vocab", 1.0, [2]), ("vocab", 2.0, []), ("level", 0.5, [])],
)
def test_orders_are_as_frequent_as_in_sampling_without_replacement(normalise, temperature, excluded):
    trie = random_trie(num_items=8, codebook_sizes=(5, 2, 2), seed=3)  # more first codes than beams
    expander = TableExpander(trie, normalise=normalise, spread=0.8, seed=1)
    allowed = trie.exclusion(excluded) if excluded else None
    exact = ordered_probabilities(expander.item_probabilities(0, allowed, temperature), 2)
    assert sum(exact.values()) == pytest.approx(1)
    drawn = dict.fromkeys(exact, 0)
    number = 2500
    for sample in many_samples(expander, number, allowed, top_k=2, temperature=temperature):
        drawn[tuple(sample.items.tolist())] += 1
    excess = chi_square_excess(np.array(list(drawn.values())), number * np.array(list(exact.values())))
    assert excess < 4


def test_the_estimate_is_unbiased_and_weights_sum_to_one_on_average():
    trie = random_trie(num_items=40, codebook_sizes=(4, 4, 3), seed=5)
    expander = TableExpander(trie, normalise="vocab", seed=2)
    probability = expander.item_probabilities()
    values = np.random.default_rng(9).standard_normal(40) * 3
    samples = many_samples(expander, 2500, top_k=2)  # few draws: what depends on the threshold shows
    for of_rows in (values, np.ones(40)):
        estimates = np.array([(sample.weights * of_rows[sample.items]).sum() for sample in samples])
        error = estimates.std() / np.sqrt(len(estimates))
        assert abs(estimates.mean() - probability @ of_rows) < 4 * error
    # A mean of two independent draws has this standard deviation; without replacement it is smaller.
    with_replacement = np.sqrt((probability @ values**2 - (probability @ values) ** 2) / 2)
    normalised = [(s.weights * values[s.items]).sum() / s.weights.sum() for s in samples]
    assert np.std(normalised) < with_replacement


def test_inclusion_probabilities_average_to_how_often_an_item_is_drawn():
    trie = random_trie(num_items=9, codebook_sizes=(3, 2), seed=1)
    expander = TableExpander(trie, seed=4)
    samples = many_samples(expander, 2000, top_k=4)
    drawn = np.bincount(np.concatenate([sample.items for sample in samples]), minlength=9) / len(samples)
    exact = np.zeros(9)
    for order, value in ordered_probabilities(expander.item_probabilities(), 4).items():
        exact[list(order)] += value
    assert np.abs(drawn - exact).max() < 4 * np.sqrt(0.25 / len(samples))


def test_reports_the_probabilities_of_the_table():
    trie = random_trie(num_items=30, codebook_sizes=(4, 4, 4), seed=2)
    expander = TableExpander(trie, normalise="vocab", seed=3)
    allowed = trie.exclusion([0, 5])
    (sample,) = sample_items(expander, [allowed], top_k=10, seed=1, prompt_ids=[0], temperature=0.7)
    of_leaf = expander.leaf_scores(0, allowed)
    np.testing.assert_allclose(sample.scores, [of_leaf[trie.leaf_of[row]] for row in sample.items])
    np.testing.assert_allclose(
        np.exp(sample.log_probabilities), expander.item_probabilities(0, allowed, 0.7)[sample.items]
    )
    assert (np.diff(sample.perturbed) < 0).all()
    assert sample.threshold < sample.perturbed[-1]
    assert sample.normalise == "vocab"
    assert sample.num_forwards == 3


def test_every_living_item_comes_back_where_fewer_are_left():
    alive = np.ones(20, dtype=bool)
    alive[[3, 4]] = False
    trie = random_trie(num_items=20, codebook_sizes=(2, 2), seed=0, alive=alive)  # four SIDs at most: all are shared
    allowed = trie.exclusion([0, 1])
    (sample,) = sample_items(TableExpander(trie), [allowed], top_k=50, seed=0, prompt_ids=[7])
    assert sorted(sample.items.tolist()) == [2, *range(5, 20)]
    assert sample.threshold == -np.inf
    np.testing.assert_array_equal(sample.log_inclusion, 0)  # certain, so the weights are the probabilities
    assert sample.weights.sum() == pytest.approx(1)
    (seven,) = sample_items(TableExpander(trie), [allowed], top_k=7, seed=0, prompt_ids=[7])
    assert len(set(seven.items.tolist())) == 7
    assert not {0, 1, 3, 4} & set(seven.items.tolist())


def test_nothing_left_is_an_empty_sample_and_the_neighbours_get_theirs():
    trie = random_trie()
    expander = TableExpander(trie, num_prompts=2)
    nothing = trie.exclusion(np.arange(trie.num_items))
    empty, full = sample_items(expander, [nothing, None], top_k=4, seed=0, prompt_ids=[0, 1])
    assert empty.items.size == empty.weights.size == 0
    assert len(full.items) == 4


def test_a_prompts_sample_depends_on_seed_and_id_alone():
    trie = random_trie(num_items=40, codebook_sizes=(4, 4, 3))
    batch = TableExpander(trie, num_prompts=3, seed=6)
    together = sample_items(batch, [None] * 3, top_k=5, seed=11, prompt_ids=[8, 3, 5])
    for place, prompt_id in enumerate([8, 3, 5]):
        alone = TableExpander(trie, seed=6)
        alone.logits, alone.illegal = [batch.logits[place]], [batch.illegal[place]]
        (sample,) = sample_items(alone, [None], top_k=5, seed=11, prompt_ids=[prompt_id])
        np.testing.assert_array_equal(sample.items, together[place].items)
        np.testing.assert_array_equal(sample.weights, together[place].weights)
    drawn = {tuple(sample_items(alone, [None], top_k=5, seed=seed, prompt_ids=[8])[0].items) for seed in range(20)}
    assert len(drawn) > 10


def test_weights_stay_finite_at_the_ends_of_float():
    far = np.array([-1e9, -900.0, -40.0, -1e-12, -1e-12])
    for threshold in (0.0, -5.0, -1000.0, 30.0):
        sample = SampleResult(np.arange(5), far, far, far, threshold, "legal", 0)
        assert np.isfinite(sample.weights).all()
        assert (sample.log_inclusion <= 0).all()
    # Far below the threshold q is p / exp(threshold), so that the weight is exp(threshold).
    np.testing.assert_allclose(SampleResult(np.arange(5), far, far, far, 30.0, "legal", 0).weights[:3], np.exp(30.0))


def test_a_child_of_probability_zero_is_drawn_last():
    trie = SIDTrie.build(np.array([[0], [1], [2]]), (3,))
    expander = TableExpander(trie)
    expander.logits[0][1][:] = [0.0, -np.inf, 0.0]
    for sample in many_samples(expander, 20):
        assert sample.items[-1] == 1
        assert np.isfinite(sample.weights).all()


def test_of_a_torch_model_it_reports_what_scoring_every_item_gives():
    world = search_world(seed=6)
    trie = world.trie()
    searchers = {name: Searcher(world.model, trie, world.token_ids, normalise=name) for name in ("legal", "vocab")}
    drawn = {
        name: searcher.search_each(
            world.prompts,
            [None],
            lambda expander, filters, members: sample_items(expander, filters, top_k=6, seed=4, prompt_ids=members),
        )[0]
        for name, searcher in searchers.items()
    }
    for place, (legal, vocab) in enumerate(zip(drawn["legal"], drawn["vocab"], strict=True)):
        np.testing.assert_array_equal(legal.items, vocab.items)  # one distribution, whatever the normalisation
        np.testing.assert_allclose(legal.weights, vocab.weights, rtol=1e-3)
        sharing = trie.num_living(3, trie.leaf_of[legal.items])
        np.testing.assert_allclose(legal.log_probabilities, legal.scores - np.log(sharing), atol=1e-9)
        for name, sample in (("legal", legal), ("vocab", vocab)):
            every = world.oracle(name).brute_force(world.prompts[place], top_k=len(world.codes))
            of_row = dict(zip(every.items.tolist(), every.scores.tolist(), strict=True))
            np.testing.assert_allclose(sample.scores, [of_row[row] for row in sample.items.tolist()], atol=1e-4)
        assert legal.num_forwards == 2


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"top_k": 0}, "top_k must be at least 1"),
        ({"temperature": 0.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"prompt_ids": [0, 1]}, "2 ids"),
        ({"prompt_ids": [-1]}, "none negative"),
        ({"seed": -1}, "none negative"),
    ],
)
def test_unusable_settings_are_refused(options, says):
    with pytest.raises(InputError, match=says):
        sample_items(TableExpander(random_trie()), [None], **{"top_k": 2, "seed": 0, "prompt_ids": [0], **options})
