"""Beam equals the reference beam, exact equals brute force, on trees of every shape and on several families."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec.decode.beam import beam_search
from llmrec.decode.exact import exact_search
from llmrec.decode.score_items import score_items
from llmrec.decode.scores import ChildScorer, LMHead
from llmrec.decode.searcher import Searcher
from llmrec.decode.session import PrefixSession
from llmrec.decode.torch_backend import TorchExpander
from llmrec.decode.trie import SIDTrie
from llmrec.errors import InputError
from llmrec.testing.search_conformance import SearchConformance, SearchWorld, assert_same_ranking, search_world

FAMILIES = [("llama", True), ("qwen3", True), ("qwen3", False), ("mistral", True), ("gemma2", True)]
NORMALISATIONS = ["vocab", "level", "legal"]


class TestTorchBeam(SearchConformance):
    def search(self, world, prompts, *, num_beams, top_k, excluded=None, alive=None):
        searcher = Searcher(world.model, world.trie(alive), world.token_ids, normalise=self.normalise, batch_size=2)
        return searcher.beam(prompts, num_beams=num_beams, top_k=top_k, excluded=excluded)


class TestTorchBeamLevel(TestTorchBeam):
    normalise = "level"


class TestTorchBeamLegal(TestTorchBeam):
    normalise = "legal"


@pytest.mark.parametrize("normalise", NORMALISATIONS)
@pytest.mark.parametrize(("family", "tied"), FAMILIES)
def test_exact_equals_brute_force(family, tied, normalise):
    world = search_world(family, tied=tied)
    alive = np.arange(40) % 5 != 1
    excluded = [None, np.array([0, 2, 3, 37]), np.arange(20)]
    searcher = Searcher(world.model, world.trie(alive), world.token_ids, normalise=normalise)
    oracle = world.oracle(normalise, alive)
    found = searcher.exact(world.prompts, top_k=7, excluded=excluded)
    for prompt, rows, result in zip(world.prompts, excluded, found, strict=True):
        expected = oracle.brute_force(prompt, top_k=7, excluded=None if rows is None else rows.tolist())
        assert_same_ranking(result, expected)


@pytest.mark.parametrize("normalise", NORMALISATIONS)
@pytest.mark.parametrize(("family", "tied"), FAMILIES)
def test_beam_equals_the_reference_beam(family, tied, normalise):
    world = search_world(family, tied=tied, seed=5)
    searcher = Searcher(world.model, world.trie(), world.token_ids, normalise=normalise)
    for prompt, result in zip(world.prompts, searcher.beam(world.prompts, num_beams=4, top_k=4), strict=True):
        assert_same_ranking(result, world.oracle(normalise).beam(prompt, num_beams=4, top_k=4))
        assert result.num_forwards == 2


@cache
def shared_world() -> SearchWorld:
    """One model with six levels of tokens; the property tests hang random trees on its token ids."""
    return search_world(codebook_sizes=(4,) * 6, prompt_lengths=(5, 9))


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_random_trees(data):
    base = shared_world()
    levels = data.draw(st.integers(1, 6), label="levels")
    width = data.draw(st.sampled_from([1, 2, 4]), label="codes used")
    count = data.draw(st.integers(1, 25), label="items")
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1), label="seed"))
    codes = rng.integers(0, width, (count, levels))
    alive = rng.random(count) < data.draw(st.sampled_from([0.5, 1.0]), label="living")
    excluded = [rng.integers(0, count, count // 3), None]
    top_k = data.draw(st.integers(1, 12), label="top_k")
    normalise = data.draw(st.sampled_from(NORMALISATIONS), label="normalise")
    world = SearchWorld(base.model, codes, (4,) * levels, base.token_ids[:levels], base.prompts)
    searcher = Searcher(world.model, world.trie(alive), world.token_ids, normalise=normalise)
    oracle = world.oracle(normalise, alive)
    beam = searcher.beam(world.prompts, num_beams=top_k, top_k=top_k, excluded=excluded)
    exact = searcher.exact(world.prompts, top_k=top_k, excluded=excluded)
    for row, prompt in enumerate(world.prompts):
        out = None if excluded[row] is None else excluded[row].tolist()
        living = alive.copy()
        living[out or []] = False
        assert_same_ranking(exact[row], oracle.brute_force(prompt, top_k=top_k, excluded=out))
        assert_same_ranking(beam[row], oracle.beam(prompt, num_beams=top_k, top_k=top_k, excluded=out))
        assert len(beam[row].items) == min(top_k, living.sum())
        # A lone child needs no forward where its probability is 1.
        needed = 0 if normalise == "legal" else levels - 1 if any(len(each.items) for each in beam) else 0
        assert needed <= beam[row].num_forwards <= levels - 1


def test_two_exclusions_from_one_prefill():
    world = search_world()
    searcher = Searcher(world.model, world.trie(), world.token_ids, batch_size=2)
    histories = [np.array([0, 1, 2]), np.array([5]), np.arange(30)]
    prefills = []

    def count(module, args, kwargs):
        if kwargs["past_key_values"].get_seq_length() == 0:
            prefills.append(1)

    handle = world.model.get_decoder().register_forward_pre_hook(count, with_kwargs=True)
    filtered, unfiltered = searcher.beam_each(world.prompts, [histories, None], num_beams=8, top_k=8)
    handle.remove()
    assert len(prefills) == 2  # three prompts in batches of two
    for results, excluded in ((filtered, histories), (unfiltered, None)):
        alone = searcher.beam(world.prompts, num_beams=8, top_k=8, excluded=excluded)
        for result, expected in zip(results, alone, strict=True):
            assert_same_ranking(result, expected, tolerance=1e-5)


def test_buckets_are_complete_and_in_row_order():
    world = search_world(codebook_sizes=(2, 2), num_items=20)
    (result,) = Searcher(world.model, world.trie(), world.token_ids).beam(
        world.prompts[:1], num_beams=4, top_k=4, excluded=[np.array([0])]
    )
    assert len(result.items) == 4
    sid = world.codes[result.buckets[0][0]]
    shared = np.flatnonzero((world.codes == sid).all(axis=1))
    assert result.buckets[0].tolist() == shared[shared != 0].tolist()
    assert result.items.tolist() == np.concatenate(result.buckets)[:4].tolist()
    assert result.bucket_of.tolist() == [i for i, bucket in enumerate(result.buckets) for _ in bucket][:4]


def test_equal_scores_go_to_the_lower_code_path():
    world = search_world(codebook_sizes=(5, 3), num_items=15)
    with torch.no_grad():
        world.model.get_output_embeddings().weight.zero_()
    searcher = Searcher(world.model, world.trie(), world.token_ids)
    expected = np.lexsort((np.arange(15), *world.codes.T[::-1]))[:6]
    for result in (
        searcher.beam(world.prompts[:1], num_beams=15, top_k=6)[0],
        searcher.exact(world.prompts[:1], top_k=6)[0],
    ):
        assert result.items.tolist() == expected.tolist()


@pytest.mark.parametrize("normalise", NORMALISATIONS)
def test_score_is_the_log_probability_of_any_item(normalise):
    world = search_world()
    searcher = Searcher(world.model, world.trie(), world.token_ids, normalise=normalise)
    rows = [np.array([3, 3, 39, 0]), np.zeros(0, dtype=np.int64), np.arange(40)]
    found = searcher.score(world.prompts, rows)
    assert [len(scores) for scores in found] == [4, 0, 40]
    for prompt, wanted, scores in zip(world.prompts, rows, found, strict=True):
        ranked = world.oracle(normalise).brute_force(prompt, top_k=40)
        expected = dict(zip(ranked.items.tolist(), ranked.scores.tolist(), strict=True))
        np.testing.assert_allclose(scores, [expected[row] for row in wanted.tolist()], atol=1e-4)


def test_dead_items_are_scored_except_among_the_legal():
    world = search_world(codebook_sizes=(30, 30), num_items=10)
    alive = np.arange(10) > 5
    rows = [np.array([4, 9])]
    vocab = Searcher(world.model, world.trie(alive), world.token_ids).score(world.prompts[:1], rows)[0]
    legal = Searcher(world.model, world.trie(alive), world.token_ids, normalise="legal").score(world.prompts[:1], rows)[
        0
    ]
    assert np.isfinite(vocab).all()
    assert legal[0] == -np.inf
    assert np.isfinite(legal[1])


def expander(world, *, max_slots=1024, normalise="vocab"):
    session = PrefixSession(world.model, world.prompts)
    scorer = ChildScorer(LMHead(world.model), world.codebook_sizes, world.token_ids, normalise)
    return session, TorchExpander(session, world.trie(), scorer, max_slots=max_slots)


@pytest.mark.parametrize("normalise", NORMALISATIONS)
def test_a_small_cache_changes_no_result(normalise):
    world = search_world(codebook_sizes=(6, 6, 6, 3), num_items=60)
    results, scores, widest = [], [], []
    for max_slots in (1024, 24):
        session, tree = expander(world, max_slots=max_slots, normalise=normalise)
        extend, seen = session.extend, []

        def watched(parents, tokens, extend=extend, seen=seen, session=session):
            states = extend(parents, tokens)
            seen.append(session.num_slots)
            return states

        session.extend = watched
        results.append(exact_search(tree, [None] * 3, top_k=20, num_expanded=4))
        widest.append(max(seen))
        scores.append(score_items(tree, [np.arange(60)] * 3))
    assert widest[0] > 24 >= widest[1]
    for large, small, whole, parts in zip(*results, *scores, strict=True):
        assert_same_ranking(small, large)
        np.testing.assert_allclose(parts, whole, atol=1e-4)


def test_exact_stops_early_on_a_sure_model():
    world = search_world(codebook_sizes=(16, 16, 4), num_items=400, prompt_lengths=(9,))
    with torch.no_grad():
        world.model.get_output_embeddings().weight.mul_(10)
    session, tree = expander(world)
    (found,) = exact_search(tree, [None], top_k=3, num_expanded=2)
    assert session.num_forwards * 2 < tree.trie.num_nodes(1) + tree.trie.num_nodes(2)
    assert_same_ranking(found, world.oracle().brute_force(world.prompts[0], top_k=3))


def test_lone_children_cost_no_forward():
    # Three branches at the first level, then single children down to the items: their probability is 1 among the legal.
    codes = np.array([[0, 1, 2, 1], [3, 0, 0, 2], [5, 4, 1, 0]])
    base = search_world(codebook_sizes=(8, 6, 4, 3))
    world = SearchWorld(base.model, codes, base.codebook_sizes, base.token_ids, base.prompts)
    session, tree = expander(world, normalise="legal")
    results = beam_search(tree, [None] * 3, num_beams=3, top_k=3)
    assert session.num_forwards == 0
    for prompt, result in zip(world.prompts, results, strict=True):
        assert_same_ranking(result, world.oracle("legal").brute_force(prompt, top_k=3))


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_searching_from_a_column_equals_a_longer_prompt(family):
    world = search_world(family)
    words = np.random.default_rng(1).integers(3, 200, (3, 4))
    session, _ = expander(world)
    states = session.extend(np.array([[-1, 0, 1, 2]] * 3), words)
    scorer = ChildScorer(LMHead(world.model), world.codebook_sizes, world.token_ids, "vocab")
    tree = TorchExpander(session, world.trie(), scorer, root=np.full(3, 3), root_states=states[:, -1], max_slots=12)
    for _ in range(2):  # the second search finds what the first one has left behind
        for row, result in enumerate(beam_search(tree, [None] * 3, num_beams=6, top_k=6)):
            longer = [*world.prompts[row], *words[row].tolist()]
            assert_same_ranking(result, world.oracle().beam(longer, num_beams=6, top_k=6))
    session.truncate(4)
    assert session.num_slots == 4
    with pytest.raises(InputError, match="belong together"):
        TorchExpander(session, world.trie(), scorer, root=np.full(3, 3))


def test_the_model_is_left_in_training_mode():
    world = search_world()
    world.model.train()
    searcher = Searcher(world.model, world.trie(), world.token_ids)
    searcher.beam(world.prompts, num_beams=2, top_k=2)
    assert world.model.training
    with pytest.raises(InputError):
        searcher.beam(world.prompts, num_beams=2, top_k=3)
    assert world.model.training


def test_no_prompts_no_results():
    world = search_world()
    searcher = Searcher(world.model, world.trie(), world.token_ids)
    assert searcher.beam([], num_beams=2, top_k=2) == []
    assert searcher.score([], []) == []


def test_wrong_requests_are_refused():
    world = search_world()
    searcher = Searcher(world.model, SIDTrie.build(world.codes, world.codebook_sizes), world.token_ids)
    with pytest.raises(InputError, match="num_beams must be at least top_k"):
        searcher.beam(world.prompts, num_beams=5, top_k=6)
    with pytest.raises(InputError, match="3 prompts, but exclusions for 1"):
        searcher.beam(world.prompts, num_beams=5, top_k=5, excluded=[None])
    with pytest.raises(InputError, match="must be at least 1"):
        searcher.exact(world.prompts, top_k=0)
    with pytest.raises(InputError, match="items to score for 1"):
        searcher.score(world.prompts, [np.array([1])])
    with pytest.raises(InputError, match=r"0\.\.39"):
        searcher.score(world.prompts[:1], [np.array([40])])
