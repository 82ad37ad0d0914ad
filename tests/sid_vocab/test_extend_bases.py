"""Half-precision and packed bases: what was there keeps its bits, new rows are those of float32, rounded once."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from llmrec.errors import InputError
from llmrec.models import load_base
from llmrec.sid_vocab.extend import extend_vocabulary
from llmrec.sid_vocab.rows import INITS
from llmrec.sid_vocab.table import SIDTable
from llmrec.testing.worlds import tiny_items, tiny_model, tiny_tokenizer
from llmrec.train.config import StageConfig
from llmrec.train.cpt import add_adapter

TEXTS = {item["item_id"]: item["title"] for item in tiny_items(24)}


@pytest.fixture
def table():
    number = np.arange(24)
    rng = np.random.default_rng(0)
    books = (rng.normal(size=(4, 5)), rng.normal(size=(6, 5)))
    return SIDTable(tuple(TEXTS), np.stack([number // 6, number % 6], axis=1), codebook_sizes=(4, 6), codebooks=books)


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_half_precision_rounds_the_rows_of_float32(dtype, init, table):
    tokenizer = tiny_tokenizer("bpe")
    half = tiny_model(tokenizer, tied=False).to(dtype)
    full = tiny_model(tokenizer, tied=False)
    full.load_state_dict({name: tensor.float() for name, tensor in half.state_dict().items()})
    before = half.get_output_embeddings().weight.detach().clone()
    first = extend_vocabulary(half, tokenizer, table, init=init, item_texts=TEXTS, pad_to_multiple=64).first_row
    extend_vocabulary(full, tiny_tokenizer("bpe"), table, init=init, item_texts=TEXTS, pad_to_multiple=64)
    pairs = [
        (half.get_input_embeddings().weight, full.get_input_embeddings().weight),
        (half.get_output_embeddings().weight, full.get_output_embeddings().weight),
    ]
    for ours, exact in pairs:
        assert ours.dtype == dtype
        assert torch.equal(ours, exact.to(dtype))
    assert torch.equal(pairs[1][0][:first], before)


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def folder(request, tmp_path_factory):
    """A base as it would come from a hub."""
    made = tmp_path_factory.mktemp("base")
    tokenizer = tiny_tokenizer("bpe")
    tiny_model(tokenizer, tied=request.param, head_dim=16).save_pretrained(made)
    tokenizer.save_pretrained(made)
    return made


def packed_tensors(model):
    """Of the linear layers, but for adapters: numbers, scales and what describes them."""
    names = (".self_attn.", ".mlp.")
    state = model.state_dict()
    return {
        name.replace("base_model.model.", "").replace(".base_layer", ""): tensor.clone()
        for name, tensor in state.items()
        if any(part in name for part in names) and "lora" not in name
    }


@pytest.mark.parametrize("quantize", ["4bit", "8bit"])
def test_a_packed_base_is_extended_and_learned_on_around_its_packed_layers(folder, quantize, table):
    model, tokenizer = load_base(folder, dtype="float32", quantize=quantize)
    prompt = torch.tensor([tokenizer.encode("The Golden River is a Drama from 1957")])
    packed = packed_tensors(model)
    kind = torch.uint8 if quantize == "4bit" else torch.int8
    assert sum(name.endswith(".weight") and tensor.dtype == kind for name, tensor in packed.items()) == 2 * 7
    expected = model(prompt).logits.detach()
    assert not torch.equal(expected, load_base(folder, dtype="float32")[0](prompt).logits)

    extension = extend_vocabulary(model, tokenizer, table, init="centroid", item_texts=TEXTS, pad_to_multiple=64)
    assert torch.equal(model(prompt).logits[..., : extension.first_row], expected)

    learner = add_adapter(model, extension.table, StageConfig()).train()
    rows = [name for name, weight in learner.named_parameters() if weight.requires_grad and "tokens_delta" in name]
    assert len(rows) == (1 if extension.tied else 2)
    history = torch.from_numpy(extension.table.sid_token_ids()[:8].reshape(1, -1))
    learning = [weight for weight in learner.parameters() if weight.requires_grad]
    before = [weight.detach().clone() for weight in learning]
    optimizer = torch.optim.AdamW(learning, lr=1e-2)
    losses = []
    for _ in range(3):
        loss = learner(input_ids=history, labels=history).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > losses[1] > losses[2]
    assert all(not torch.equal(weight, old) for weight, old in zip(learning, before, strict=True))
    after = packed_tensors(learner)
    assert packed.keys() == after.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in packed.items())


def test_a_packed_head_is_refused_before_any_change(table):
    from bitsandbytes.nn import Linear4bit

    tokenizer = tiny_tokenizer("bpe")
    model = tiny_model(tokenizer, tied=False)
    plain, model.lm_head = model.lm_head, Linear4bit(32, 400, bias=False, quant_type="nf4")
    model.lm_head.load_state_dict(plain.state_dict())
    model.lm_head.to("cpu")
    with pytest.raises(InputError, match=r"head is quantised \(packed as torch.uint8\)") as caught:
        extend_vocabulary(model, tokenizer, table, init="mean")
    assert "lm_head" in str(caught.value.hint)
    assert (len(tokenizer), model.config.vocab_size) == (400, 400)
