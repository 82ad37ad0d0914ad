"""The generator against scoring every item, shared SIDs, masks, and the check of what came out."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from llmrec.decode.searcher import Searcher
from llmrec.eval.config import EvalConfig
from llmrec.eval.evaluate import evaluate
from llmrec.eval.generate import Generator
from llmrec.eval.judged import Judged
from llmrec.eval.ranker import RankedUsers, quiet
from llmrec.metrics import MAX_CUTOFF, per_user_metrics, rank_of_target

WIDE: dict[str, Any] = {"num_beams": 80, "baselines": {}}


def rank(world: Any, **settings: Any) -> RankedUsers:
    config = EvalConfig(**{**WIDE, "exact_users": 0, **settings})
    return world.generator.rank(world.dataset, Judged.choose(world.dataset.split, "test", None), config, quiet)


@pytest.fixture(scope="module")
def ranked(world: Any) -> RankedUsers:
    return rank(world)


@pytest.mark.parametrize("mode", ["filtered", "unfiltered"])
def test_equals_scoring_every_item(world: Any, ranked: RankedUsers, mode: Any) -> None:
    split = world.dataset.split
    scores = np.stack([world.item_scores(user) for user in range(len(split.users))])
    histories = [split.history(user, "test") for user in range(len(split.users))]
    expected = rank_of_target(scores, split.targets("test"), histories if mode == "filtered" else None)
    found = per_user_metrics(ranked.rankings[mode].placement)
    assert any(values.any() for values in found.values())
    for name, values in per_user_metrics(expected).items():
        np.testing.assert_allclose(found[name], values, err_msg=name)


def test_exact_search_gives_the_same(world: Any, ranked: RankedUsers) -> None:
    exact = rank(world, search="exact")
    for mode, ranking in ranked.rankings.items():
        for ours, theirs in zip(exact.rankings[mode].lists, ranking.lists, strict=True):
            assert ours.tolist() == theirs.tolist()


@pytest.mark.parametrize("mode", ["filtered", "unfiltered"])
def test_items_that_share_a_sid_share_its_places(make_world: Callable[..., Any], mode: Any) -> None:
    world = make_world(shared=True)
    split = world.dataset.split
    placement = rank(world).rankings[mode].placement
    shared = 0
    for user, target in enumerate(split.targets("test")):
        scores = world.item_scores(user)
        if mode == "filtered":
            scores[split.history(user, "test")] = -np.inf
        if scores[target] == -np.inf:
            assert placement.first[user] == 0
            continue
        first = 1 + int((scores > scores[target] + 1e-5).sum())
        size = int((np.abs(scores - scores[target]) < 1e-5).sum())
        if first <= MAX_CUTOFF:
            assert (placement.first[user], placement.size[user]) == (first, size)
            shared += size > 1
    assert shared > 3


def test_history_is_out_of_filtered_lists_only(world: Any, ranked: RankedUsers) -> None:
    split = world.dataset.split
    seen = {"filtered": 0, "unfiltered": 0}
    for mode, ranking in ranked.rankings.items():
        for user, items in enumerate(ranking.lists):
            assert len(items) == 20  # the mask works in decoding: 20 candidates are left
            seen[mode] += int(np.isin(items, split.history(user, "test")).sum())
    assert seen["filtered"] == 0
    assert seen["unfiltered"] > 0
    assert (ranked.excluded, ranked.invalid, ranked.duplicates) == (0, 0, 0)
    assert ranked.checked == 2 * 20 * len(split.users)


def test_masked_and_missing_items(make_world: Callable[..., Any]) -> None:
    plain = make_world()
    split = plain.dataset.split
    targets = [split.items[item] for item in split.targets("test")]
    without, retired = targets[0], next(item for item in targets if item != targets[0])
    ranked = rank(make_world(without=(without,), retired=(retired,)))
    gone = {split.items.index(without), split.items.index(retired)}
    for ranking in ranked.rankings.values():
        for user, items in enumerate(ranking.lists):
            assert gone.isdisjoint(items.tolist())
            assert items.min() >= 0  # catalogue items outside the evaluation have no index
            if targets[user] in (without, retired):
                assert ranking.placement.first[user] == 0
    assert ranked.details["targets_without_sid"] == targets.count(without)
    assert ranked.details["targets_not_active"] == targets.count(retired)
    assert ranked.details["history_items_without_sid"] > 0


def test_tokens_that_name_another_item_are_invalid(world: Any) -> None:
    token_ids = [ids.copy() for ids in world.searcher.token_ids]
    token_ids[0][[0, 1]] = token_ids[0][[1, 0]]  # <a_0> would be generated where the trie means code 1
    wrong = Searcher(world.model, world.searcher.trie, token_ids)
    judged = Judged.choose(world.dataset.split, "test", 5)
    ranked = Generator(wrong, world.renderer).rank(world.dataset, judged, EvalConfig(**WIDE, exact_users=0), quiet)
    assert 0 < ranked.invalid < ranked.checked


def test_sid_level_hits(world: Any, ranked: RankedUsers) -> None:
    for mode, ranking in ranked.rankings.items():
        levels = ranked.details["sid_level"][mode]
        assert list(levels) == ["a", "ab", "abc"]
        for cutoff in ("1", "5", "10", "20"):
            hits = [levels[name][f"Hit@{cutoff}"] for name in levels]
            assert hits == sorted(hits, reverse=True)
            assert hits[-1] == per_user_metrics(ranking.placement)[f"Recall@{cutoff}"].mean()  # every SID is one item


def test_narrow_beam_is_measured_against_exact(world: Any) -> None:
    wide = evaluate(world.dataset, {"m": world.generator}, EvalConfig(**WIDE, exact_users=7)).summary
    assert wide["beam_recall_of_exact"] == {"users": 7, "mode": "filtered", "@1": 1.0, "@10": 1.0, "@20": 1.0}
    narrow = EvalConfig(num_beams=20, baselines={}, exact_users=40)
    recall = evaluate(world.dataset, {"m": world.generator}, narrow).summary["beam_recall_of_exact"]
    assert 0.3 < recall["@20"] < 1


def test_window_changes_the_prompt(world: Any) -> None:
    ranked = rank(world, window=2)
    assert ranked.details["window"] == 2
    assert ranked.details["users_with_shortened_history"] == len(world.dataset.split.users)
    expected = world.item_scores(0, window=2)
    assert ranked.rankings["unfiltered"].lists[0].tolist() == np.argsort(-expected, kind="stable")[:20].tolist()
