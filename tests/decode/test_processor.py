"""`generate` with the trie as its constraint."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from llmrec.decode.processor import SIDLogitsProcessor
from llmrec.errors import InputError
from llmrec.testing.search_conformance import search_world


def generate(world, processor, prompts, num_beams):
    return world.model.generate(
        input_ids=torch.tensor(prompts), attention_mask=torch.ones(len(prompts), len(prompts[0]), dtype=torch.int64),
        logits_processor=[processor], max_new_tokens=len(world.codebook_sizes), do_sample=False, num_beams=num_beams,
        num_return_sequences=num_beams, output_scores=True, return_dict_in_generate=True, length_penalty=0.0,
    )  # fmt: skip


def test_generate_returns_legal_items_and_our_scores():
    world = search_world(prompt_lengths=(9, 9))
    excluded = [np.arange(0, 40, 2), None]
    processor = SIDLogitsProcessor(world.trie(), world.token_ids, 9, num_prompts=2, excluded=excluded)
    output = generate(world, processor, world.prompts, num_beams=5)
    sids = np.stack([ids[codes] for ids, codes in zip(world.token_ids, world.codes.T, strict=True)], axis=1)
    for prompt in range(2):
        rows = np.arange(40) if excluded[prompt] is None else np.setdiff1d(np.arange(40), excluded[prompt])
        legal = {tuple(sid) for sid in sids[rows].tolist()}
        found = [tuple(ids) for ids in output.sequences[prompt * 5 : prompt * 5 + 5, 9:].tolist()]
        assert set(found) <= legal
        assert len(set(found)) == 5
        out = [] if excluded[prompt] is None else excluded[prompt].tolist()
        expected = world.oracle().beam(world.prompts[prompt], num_beams=5, top_k=40, excluded=out)
        best = [float(score) for score in output.sequences_scores[prompt * 5 : prompt * 5 + 5]]
        ours = [expected.scores[np.flatnonzero(expected.bucket_of == i)[0]] for i in range(5)]
        np.testing.assert_allclose(best, ours, atol=1e-4)


def test_starved_beams_have_no_score():
    world = search_world(codebook_sizes=(4, 4), num_items=7, prompt_lengths=(5,))
    alive = np.array([True, True, False, False, False, False, False])
    processor = SIDLogitsProcessor(world.trie(alive), world.token_ids, 5)
    output = generate(world, processor, world.prompts, num_beams=4)
    living = {tuple(ids[code] for ids, code in zip(world.token_ids, world.codes[row], strict=True)) for row in (0, 1)}
    scored = torch.isfinite(output.sequences_scores) & (output.sequences_scores > -1e8)
    assert {tuple(ids) for ids in output.sequences[scored][:, 5:].tolist()} == living


def test_too_many_tokens_and_wrong_counts_are_refused():
    world = search_world()
    processor = SIDLogitsProcessor(world.trie(), world.token_ids, 2)
    with pytest.raises(InputError, match="this would be number 4"):
        processor(torch.zeros(1, 5, dtype=torch.int64), torch.zeros(1, 500))
    with pytest.raises(InputError, match="2 prompts, but exclusions for 1"):
        SIDLogitsProcessor(world.trie(), world.token_ids, 2, num_prompts=2, excluded=[None])
