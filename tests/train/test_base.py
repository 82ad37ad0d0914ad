"""Bases from a config: what is refused and how, and the tokenizer that is trained for them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from llmrec.errors import ConfigError
from llmrec.testing.checkpoints import tiny_base
from llmrec.testing.worlds import tiny_items
from llmrec.train.base import BaseConfig, make_base, train_tokenizer

SHAPE = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}
TEXTS = [f"{item['title']}. {item['genres'][0]}" for item in tiny_items()]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, 400)


@given(text=st.text(st.characters(codec="utf-8"), max_size=60))
def test_every_text_makes_a_round_trip(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text, split_special_tokens=True)) == text


def test_the_tokenizer_is_no_larger_than_asked_for_and_knows_the_catalogues_words(tokenizer):
    assert 256 + 3 < len(tokenizer) <= 400
    assert len(tokenizer.encode("The Silent River")) <= 6
    assert len(tokenizer.encode("Xqzjvk")) == 6
    assert tokenizer.convert_ids_to_tokens([0, 1, 2]) == ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (
        "<|im_start|>", "<|im_end|>", "<|endoftext|>",
    )  # fmt: skip
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False, add_generation_prompt=True)
    assert chat == "<|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\n"


def test_training_the_tokenizer_twice_gives_the_same_one(tokenizer):
    assert train_tokenizer(TEXTS, 400).get_vocab() == tokenizer.get_vocab()


def test_a_model_from_a_config_depends_on_its_seed_alone():
    config = BaseConfig(config=SHAPE, tokenizer_size=400)
    torch.manual_seed(7)
    state = torch.get_rng_state()
    model, tokenizer = make_base(config, TEXTS, 0)
    assert torch.get_rng_state().equal(state)
    torch.manual_seed(8)
    again, _ = make_base(config, TEXTS, 0)
    other, _ = make_base(config, TEXTS, 1)
    weights, same, different = (each.get_input_embeddings().weight for each in (model, again, other))
    assert weights.shape == (len(tokenizer), 32)
    assert weights.equal(same)
    assert not weights.equal(different)
    assert not model.training
    assert model.config.eos_token_id == tokenizer.eos_token_id
    assert (
        make_base(BaseConfig(config=SHAPE, tokenizer_size=400, dtype="bfloat16"), TEXTS, 0)[0].dtype == torch.bfloat16
    )


def test_a_model_by_reference_is_loaded_as_it_is(tmp_path):
    folder = tiny_base(tmp_path / "base")
    model, tokenizer = make_base(BaseConfig(model=str(folder)), [], 0)
    assert len(tokenizer) == model.get_input_embeddings().weight.shape[0] == 400


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "lama"}, "knows no model_type 'lama'; did you mean 'llama'"),
        ({"model_type": 3}, "knows no model_type 3"),
        ({"num_layers": 2, "hiden_size": 8}, r"(?s)no setting 'hiden_size'; did you mean 'hidden_size'.*'num_layers'"),
        ({"to_dict": 2}, "no setting 'to_dict'"),
        ({"hidden_size": 30}, "not a multiple of the number of attention heads"),
        ({"hidden_size": "wide"}, "'hidden_size' expected int, got str"),
        ({"num_key_value_heads": 3}, "no language model can be made of it"),
        ({"hidden_act": "wobble"}, "no language model can be made of it: 'wobble'"),
    ],
)
def test_configs_that_make_no_model(changes, message):
    with pytest.raises(ConfigError, match=message):
        make_base(BaseConfig(config={**SHAPE, **changes}, tokenizer_size=400), TEXTS, 0)


def test_a_model_that_is_no_causal_language_model():
    with pytest.raises(ConfigError, match="no language model can be made of it"):
        make_base(BaseConfig(config={"model_type": "vit"}, tokenizer_size=400), TEXTS, 0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "give either model"),
        ({"model": "x", "config": SHAPE}, "give either model"),
        ({"config": {"hidden_size": 8}}, "needs a model_type"),
        ({"config": {**SHAPE, "vocab_size": 9, "dtype": "float32"}}, "may not set dtype, vocab_size"),
        ({"config": SHAPE, "tokenizer_size": 100}, "greater than or equal to 300"),
    ],
)
def test_settings_that_contradict_each_other(values, message):
    with pytest.raises(ValidationError, match=message):
        BaseConfig(**values)
