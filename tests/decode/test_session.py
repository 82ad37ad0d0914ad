"""One cache for many continuations: every appended column equals a plain forward over its own sequence."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from llmrec.decode.session import PrefixSession
from llmrec.errors import InputError
from llmrec.testing.search_conformance import search_world

FAMILIES = [("llama", True), ("qwen3", True), ("qwen3", False), ("mistral", True), ("gemma2", True)]


def plain_state(model, ids):
    with torch.no_grad():
        return model.get_decoder()(input_ids=torch.tensor([ids]), use_cache=False).last_hidden_state[0, -1]


def close(found, expected):
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(("family", "tied"), FAMILIES)
def test_columns_equal_plain_sequences(family, tied, attention):
    # Mistral and Gemma 2 have a window of 16 here: the prompt of 24 is cut by it, the one of 14 only by what follows.
    world = search_world(family, tied=tied, prompt_lengths=(3, 14, 24))
    world.model.set_attn_implementation(attention)
    session = PrefixSession(world.model, world.prompts)
    for row, prompt in enumerate(world.prompts):
        close(session.prompt_states[row], plain_state(world.model, list(prompt)))
    # Two roots; then children of both, of a child in the same call, and of the prompt again; then a deeper one.
    calls = [[-1, -1], [0, 1, 0, 2, -1], [5, 6]]
    rng = np.random.default_rng(0)
    paths = [[] for _ in world.prompts]
    for call in calls:
        tokens = rng.integers(3, 300, (len(world.prompts), len(call)))
        states = session.extend(np.tile(call, (len(world.prompts), 1)), tokens)
        for row, prompt in enumerate(world.prompts):
            for column, parent in enumerate(call):
                before = list(prompt) if parent < 0 else paths[row][parent]
                paths[row].append([*before, int(tokens[row, column])])
                close(states[row, column], plain_state(world.model, paths[row][-1]))
    assert session.num_slots == 9
    assert session.num_forwards == 3


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_truncate_equals_a_fresh_session(family):
    world = search_world(family)
    used, fresh = PrefixSession(world.model, world.prompts), PrefixSession(world.model, world.prompts)
    parents, tokens = np.array([[-1, 0, 1]] * 3), np.array([[5, 6, 7]] * 3)
    used.extend(parents, tokens + 50)
    used.truncate(0)
    assert used.num_slots == 0
    torch.testing.assert_close(used.extend(parents, tokens), fresh.extend(parents, tokens), atol=0, rtol=0)
    used.truncate(0)
    used.truncate(0)
    close(used.extend(parents[:, :1], tokens[:, :1]), fresh.extend(np.full((3, 1), -1), tokens[:, :1]))


def test_an_unmerged_adapter_is_searched_too():
    from peft import LoraConfig, get_peft_model

    world = search_world()
    base = plain_state(world.model, list(world.prompts[0]))
    adapted = get_peft_model(world.model, LoraConfig(target_modules=["q_proj"], init_lora_weights=False)).eval()
    found = PrefixSession(adapted, world.prompts[:1]).prompt_states[0]
    close(found, plain_state(adapted, list(world.prompts[0])))
    assert not torch.allclose(found, base, atol=1e-3)


def test_a_parent_must_come_first():
    world = search_world()
    session = PrefixSession(world.model, world.prompts[:1])
    with pytest.raises(InputError, match="earlier column"):
        session.extend(np.array([[0]]), np.array([[5]]))


def test_refuses_empty_prompts_and_unsuitable_attention():
    world = search_world()
    with pytest.raises(InputError, match="prompt 1 has no token"):
        PrefixSession(world.model, [[1], []])
    with pytest.raises(InputError, match="no prompt was given"):
        PrefixSession(world.model, [])
    world.model.config.layer_types = ["full_attention", "linear_attention"]
    with pytest.raises(InputError, match="linear_attention"):
        PrefixSession(world.model, [[1]])
    del world.model.config.layer_types
    world.model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(InputError, match="flash_attention_2"):
        PrefixSession(world.model, [[1]])
