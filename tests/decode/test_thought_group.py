"""Thoughts that are drawn together are those that are drawn one by one, and so is what is found behind them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from llmrec.decode.searcher import Searcher
from llmrec.decode.thought import Thought, ThoughtSettings, think_then_recommend
from llmrec.decode.thought_group import GroupSettings, draw_thoughts
from llmrec.errors import InputError
from llmrec.testing.search_conformance import SearchWorld, search_world
from llmrec.testing.worlds import tiny_tokenizer

BANNED = tuple(int(token_id) for token_id in tiny_tokenizer().all_special_ids)
SEEDS = [[11, 12, 13], [21, 22, 23], [31, 32, 33]]
PLAIN: dict[str, Any] = {"max_thought_tokens": 7, "temperature": 1.3, "num_beams": 5}


def world_of(family: Any = "llama") -> SearchWorld:
    """A world whose model often writes SID tokens."""
    world = search_world(family, tied=False)
    with torch.no_grad():
        head = world.model.get_output_embeddings().weight
        head.mul_(0.5)
        head[torch.from_numpy(world.token_ids[0])] *= 8
    return world


def alone(searcher: Searcher, prompt: Any, seed: int, settings: GroupSettings, allowed: Any) -> Thought:
    single = ThoughtSettings(
        settings.max_thought_tokens,
        temperature=settings.temperature,
        seed=seed,
        num_beams=settings.num_beams,
        top_k=settings.num_beams,
    )
    return think_then_recommend(
        searcher,
        prompt,
        closing_ids=settings.closing_ids,
        stop_ids=(),
        settings=single,
        allowed=allowed,
        opening_ids=settings.opening_ids,
    )


@pytest.mark.parametrize("family", ["llama", "mistral"])  # Mistral's window cuts prompts and thoughts
def test_a_group_is_what_single_thoughts_are(family: Any) -> None:
    world = world_of(family)
    searcher = Searcher(world.model, world.trie(), world.token_ids, normalise="level", batch_size=2)
    filters = [searcher.trie.exclusion(np.arange(6)), None, None]
    settings = GroupSettings((303, 304), (301, 302), (), **PLAIN)
    # of what is drawn, something is made the end of a thought: by one that meets it early, and others that do not
    first = draw_thoughts(searcher, world.prompts[:3], settings, seeds=SEEDS, filters=filters)
    closing = tuple(first[1][0].ids[[4, 5]].tolist())
    settings = GroupSettings((303, 304), closing, (), **PLAIN)
    found = draw_thoughts(searcher, world.prompts[:3], settings, seeds=SEEDS, filters=filters)
    ends = set()
    for prompt, seeds, allowed, group in zip(world.prompts, SEEDS, filters, found, strict=False):
        for seed, thought in zip(seeds, group, strict=True):
            expected = alone(searcher, prompt, seed, settings, allowed)
            assert tuple(thought.ids) == expected.ids
            assert ("closed" if thought.closed else "length") == expected.end
            assert thought.result.items.tolist() == expected.result.items.tolist()
            np.testing.assert_allclose(thought.result.scores, expected.result.scores, atol=1e-4)
            ends.add(expected.end)
            assert not thought.drawn[:2].any()
            given = 0 if thought.closed else len(thought.ids) - 2 - 7
            assert thought.drawn[2:].tolist() == [True] * (len(thought.ids) - 2 - given) + [False] * given
    assert ends == {"closed", "length"}
    known = {int(token_id) for ids in world.token_ids for token_id in ids}
    assert any(set(thought.ids.tolist()) & known for group in found for thought in group)


def test_control_tokens_are_not_drawn_and_other_prompts_change_nothing() -> None:
    world = world_of()
    searcher = Searcher(world.model, world.trie(), world.token_ids, normalise="legal")
    tokens = draw_thoughts(
        searcher, world.prompts[:1], GroupSettings((), (301,), (), **PLAIN), seeds=[[1]], filters=[None]
    )[0][0].ids
    banned = (*BANNED, int(tokens[0]), 301)
    settings = GroupSettings((), (301,), banned, **PLAIN)
    together = draw_thoughts(searcher, world.prompts[:3], settings, seeds=SEEDS, filters=[None] * 3)
    assert not {int(token_id) for group in together for each in group for token_id in each.ids} & set(banned[:-1])
    for prompt, seeds, group in zip(world.prompts, SEEDS, together, strict=False):
        [by_itself] = draw_thoughts(searcher, [prompt], settings, seeds=[seeds], filters=[None])
        assert [each.ids.tolist() for each in by_itself] == [each.ids.tolist() for each in group]


def test_unusable_settings_are_refused() -> None:
    for wrong in ({"max_thought_tokens": 0}, {"temperature": 0.0}, {"num_beams": 0}):
        with pytest.raises(InputError, match="at least 1 token"):
            GroupSettings((), (), (), **{**PLAIN, **wrong})
