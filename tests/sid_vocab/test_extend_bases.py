"""Half-precision and packed bases: what was there keeps its bits, new rows are those of float32, rounded once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from llmrec.errors import InputError
from llmrec.sid_vocab.extend import extend_vocabulary
from llmrec.sid_vocab.rows import INITS
from llmrec.sid_vocab.table import SIDTable
from llmrec.testing.worlds import tiny_items, tiny_model, tiny_tokenizer

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


class Packed(nn.Module):
    """A linear layer in 4 bits as bitsandbytes keeps it: two signed numbers a byte, a scale a row."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.out_features, self.in_features = linear.weight.shape
        self.scale = nn.Buffer(linear.weight.detach().abs().amax(dim=1, keepdim=True) / 7)
        numbers = (linear.weight.detach() / self.scale).round().to(torch.int8).add(8).to(torch.uint8).reshape(-1, 2)
        self.weight = nn.Parameter((numbers[:, :1] << 4) | numbers[:, 1:], requires_grad=False)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        numbers = torch.cat([self.weight >> 4, self.weight & 15], dim=1).reshape(self.out_features, -1)
        return nn.functional.linear(values, (numbers.to(values.dtype) - 8) * self.scale.to(values.dtype))


def pack(model):
    """Every linear layer but the head, which is what transformers leaves alone by default."""
    head = model.get_output_embeddings()
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Linear) and child is not head:
                setattr(module, name, Packed(child))
    return model


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_a_base_in_4_bits_is_extended_around_its_packed_layers(tied, table):
    tokenizer = tiny_tokenizer("bpe")
    model = pack(tiny_model(tokenizer, tied=tied))
    prompt = torch.tensor([tokenizer.encode("The Golden River is a Drama from 1957")])
    packed = {name: tensor.clone() for name, tensor in model.state_dict().items() if tensor.dtype == torch.uint8}
    assert len(packed) == 2 * 7
    expected = model(prompt).logits.detach()
    extension = extend_vocabulary(model, tokenizer, table, init="centroid", item_texts=TEXTS)
    state = model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in packed.items())
    assert torch.equal(model(prompt).logits[..., : extension.first_row], expected)
    history = torch.from_numpy(extension.table.sid_token_ids()[:5].reshape(1, -1))
    assert torch.isfinite(model(history).logits).all()


def test_a_packed_head_is_refused_before_any_change(table):
    tokenizer = tiny_tokenizer("bpe")
    model = tiny_model(tokenizer, tied=False)
    model.lm_head = Packed(model.lm_head)
    with pytest.raises(InputError, match=r"head is quantised \(packed as torch.uint8\)") as caught:
        extend_vocabulary(model, tokenizer, table, init="mean")
    assert "lm_head" in str(caught.value.hint)
    assert (len(tokenizer), model.config.vocab_size) == (400, 400)
