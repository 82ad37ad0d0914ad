"""Ten thousand random requests: what comes back exists, lives, is allowed, is distinct, and is as many as there are."""

from __future__ import annotations

from functools import cache

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec.decode.item_bonus import ItemBonus
from llmrec.decode.searcher import Searcher
from llmrec.decode.torch_backend import TorchBackend
from llmrec.decode.trie import SIDTrie
from llmrec.testing.search_conformance import search_world

REQUESTS = 200


@cache
def world():
    return search_world(codebook_sizes=(6,) * 5, prompt_lengths=(4,))


@cache
def backend():
    return TorchBackend(world().model)


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_nothing_invalid_in_ten_thousand_requests(data):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1), label="seed"))
    levels = data.draw(st.integers(1, 5), label="levels")
    width = data.draw(st.sampled_from([1, 2, 6]), label="codes used")
    codes = rng.integers(0, width, (data.draw(st.integers(1, 120), label="items"), levels))
    alive = rng.random(len(codes)) < data.draw(st.sampled_from([0.2, 0.8, 1.0]), label="living")
    top_k = data.draw(st.integers(1, 15), label="top_k")
    kind = data.draw(st.sampled_from(["beam", "diverse", "sample", "bonus"]), label="search")
    normalise = data.draw(st.sampled_from(["vocab", "level", "legal"]), label="normalise")
    trie = SIDTrie.build(codes, (6,) * levels, alive)
    searcher = Searcher(backend(), trie, world().token_ids[:levels], normalise=normalise, batch_size=REQUESTS)

    filters, left = [], []
    for _ in range(REQUESTS):
        allowed = rng.random(len(codes)) < rng.choice([0.0, 0.1, 0.5, 1.0])
        out = rng.integers(0, len(codes), rng.integers(0, len(codes) + 1))
        within = trie.allowance(allowed) if rng.random() < 0.5 else None
        filters.append(trie.exclusion(out, within=within))
        may = alive.copy() if within is None else alive & allowed
        may[out] = False
        left.append(may)
    prompts = [rng.integers(3, 200, rng.integers(1, 9)).tolist() for _ in range(REQUESTS)]
    if kind == "sample":
        results = searcher.sample(prompts, top_k=top_k, seed=1, excluded=filters)
    elif kind == "diverse":
        results = searcher.diverse(prompts, num_beams=top_k, top_k=top_k, penalty=1.0, excluded=filters)
    else:
        bonus = ItemBonus.build(trie, rng.normal(size=len(codes))) if kind == "bonus" else None
        results = searcher.beam(prompts, num_beams=top_k, top_k=top_k, excluded=filters, bonus=bonus)

    invalid = 0
    for result, may in zip(results, left, strict=True):
        invalid += int((~may[result.items]).sum())
        assert len(set(result.items.tolist())) == len(result.items) == min(top_k, may.sum())
        assert np.isfinite(result.scores).all()
        assert (result.scores < 1e-9).all()
    assert invalid == 0
