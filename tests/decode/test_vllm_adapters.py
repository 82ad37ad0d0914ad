"""Adapters that vLLM cannot serve are refused by name, and windows are aligned with cache blocks. No vLLM needed."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import IA3Config, LoraConfig, get_peft_model

from llmrec.decode.vllm_adapters import check_adapters
from llmrec.decode.vllm_request import aligned_window
from llmrec.errors import ProblemsError
from llmrec.testing.worlds import tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def base(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    tiny_model(tokenizer, tied=False).save_pretrained(folder)
    return folder


@pytest.fixture
def save(tokenizer, tmp_path):
    """Saves an adapter under a name, made with PEFT itself."""

    def save(name, config=None, *, edit=None, hidden=None, **settings):
        model = tiny_model(tokenizer, tied=False)  # PEFT warns of some of these adapters on tied models
        if hidden:
            model.model.layers[0].self_attn.q_proj = torch.nn.Linear(32, hidden, bias=False)
        config = config or LoraConfig(**{"r": 4, "target_modules": ["q_proj", "down_proj"]} | settings)
        folder = tmp_path / name
        get_peft_model(model, config).save_pretrained(folder, save_embedding_layers=False)
        if edit:
            path = folder / "adapter_config.json"
            path.write_text(json.dumps(json.loads(path.read_text()) | edit))
        return folder

    return save


def test_plain_adapters_pass_with_the_room_they_need(base, save):
    adapters = {"small": save("small", r=4), "large": save("large", r=12, use_rslora=True)}
    assert check_adapters(base, adapters) == 16
    assert check_adapters(base, {"pattern": save("pattern", rank_pattern={"q_proj": 20})}) == 32


@pytest.mark.parametrize(
    ("reason", "settings"),
    [
        ("trainable_token_indices=[390, 391]", {"trainable_token_indices": [390, 391]}),
        ('modules_to_save=["embed_tokens"]', {"modules_to_save": ["embed_tokens"]}),
        ("use_dora=true", {"use_dora": True}),
        ('bias="all"', {"bias": "all"}),
        ('init_lora_weights="pissa"', {"edit": {"init_lora_weights": "pissa"}}),
        ('something_new="on"', {"edit": {"something_new": "on"}}),
        ("model.embed_tokens", {"target_modules": ["q_proj", "embed_tokens"]}),
        ("peft_type is 'IA3'", {"config": IA3Config(target_modules=["q_proj"], feedforward_modules=[])}),
        ("another base; shapes differ in: model.layers.0.self_attn.q_proj", {"hidden": 64}),
        ("ranks are [4096]", {"edit": {"r": 4096}}),
    ],
)
def test_an_unservable_adapter_is_refused_by_name_with_its_reason(base, save, reason, settings):
    adapters = {"fashion": save("fashion", **settings), "books": save("books")}
    with pytest.raises(ProblemsError, match="cannot serve") as caught:
        check_adapters(base, adapters)
    assert len(caught.value.problems) == 1  # the plain one is not named
    assert caught.value.problems[0].startswith("fashion (")
    assert reason in caught.value.problems[0]
    assert "export_merged" in str(caught.value)


def test_all_unservable_adapters_are_named_at_once(base, save, tmp_path):
    broken = save("broken")
    (broken / "adapter_config.json").write_text("{")
    pickled = save("pickled")
    (pickled / "adapter_model.safetensors").rename(pickled / "adapter_model.bin")
    deeper = save("deeper")
    (tmp_path / "empty").mkdir()
    adapters = {"empty": tmp_path / "empty", "broken": broken, "pickled": pickled, "plain": deeper}
    with pytest.raises(ProblemsError) as caught:
        check_adapters(base, adapters)
    assert [line.split(":")[0].split(" ")[0] for line in caught.value.problems] == ["empty", "broken", "pickled"]


@given(
    num_items=st.integers(0, 200),
    header_length=st.integers(1, 60),
    num_levels=st.integers(1, 6),
    block_size=st.sampled_from([16, 32, 128]),
)
def test_an_aligned_window_has_the_smallest_remainder_and_keeps_half(num_items, header_length, num_levels, block_size):
    def remainder(kept):
        return (header_length + kept * num_levels) % block_size

    window = aligned_window(num_items, header_length=header_length, num_levels=num_levels, block_size=block_size)
    allowed = range((num_items + 1) // 2, num_items + 1)
    assert window in allowed
    assert remainder(window) == min(map(remainder, allowed))
    assert all(remainder(kept) > remainder(window) for kept in range(window + 1, num_items + 1))  # none dropped in vain
