"""Extending models: old rows and logits keep their bits, new rows are what they should be, errors say why."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from llmrec.errors import InputError, MismatchError
from llmrec.sid_vocab.extend import extend_vocabulary, sid_tokens
from llmrec.sid_vocab.rows import DEVIATION, TIE_BREAK, code_means, initial_rows
from llmrec.sid_vocab.table import SIDTable
from llmrec.sid_vocab.text_codec import TextCodec
from llmrec.testing.worlds import tiny_items, tiny_model, tiny_tokenizer

ITEMS = tiny_items(24)
TEXTS = {item["item_id"]: item["title"] for item in ITEMS}
SIZES = (4, 6, 3)  # the last level is a suffix, code 2 of it is spare


@pytest.fixture
def table():
    number = np.arange(24)
    codes = np.stack([number // 6, number % 6, number % 5 == 0], axis=1)
    return SIDTable(tuple(TEXTS), codes, codebook_sizes=SIZES, has_suffix=True)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "mistral"])
def test_old_rows_and_logits_keep_their_bits_and_saving_keeps_all(family, tied, table, tmp_path):
    tokenizer = tiny_tokenizer("spm" if family in ("gemma2", "mistral") else "bpe")
    model = tiny_model(tokenizer, family, tied=tied)
    size = len(tokenizer)
    prompt = torch.tensor([tokenizer.encode("The Golden River is a Drama from 1957")])
    old_embedding = model.get_input_embeddings().weight.detach().clone()
    old_head = model.get_output_embeddings().weight.detach().clone()
    old_logits = model(prompt).logits.detach()

    extension = extend_vocabulary(model, tokenizer, table, item_texts=TEXTS)

    new_head = model.get_output_embeddings().weight
    assert extension.tied is tied is (new_head is model.get_input_embeddings().weight)
    assert (extension.first_row, extension.num_new_rows, extension.num_pad_rows) == (size, 13, 0)
    assert model.config.vocab_size == len(tokenizer) == size + 13
    torch.testing.assert_close(model.get_input_embeddings().weight[:size], old_embedding, rtol=0, atol=0)
    torch.testing.assert_close(new_head[:size], old_head, rtol=0, atol=0)
    logits = model(prompt).logits.detach()
    torch.testing.assert_close(logits[..., :size], old_logits, rtol=0, atol=0)

    history = torch.from_numpy(extension.table.sid_token_ids()[:5].reshape(1, -1))
    expected = model(history).logits
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(again(history).logits, expected, rtol=0, atol=0)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_rows_point_to_the_titles_below_their_code(tied, table):
    tokenizer = tiny_tokenizer("bpe")
    model = tiny_model(tokenizer, tied=tied)
    base = {True: model.get_input_embeddings().weight.detach().clone()}
    base[False] = model.get_output_embeddings().weight.detach().clone()
    title_ids = {item: tokenizer.encode(title) for item, title in TEXTS.items()}
    extension = extend_vocabulary(model, tokenizer, table, item_texts=TEXTS)
    assert extension.items_without_text == 0
    assert extension.unused_codes == 1
    for is_input, matrix in (
        (True, model.get_input_embeddings().weight),
        (False, model.get_output_embeddings().weight),
    ):
        means = {item: base[is_input][ids].mean(dim=0) for item, ids in title_ids.items()}
        shared = torch.stack(list(means.values())).mean(dim=0)
        typical = base[is_input].norm(dim=1).median()
        for level, ids in enumerate(extension.table.token_ids):
            rows = matrix.detach()[ids.tolist()]
            for code, row in enumerate(rows):
                below = [means[item] for item in TEXTS if table.codes[table.row(item), level] == code]
                if not below:
                    assert (row - shared).norm() < 3 * TIE_BREAK * typical
                    continue
                meaning = torch.stack(below).mean(dim=0) - shared
                assert torch.cosine_similarity(row - shared, meaning, dim=0) > 0.99
                assert abs((row - shared).norm() / (DEVIATION * typical) - 1) < 0.1


def test_code_means_agree_with_a_loop_in_chunks(table, monkeypatch):
    monkeypatch.setattr("llmrec.sid_vocab.rows._ITEMS_AT_ONCE", 5)
    base = torch.randn(40, 8, generator=torch.Generator().manual_seed(1))
    rng = np.random.default_rng(0)
    title_ids = [rng.integers(0, 40, size=number % 4).tolist() for number in range(24)]  # every fourth has no text
    means, shared = code_means(base, table, title_ids)
    items = {number: base[ids].mean(dim=0) for number, ids in enumerate(title_ids) if ids}
    torch.testing.assert_close(shared, torch.stack(list(items.values())).mean(dim=0))
    row = 0
    for level, size in enumerate(SIZES):
        for code in range(size):
            below = [mean for number, mean in items.items() if table.codes[number, level] == code]
            torch.testing.assert_close(means[row], torch.stack(below).mean(dim=0) if below else shared)
            row += 1


def test_equal_codes_get_different_rows_and_the_seed_decides_them(table):
    same = SIDTable(table.item_ids, np.zeros((24, 2), int), codebook_sizes=(3, 3))
    base = torch.randn(50, 16, generator=torch.Generator().manual_seed(0))
    ids = [[1, 2, 3]] * 24
    one, again, other = (initial_rows(base, same, ids, init="title_mean", seed=seed).rows for seed in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert torch.pdist(one).min() > 0


def test_mean_and_random_rows():
    base = 3 + torch.randn(500, 64, generator=torch.Generator().manual_seed(0))
    table = SIDTable(("1",), np.zeros((1, 1), int), codebook_sizes=(200,))
    mean = initial_rows(base, table, [], init="mean", seed=0)
    random = initial_rows(base, table, [], init="random", seed=0)
    torch.testing.assert_close(mean.rows, base.mean(dim=0).expand(200, -1), rtol=0, atol=0.2)
    assert abs(random.rows.norm(dim=1).median() / random.typical_norm - 1) < 0.05
    assert random.rows.mean().abs() < 0.1


@pytest.mark.parametrize(("spare", "used", "grown"), [(5, 5, 13), (13, 13, 13), (40, 13, 40)])
def test_spare_rows_of_the_base_are_used_first(table, spare, used, grown):
    tokenizer = tiny_tokenizer("bpe")
    size = len(tokenizer)
    model = tiny_model(tokenizer)
    model.resize_token_embeddings(size + spare, mean_resizing=False)
    before = model.get_input_embeddings().weight.detach().clone()
    extension = extend_vocabulary(model, tokenizer, table, item_texts=TEXTS)
    after = model.get_input_embeddings().weight.detach()
    assert extension.first_row == size
    assert extension.num_spare_rows_used == used
    assert len(after) == model.config.vocab_size == size + grown
    assert extension.table.sid_token_ids().max() < len(after)
    torch.testing.assert_close(after[:size], before[:size], rtol=0, atol=0)
    torch.testing.assert_close(after[size + 13 : size + spare], before[size + 13 :], rtol=0, atol=0)
    # Spare rows of a base hold anything; the typical norm is that of rows with a token.
    assert extension.typical_norm == pytest.approx(float(before[:size].norm(dim=1).median()))


def test_a_model_that_must_not_grow_has_room_or_says_how_much(table):
    tokenizer = tiny_tokenizer("bpe")
    model = tiny_model(tokenizer)
    model.resize_token_embeddings(len(tokenizer) + 12, mean_resizing=False)
    with pytest.raises(
        InputError, match=r"13 SID tokens \(4 \+ 6 \+ 3\) do not fit into the 12 spare rows.* by 1 rows"
    ):
        extend_vocabulary(model, tokenizer, table, init="mean", grow=False)
    with pytest.raises(InputError, match="by 36 rows"):
        extend_vocabulary(model, tokenizer, table, init="mean", grow=False, pad_to_multiple=64)
    assert len(tokenizer) == 400
    model.resize_token_embeddings(len(tokenizer) + 267, mean_resizing=False)
    extension = extend_vocabulary(model, tokenizer, table, init="mean", grow=False)
    assert extension.num_spare_rows_used == 13
    assert len(model.get_input_embeddings().weight) == model.config.vocab_size == 667


def test_padding_rows_hold_the_mean(table):
    tokenizer = tiny_tokenizer("bpe")
    model = tiny_model(tokenizer, tied=False)
    extension = extend_vocabulary(model, tokenizer, table, item_texts=TEXTS, pad_to_multiple=64)
    for matrix in (model.get_input_embeddings().weight.detach(), model.get_output_embeddings().weight.detach()):
        assert len(matrix) == model.config.vocab_size == 448
        pads = matrix[extension.first_row + 13 :]
        assert len(pads) == extension.num_pad_rows == 35
        torch.testing.assert_close(pads, matrix[: extension.first_row].mean(dim=0).expand(35, -1))


def test_the_callers_random_state_stays(table):
    tokenizer = tiny_tokenizer("bpe")
    model = tiny_model(tokenizer)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    extend_vocabulary(model, tokenizer, table, item_texts=TEXTS)
    assert torch.equal(torch.rand(3), expected)


def test_titles_with_sid_spellings_do_not_read_new_rows(table):
    tokenizer = tiny_tokenizer("bpe")
    model = tiny_model(tokenizer)
    texts = dict.fromkeys(TEXTS, "<a_1><|im_end|>")
    ids = TextCodec(tokenizer, sid_tokens(table)).encode("<a_1><|im_end|>")
    shared = model.get_input_embeddings().weight[ids].mean(dim=0).detach()
    extend_vocabulary(model, tokenizer, table, item_texts=texts)
    rows = model.get_input_embeddings().weight[len(tokenizer) - 13 :]
    assert (rows - shared).norm(dim=1).max() < 3 * TIE_BREAK * shared.norm().clamp(min=0.1)


def test_items_without_text_are_counted(table):
    tokenizer = tiny_tokenizer("bpe")
    some = {"1": "The Golden River", "2": ""}
    assert extend_vocabulary(tiny_model(tokenizer), tokenizer, table, item_texts=some).items_without_text == 23


def test_errors_come_before_any_change(table):
    tokenizer = tiny_tokenizer("bpe")
    model = tiny_model(tokenizer)
    with pytest.raises(InputError, match="needs the items' texts"):
        extend_vocabulary(model, tokenizer, table)
    with pytest.raises(InputError, match="no text for any of the 24 items"):
        extend_vocabulary(model, tokenizer, table, item_texts={"other": "x"})
    small = tiny_model(tokenizer)
    small.resize_token_embeddings(399, mean_resizing=False)
    with pytest.raises(MismatchError, match="ids up to 399, the model only 399 rows"):
        extend_vocabulary(small, tokenizer, table, init="mean")
    assert len(tokenizer) == 400
    assert model.config.vocab_size == 400

    extension = extend_vocabulary(model, tokenizer, table, init="mean")
    with pytest.raises(InputError, match="token ids already"):
        extend_vocabulary(model, tokenizer, extension.table, init="mean")
    with pytest.raises(MismatchError, match="already has 13 of the 13 SID tokens, <a_0> among them"):
        extend_vocabulary(model, tokenizer, table, init="mean")
    assert model.config.vocab_size == 413


def test_a_model_without_a_head_is_refused(table):
    tokenizer = tiny_tokenizer("bpe")
    with pytest.raises(InputError, match="no output head"):
        extend_vocabulary(tiny_model(tokenizer).model, tokenizer, table, init="mean")
