"""Prompts read from the cache give what prompts read anew give, and the cache holds what it may hold."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec.decode.prefix_cache import PrefixCache
from llmrec.decode.searcher import Searcher
from llmrec.decode.session import PrefixSession
from llmrec.decode.torch_backend import TorchBackend
from llmrec.errors import InputError
from llmrec.testing.search_conformance import assert_same_ranking, search_world

FAMILIES = ["llama", "qwen3", "mistral", "gemma2"]


def watched_tokens(model):
    """Tokens per row of each forward."""
    widths = []
    model.get_decoder().register_forward_pre_hook(
        lambda module, args, kwargs: widths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    return widths


@pytest.mark.parametrize("family", FAMILIES)
def test_a_growing_history_is_read_from_where_it_grew(family):
    # Mistral and Gemma 2 have a window of 16 here, shorter than the prompts.
    world = search_world(family)
    cache = PrefixCache(block_size=4)
    rng = np.random.default_rng(0)
    history = rng.integers(3, 200, 40).tolist()
    widths = watched_tokens(world.model)
    previous = 0
    for length in (22, 24, 30, 40):
        widths.clear()
        cached = PrefixSession(world.model, [history[:length]], prefix_cache=cache)
        assert widths == [length - min(previous, length - 1) // 4 * 4]
        plain = PrefixSession(world.model, [history[:length]])
        torch.testing.assert_close(cached.prompt_states, plain.prompt_states, atol=1e-4, rtol=1e-4)
        parents, tokens = np.array([[-1, 0, -1]]), np.array([[5, 6, 7]])
        torch.testing.assert_close(cached.extend(parents, tokens), plain.extend(parents, tokens), atol=1e-4, rtol=1e-4)
        previous = length


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_any_batch_of_warm_and_cold_prompts_is_searched_like_a_fresh_one(data):
    world = search_world()
    block = data.draw(st.sampled_from([1, 3, 8]), label="block_size")
    backend = TorchBackend(world.model, prefix_cache=PrefixCache(block_size=block))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1), label="seed"))
    base = rng.integers(3, 200, 30).tolist()
    warm = Searcher(backend, world.trie(), world.token_ids, batch_size=3)
    cold = Searcher(world.model, world.trie(), world.token_ids)
    for _ in range(2):
        prompts = []
        for _ in range(data.draw(st.integers(1, 4), label="prompts")):
            kept = int(rng.integers(0, 30))
            prompts.append([*base[:kept], *rng.integers(3, 200, int(rng.integers(1, 12))).tolist()])
        for ours, theirs in zip(
            warm.beam(prompts, num_beams=5, top_k=5), cold.beam(prompts, num_beams=5, top_k=5), strict=True
        ):
            assert_same_ranking(ours, theirs)


def test_the_same_prompt_again_reads_its_last_token_only():
    world = search_world()
    cache = PrefixCache(block_size=1)
    PrefixSession(world.model, [world.prompts[2]], prefix_cache=cache)
    widths = watched_tokens(world.model)
    PrefixSession(world.model, [world.prompts[2]], prefix_cache=cache)
    assert widths == [1]
    assert (cache.stats.hits, cache.stats.misses) == (23, 24 + 1)


def test_another_token_earlier_on_is_another_prefix():
    cache = PrefixCache(block_size=2)
    for _, key in cache.missing([1, 2, 3, 4]):
        cache.put(key, torch.zeros(1, 2, 1, 2, 4))
    assert cache.known_tokens([1, 2, 3, 4, 9]) == 4
    assert cache.known_tokens([1, 2, 3, 4]) == 2  # the last token is read in any case
    assert cache.known_tokens([7, 2, 3, 4, 9]) == 0
    assert cache.known_tokens([1, 2, 3, 5, 9]) == 2


def test_the_least_recently_used_blocks_give_way():
    block = torch.zeros(1, 2, 1, 4, 4)
    size = block.numel() * 4
    cache = PrefixCache(max_bytes=2 * size, block_size=4)
    prompts = [[number] * 5 for number in range(3)]
    for prompt in prompts[:2]:
        cache.put(cache.missing(prompt)[0][1], block)
    assert len(cache.find(prompts[0])) == 1  # used again: the other one is older now
    cache.put(cache.missing(prompts[2])[0][1], block)
    assert [len(cache.find(prompt)) for prompt in prompts] == [1, 0, 1]
    assert cache.num_bytes == 2 * size
    cache.put(b"too large", torch.zeros(1, 2, 1, 40, 40))
    assert len(cache) == 2
    cache.clear()
    assert (len(cache), cache.num_bytes) == (0, 0)


def test_sizes_must_be_positive():
    with pytest.raises(InputError, match="at least 1"):
        PrefixCache(block_size=0)
