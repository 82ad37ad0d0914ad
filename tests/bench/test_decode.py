"""The ``decode`` benchmark: both sides do the same work, and what is counted is what is meant."""

from __future__ import annotations

import numpy as np
import pytest

from llmrec.bench import decode
from llmrec.bench.decode import Peer, World
from llmrec.testing.search_conformance import search_world


@pytest.fixture
def tiny(monkeypatch):
    """A tiny model and catalogue in place of SmolLM2."""
    small = search_world(codebook_sizes=(16, 16, 8, 4), num_items=300, prompt_lengths=(24, 24))
    monkeypatch.setattr(decode, "PROMPT_TOKENS", 24)
    made = World(small.model, small.codes, small.token_ids, [list(prompt) for prompt in small.prompts])
    monkeypatch.setattr(World, "trie", property(lambda self: small.trie()))
    monkeypatch.setattr(decode, "world", lambda: made)
    for name in ("_searcher", "_allowed"):
        getattr(decode, name).cache_clear()
    yield made
    for name in ("_searcher", "_allowed"):
        getattr(decode, name).cache_clear()


def test_both_sides_find_the_same_items(tiny):
    assert decode.overlap_with_hugging_face(10) == 1.0
    assert decode.torch_rate(5) > 0
    assert decode.hugging_face_rate(5) > 0


def test_what_is_outside_of_the_forwards_is_part_of_the_whole(tiny):
    assert 0 < decode.outside_seconds(10) < 1.5 * max(decode.torch_seconds(10) for _ in range(3))


def test_the_peer_repeats_the_prompt_per_beam_and_we_do_not(tiny):
    assert decode.peak_megabytes(True) < decode.peak_megabytes(False)


def test_other_engines_compare_with_what_was_measured():
    numbers = iter([100.0, 1.0, 3.0, 2.0])
    peer = Peer(lambda: next(numbers))
    for _ in range(4):
        peer.measure()
    assert peer.recorded() == np.median([1.0, 3.0, 2.0])  # without the first one, which warms up
    assert Peer(lambda: 7.0).recorded() == 7.0


def test_missing_parts_are_said(monkeypatch):
    monkeypatch.setattr(decode, "cached", lambda asset: None)
    assert all("llmrec assets fetch" in case.skip for case in decode.cases(False))
    monkeypatch.setattr(decode, "cached", lambda asset: asset)
    quick = {case.name: case.skip for case in decode.cases(True)}
    assert not quick["10 beams"]
    assert "--quick" in quick["50 beams"]
