"""Diverse beam search: one group is the plain beam, items are distinct, k of them, and lists get more diverse."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec.decode.beam import beam_search
from llmrec.decode.diverse import diverse_beam_search
from llmrec.decode.item_bonus import ItemBonus
from llmrec.decode.searcher import Searcher
from llmrec.decode.trie import SIDTrie
from llmrec.errors import InputError
from llmrec.testing.search_conformance import search_world
from tests.decode.table_expander import TableExpander, random_trie


def first_codes(trie, result):
    return trie.paths(trie.num_levels, trie.leaf_of[result.items])[:, 0]


@pytest.mark.parametrize(
    "options", [{"penalty": 2.0, "num_groups": 1}, {"penalty": 0.0}, {"penalty": 0.0, "num_groups": 3}]
)
def test_one_group_or_no_penalty_is_the_plain_beam(options):
    for seed in range(5):
        trie = random_trie(num_items=60, codebook_sizes=(5, 4, 4), seed=seed)
        expander = TableExpander(trie, num_prompts=2, seed=seed, normalise="vocab")
        filters = [None, trie.exclusion(np.arange(0, 60, 4))]
        plain = beam_search(expander, filters, num_beams=8, top_k=6)
        for expected, found in zip(
            plain, diverse_beam_search(expander, filters, num_beams=8, top_k=6, **options), strict=True
        ):
            np.testing.assert_array_equal(found.items, expected.items)
            np.testing.assert_array_equal(found.scores, expected.scores)
            assert found.num_forwards == 3


def by_the_definition(expander, num_beams, penalty):
    """The choice written out for groups of one: leaves in the order in which they are taken."""
    trie, beams = expander.trie, [((), 0.0)]
    of_path = [
        {tuple(p): n for n, p in enumerate(trie.paths(d, np.arange(trie.num_nodes(d))).tolist())} for d in range(4)
    ]
    for level in range(3):
        (found,) = expander.expand(
            [(np.full(len(beams), level), np.array([of_path[level][path] for path, _ in beams]))], [None]
        )
        paths = trie.paths(level + 1, found.node).tolist()
        pool = {tuple(p): beams[o][1] + g for p, o, g in zip(paths, found.owner, found.gain, strict=True)}
        beams = []
        while pool and len(beams) < num_beams:
            company = {path: sum(path[0] == other[0] for other, _ in beams) for path in pool}
            best = min(pool, key=lambda path: (-(pool[path] - penalty * company[path]), path))
            beams.append((best, pool.pop(best)))
    return [of_path[3][path] for path, _ in beams]


def test_groups_of_one_choose_as_the_definition_says():
    for seed in range(6):
        trie = random_trie(num_items=50, codebook_sizes=(4, 4, 4), seed=seed)
        expander = TableExpander(trie, seed=seed)
        (found,) = diverse_beam_search(expander, [None], num_beams=7, top_k=7, penalty=0.8)
        leaves = by_the_definition(expander, 7, 0.8)
        items = [row for leaf in leaves for row in trie.members(leaf).tolist()][:7]
        touched = {int(trie.leaf_of[row]) for row in items}
        assert {int(trie.leaf_of[row]) for row in found.items} == touched


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    num_beams=st.integers(1, 20),
    groups=st.integers(1, 20),
    penalty=st.sampled_from([0.1, 1.0, 50.0]),
    num_levels=st.integers(1, 4),
)
def test_k_distinct_living_items_wherever_k_exist(seed, num_beams, groups, penalty, num_levels):
    rng = np.random.default_rng(seed)
    trie = random_trie(num_items=25, codebook_sizes=(3,) * num_levels, seed=seed, alive=rng.random(25) < 0.7)
    out = np.flatnonzero(rng.random(25) < 0.4)
    top_k = int(rng.integers(1, num_beams + 1))
    (found,) = diverse_beam_search(
        TableExpander(trie, seed=seed),
        [trie.exclusion(out)],
        num_beams=num_beams,
        top_k=top_k,
        penalty=penalty,
        num_groups=min(groups, num_beams),
    )
    left = np.setdiff1d(np.flatnonzero(trie.alive), out)
    assert len(found.items) == len(set(found.items.tolist())) == min(top_k, len(left))
    assert np.isin(found.items, left).all()
    assert (np.diff(found.scores) <= 0).all()


def test_lists_cover_more_first_codes_and_scores_stay_the_models():
    plain_codes, diverse_codes = [], []
    for seed in range(20):
        trie = random_trie(num_items=300, codebook_sizes=(12, 8, 8), seed=seed)
        expander = TableExpander(trie, seed=seed, spread=2.0)
        (plain,) = beam_search(expander, [None], num_beams=20, top_k=10)
        (diverse,) = diverse_beam_search(expander, [None], num_beams=20, top_k=10, penalty=2.0)
        plain_codes.append(len(set(first_codes(trie, plain))))
        diverse_codes.append(len(set(first_codes(trie, diverse))))
        scores = expander.leaf_scores()
        np.testing.assert_allclose(diverse.scores, [scores[int(trie.leaf_of[row])] for row in diverse.items])
    assert (np.array(diverse_codes) >= plain_codes).all()
    assert np.mean(diverse_codes) > np.mean(plain_codes) + 2


def test_a_penalty_beyond_all_scores_takes_one_item_of_each_code_first():
    codes = np.array([[0, 0], [0, 1], [0, 2], [1, 0], [2, 0]])
    trie = SIDTrie.build(codes, (3, 3))
    expander = TableExpander(trie)
    expander.logits[0][1][:] = [9.0, 1.0, 0.0]  # the plain list is 0, 0, 0
    expander.logits[0][2][:] = [0.0, 0.2, 0.1, 0.0, 0.0]
    (plain,) = beam_search(expander, [None], num_beams=3, top_k=3)
    (found,) = diverse_beam_search(expander, [None], num_beams=3, top_k=3, penalty=100.0)
    assert plain.items.tolist() == [1, 2, 0]
    assert found.items.tolist() == [1, 3, 4]


def test_a_bonus_counts_in_the_choice():
    trie = random_trie(num_items=40, codebook_sizes=(4, 4, 4))
    expander = TableExpander(trie)
    options = {"num_beams": 8, "top_k": 8, "penalty": 1.0}
    (plain,) = diverse_beam_search(expander, [None], **options)
    (same,) = diverse_beam_search(expander, [None], bonus=ItemBonus.build(trie, np.zeros(40)), **options)
    np.testing.assert_array_equal(plain.items, same.items)
    values = np.random.default_rng(0).standard_normal(40)
    values[33] = 30.0
    (found,) = diverse_beam_search(expander, [None], bonus=ItemBonus.build(trie, values), **options)
    assert found.items[0] == 33
    assert len(set(found.items.tolist())) == 8
    np.testing.assert_allclose(found.ranked_by, found.scores + values[found.items])
    assert (np.diff(found.ranked_by) <= 0).all()
    assert (found.scores <= 0).all()


def test_it_searches_a_torch_model():
    world = search_world(seed=2)
    searcher = Searcher(world.model, world.trie(), world.token_ids)
    plain = searcher.beam(world.prompts, num_beams=8, top_k=8)

    def diverse(penalty):
        return searcher.search_each(
            world.prompts,
            [None],
            lambda expander, filters, _: diverse_beam_search(expander, filters, num_beams=8, top_k=8, penalty=penalty),
        )[0]

    for expected, same, found in zip(plain, diverse(0.0), diverse(5.0), strict=True):
        np.testing.assert_array_equal(expected.items, same.items)
        assert len(set(world.codes[found.items, 0])) > len(set(world.codes[expected.items, 0]))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"top_k": 0}, "top_k"),
        ({"top_k": 5}, "num_beams must be at least"),
        ({"penalty": -1.0}, "penalty"),
        ({"penalty": float("nan")}, "penalty"),
        ({"num_groups": 0}, "1 to num_beams=4 groups"),
        ({"num_groups": 5}, "1 to num_beams=4 groups"),
    ],
)
def test_unusable_settings_are_refused(options, says):
    with pytest.raises(InputError, match=says):
        diverse_beam_search(
            TableExpander(random_trie()), [None], **{"num_beams": 4, "top_k": 4, "penalty": 1.0, **options}
        )
