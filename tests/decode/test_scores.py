"""Each normalisation against a direct computation from the model's own logits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import Starcoder2Config, Starcoder2ForCausalLM

from llmrec.decode.scores import ChildScorer, LMHead
from llmrec.decode.session import PrefixSession
from llmrec.errors import InputError, LLMRecError
from llmrec.testing.search_conformance import search_world


def scored(world, normalise, trie, exclusion=None):
    """Children of the root after each prompt: owner, node and gain."""
    session = PrefixSession(world.model, world.prompts)
    scorer = ChildScorer(LMHead(world.model), trie.codebook_sizes, world.token_ids, normalise)
    root = np.zeros(1, dtype=np.int64)
    found = trie.children(0, root, exclusion)
    return [
        (found.owner, found.node, scorer.gains(state[None], 0, found.owner, found.code))
        for state in session.prompt_states
    ]


def model_logits(world):
    with torch.no_grad():
        return [world.model(input_ids=torch.tensor([prompt])).logits[0, -1].double() for prompt in world.prompts]


@pytest.mark.parametrize("family", ["llama", "gemma2"])
@pytest.mark.parametrize("normalise", ["vocab", "level", "legal"])
def test_normalisations(family, normalise):
    world = search_world(family, codebook_sizes=(9, 3), num_items=7)
    trie = world.trie()
    exclusion = trie.exclusion(np.flatnonzero(world.codes[:, 0] == world.codes[0, 0]))
    legal = sorted(set(world.codes[:, 0].tolist()) - {int(world.codes[0, 0])})
    own = torch.as_tensor(world.token_ids[0])
    for (owner, node, found), logits in zip(
        scored(world, normalise, trie, exclusion), model_logits(world), strict=True
    ):
        among = {"vocab": logits, "level": logits[own], "legal": logits[own[legal]]}[normalise]
        expected = logits[own[legal]] - torch.logsumexp(among, dim=0)
        np.testing.assert_allclose(found, expected, atol=1e-4)
        assert trie.codes_of(1, node).tolist() == legal
        assert (owner == 0).all()


def test_gemma_caps_its_logits():
    world = search_world("gemma2")
    with torch.no_grad():
        world.model.get_input_embeddings().weight.mul_(20)  # large logits, so that the cap of 30 bites
    head = LMHead(world.model)
    session = PrefixSession(world.model, world.prompts)
    expected = torch.stack(model_logits(world)).float()
    assert expected.abs().max() > 25
    torch.testing.assert_close(head.logits(session.prompt_states), expected, atol=1e-3, rtol=1e-3)
    rows = torch.as_tensor(world.token_ids[1])
    torch.testing.assert_close(head.logits(session.prompt_states, rows), expected[:, rows], atol=1e-3, rtol=1e-3)


def test_scaled_logits_of_granite_and_cohere():
    import transformers

    for name, extra in (("Granite", {"logits_scaling": 3.0}), ("Cohere", {"logit_scale": 0.25})):
        torch.manual_seed(0)
        config = getattr(transformers, f"{name}Config")(
            vocab_size=50, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=2, pad_token_id=0, bos_token_id=1, eos_token_id=2, **extra,
        )  # fmt: skip
        model = transformers.AutoModelForCausalLM.from_config(config).eval()
        ids = torch.tensor([[4, 5, 6]])
        with torch.no_grad():
            states = model.get_decoder()(input_ids=ids).last_hidden_state[0]
            torch.testing.assert_close(LMHead(model).logits(states), model(input_ids=ids).logits[0])


def test_an_unknown_change_of_the_logits_is_refused():
    world = search_world()
    forward = world.model.forward

    def shifted(*args, **kwargs):
        output = forward(*args, **kwargs)
        output.logits = output.logits * 1.5
        return output

    world.model.forward = shifted
    with pytest.raises(InputError, match="changes its logits"):
        LMHead(world.model)


def test_a_wrapped_head_is_called_whole():
    from peft import LoraConfig, get_peft_model

    world = search_world("qwen3", tied=False)
    adapted = get_peft_model(world.model, LoraConfig(target_modules=["lm_head"], init_lora_weights=False)).eval()
    rows = torch.as_tensor(world.token_ids[0])
    states = torch.randn(2, 32)
    head = LMHead(adapted)
    torch.testing.assert_close(head.logits(states, rows), head.logits(states)[:, rows])


def test_what_does_not_fit_is_refused():
    world = search_world()
    head, sizes = LMHead(world.model), world.codebook_sizes
    with pytest.raises(InputError, match="known are vocab, level, legal"):
        ChildScorer(head, sizes, world.token_ids, "softmax")
    with pytest.raises(InputError, match="codebooks of"):
        ChildScorer(head, sizes, world.token_ids[:2], "vocab")
    with pytest.raises(InputError, match="outside of the model's vocabulary"):
        ChildScorer(head, sizes, [ids + 1000 for ids in world.token_ids], "vocab")


def test_nan_is_an_error_and_not_a_ranking():
    world = search_world()
    first = np.zeros(2, dtype=np.int64), np.arange(2)
    for normalise in ("vocab", "level", "legal"):
        scorer = ChildScorer(LMHead(world.model), world.codebook_sizes, world.token_ids, normalise)
        with pytest.raises(LLMRecError, match="NaN"):
            scorer.gains(torch.full((1, 32), torch.nan), 0, *first)


def test_the_whole_vocabulary_is_scored_in_pieces(monkeypatch):
    world = search_world()
    scorer = ChildScorer(LMHead(world.model), world.codebook_sizes, world.token_ids, "vocab")
    states, owner = torch.randn(7, 32), np.array([0, 1, 1, 2, 4, 5, 5, 6])
    whole = scorer.gains(states, 1, owner, np.array([0, 1, 5, 2, 3, 4, 0, 1]))
    monkeypatch.setattr("llmrec.decode.scores._MAX_LOGITS", 2 * scorer._head.vocabulary)
    np.testing.assert_allclose(scorer.gains(states, 1, owner, np.array([0, 1, 5, 2, 3, 4, 0, 1])), whole, atol=1e-6)


def test_a_model_with_dropout_is_accepted_in_training_and_stays_in_it():
    """Its own forwards differ from one another while dropout is on."""
    shape = Starcoder2Config(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        residual_dropout=0.5,
        embedding_dropout=0.5,
        bos_token_id=0,
        eos_token_id=1,
    )
    model = Starcoder2ForCausalLM(shape).train()
    assert LMHead(model).vocabulary == 50
    assert model.training
