"""Texts that share their forwards say what each of them says alone, whatever the model's attention."""

import numpy as np
import pytest
import torch

from llmrec.decode import joint_read
from llmrec.decode.joint_read import extend_chains, read_together
from llmrec.decode.searcher import Searcher
from llmrec.decode.text import NamedItem, TextSettings, TextStream
from llmrec.decode.text_chain import TextChain
from llmrec.testing.search_conformance import search_world
from llmrec.testing.worlds import tiny_tokenizer

STOPS = tuple(tiny_tokenizer().all_special_ids)
FAMILIES = ["llama", "qwen3", "mistral", "gemma2"]


def searcher_of(family):
    world = search_world(family, tied=False, codebook_sizes=(8, 6, 4), seed=1)
    with torch.no_grad():
        head = world.model.get_output_embeddings().weight
        head[torch.from_numpy(world.token_ids[0])] *= 1.9
        head[list(STOPS)] *= 0.1
    return Searcher(world.model, world.trie(), world.token_ids, normalise="vocab")


def prompts(count, rng):
    return [rng.integers(10, 300, int(rng.integers(3, 30))) for _ in range(count)]


def streams_of(searcher, given):
    settings = [TextSettings(max_new_tokens=18 + 9 * seed, temperature=0.8, seed=seed) for seed in range(len(given))]
    return [
        TextStream(searcher, prompt, stop_ids=STOPS, settings=one) for prompt, one in zip(given, settings, strict=True)
    ]


def step_all(streams, events):
    for place, stream in enumerate(streams):
        if not stream.finished:
            events[place] += stream.step()


@pytest.mark.parametrize("family", FAMILIES)
def test_texts_that_begin_and_end_at_different_times_are_the_same_together(family, monkeypatch):
    searcher = searcher_of(family)
    given = prompts(4, np.random.default_rng(0))
    alone = [[] for _ in given]
    for place, stream in enumerate(streams_of(searcher, given)):
        while not stream.finished:
            alone[place] += stream.step()
    assert sum(isinstance(event, NamedItem) for events in alone for event in events) >= 4

    sizes = []
    monkeypatch.setattr(
        joint_read, "extend_chains", lambda chains: (sizes.append(len(chains)), extend_chains(chains))[1]
    )
    streams, together, rounds = streams_of(searcher, given), [[] for _ in given], 0
    while not all(stream.finished for stream in streams):
        begun = streams[: 1 + rounds // 3]  # one more every third round
        read_together([stream for stream in begun if not stream.finished])
        step_all(begun, together)
        rounds += 1
    assert max(sizes) >= 3
    assert [[getattr(e, "ids", e) for e in events] for events in together] == [
        [getattr(e, "ids", e) for e in events] for events in alone
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_states_equal_those_of_single_forwards(family):
    searcher = searcher_of(family)
    rng = np.random.default_rng(3)
    pairs = [[TextChain(searcher, prompt, max_new_tokens=40) for _ in range(2)] for prompt in prompts(3, rng)]
    for width in (1, 3, 1, 2):
        for place, pair in enumerate(pairs):
            ids = rng.integers(10, 300, width + place).tolist()  # of different lengths
            for chain in pair:
                chain.write(ids)
        states = extend_chains([joint for joint, _ in pairs])
        for (joint, single), state in zip(pairs, states, strict=True):
            joint.accept(state)
            torch.testing.assert_close(state, single.read(), atol=2e-5, rtol=2e-5)
            assert joint.session.num_slots == single.session.num_slots


def test_a_forward_that_fails_leaves_every_text_as_it_was(monkeypatch):
    searcher = searcher_of("llama")
    chains = [TextChain(searcher, prompt, max_new_tokens=40) for prompt in prompts(2, np.random.default_rng(5))]
    single = [TextChain(searcher, prompt, max_new_tokens=40) for prompt in prompts(2, np.random.default_rng(5))]
    for chain in (*chains, *single):
        chain.write([20, 30])
    last = searcher.backend.model.get_decoder().layers[-1]

    def fail(*args, **kwargs):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(last.mlp, "forward", fail)
        with pytest.raises(MemoryError):
            extend_chains(chains)
    for chain, other in zip(chains, single, strict=True):
        torch.testing.assert_close(chain.read(), other.read(), atol=2e-5, rtol=2e-5)
