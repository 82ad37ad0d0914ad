"""Flow B: an adapter of LoRA and SID rows moves exactly these rows, in the head too, and comes back from its folder."""

import copy

import numpy as np
import pytest
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, get_peft_model
from peft.utils.other import TrainableTokensWrapper
from trl.trainer.utils import add_fused_lm_head

from llmrec.errors import InputError, MismatchError
from llmrec.sid_vocab.adapter_rows import patch_trainable_tokens_bias, trainable_rows_config
from llmrec.sid_vocab.extend import extend_vocabulary
from llmrec.sid_vocab.table import SIDTable
from llmrec.testing.worlds import tiny_items, tiny_model, tiny_tokenizer

TEXTS = {item["item_id"]: item["title"] for item in tiny_items(24)}


def extended(family="llama", *, tied=True):
    tokenizer = tiny_tokenizer("bpe")
    model = tiny_model(tokenizer, family, tied=tied)
    number = np.arange(24)
    table = SIDTable(tuple(TEXTS), np.stack([number // 6, number % 6], axis=1), codebook_sizes=(4, 6))
    return model, extend_vocabulary(model, tokenizer, table, item_texts=TEXTS)


def with_adapter(model, rows):
    modules = ["q_proj", "v_proj"]
    config = LoraConfig(r=4, target_modules=modules, trainable_token_indices=rows, task_type="CAUSAL_LM")
    return get_peft_model(model, config)


def train(model, history, steps=3):
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(steps):
        loss = model(input_ids=history, labels=history).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def moved(model, before):
    """Rows that differ from `before`, in the input embeddings and in the head."""
    now = (model.get_input_embeddings().weight, model.get_output_embeddings().weight)
    return [set(torch.nonzero((new != old).any(dim=1)).ravel().tolist()) for new, old in zip(now, before, strict=True)]


def matrices(model):
    pair = (model.get_input_embeddings().weight, model.get_output_embeddings().weight)
    return [matrix.detach().clone() for matrix in pair]


@pytest.mark.parametrize(
    ("family", "tied"), [("llama", True), ("llama", False), ("gemma2", True), ("qwen3", True), ("mistral", False)]
)
def test_sid_rows_move_in_both_matrices_and_nothing_else(family, tied, tmp_path):
    tokenizer = tiny_tokenizer("bpe")
    tiny_model(tokenizer, family, tied=tied).save_pretrained(tmp_path / "base")
    model, extension = extended(family, tied=tied)
    model.name_or_path = str(tmp_path / "base")
    before = matrices(model)
    history = torch.from_numpy(extension.table.sid_token_ids().reshape(1, -1))
    rows = trainable_rows_config(model, extension.table)
    assert len(rows) == (1 if tied else 2)
    adapted = with_adapter(model, rows)
    train(adapted, history)
    adapted.eval()

    sid_rows = set(range(extension.first_row, extension.first_row + extension.num_new_rows))
    assert moved(adapted.get_base_model(), before) == [sid_rows, sid_rows]
    expected = adapted(history).logits.detach()

    # the adapter's folder: small, and complete with the tokenizer in it
    adapted.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    extension.tokenizer.save_pretrained(tmp_path / "adapter")
    matrix_bytes = before[0].numel() * 4
    assert (tmp_path / "adapter" / "adapter_model.safetensors").stat().st_size < matrix_bytes
    again = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter").eval()
    torch.testing.assert_close(again(history).logits, expected, rtol=0, atol=0)

    merged = adapted.merge_and_unload()
    torch.testing.assert_close(merged(history).logits, expected, rtol=0, atol=1e-5)
    assert moved(merged, before) == [sid_rows, sid_rows]
    same = merged.get_input_embeddings().weight.data_ptr() == merged.get_output_embeddings().weight.data_ptr()
    assert same is tied


def test_the_list_form_leaves_an_untied_head_behind():
    # Why trainable_rows_config exists. Should PEFT change this, the decision page and the helper can go.
    model, extension = extended(tied=False)
    before = matrices(model)
    ids = extension.table.sid_token_ids()
    adapted = with_adapter(model, np.unique(ids).tolist())
    train(adapted, torch.from_numpy(ids.reshape(1, -1)))
    assert moved(adapted.get_base_model(), before) == [set(ids.ravel().tolist()), set()]


@pytest.fixture
def unpatched():
    """PEFT as it is installed, whatever other tests of this process did to it."""
    patched = TrainableTokensWrapper.__dict__.get("bias")
    if patched is not None:
        del TrainableTokensWrapper.bias
    yield
    del TrainableTokensWrapper.bias
    if patched is not None:
        TrainableTokensWrapper.bias = patched


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_the_bias_patch_lets_trls_fused_head_train_sid_rows(tied, unpatched):
    model, extension = extended(tied=tied)
    plain = copy.deepcopy(model)
    history = torch.from_numpy(extension.table.sid_token_ids().reshape(1, -1))
    add_fused_lm_head(model)
    adapted = with_adapter(model, trainable_rows_config(model, extension.table))
    with pytest.raises(AttributeError, match="bias"):  # fails when the patch is needed no more
        adapted(input_ids=history, labels=history, fused_lm_head=True)
    patch_trainable_tokens_bias()
    patch_trainable_tokens_bias()
    loss = adapted(input_ids=history, labels=history, fused_lm_head=True).loss
    loss.backward()
    reference = with_adapter(plain, trainable_rows_config(plain, extension.table))
    expected = reference(input_ids=history, labels=history).loss
    expected.backward()
    torch.testing.assert_close(loss, expected)
    gradients = [
        {name: parameter.grad for name, parameter in one.named_parameters() if "trainable_tokens_delta" in name}
        for one in (adapted, reference)
    ]
    assert gradients[0].keys() == gradients[1].keys()
    assert len(gradients[0]) == (1 if tied else 2)
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-4, atol=1e-6)


def test_what_cannot_work_is_refused():
    model, extension = extended()
    tokenizer = tiny_tokenizer("bpe")
    with pytest.raises(MismatchError, match="ids up to 409, the model only 400 rows"):
        trainable_rows_config(tiny_model(tokenizer), extension.table)
    unextended = SIDTable(("1",), np.zeros((1, 1), int), codebook_sizes=(2,))
    with pytest.raises(InputError, match="no token ids yet"):
        trainable_rows_config(model, unextended)
    head = model.get_output_embeddings()
    head.bias = torch.nn.Parameter(torch.zeros(len(head.weight)))
    with pytest.raises(InputError, match="has a bias"):
        trainable_rows_config(model, extension.table)
