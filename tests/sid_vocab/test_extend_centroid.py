"""Rows from centroids: the map is that of least squares, codes without items get a direction, suffixes keep theirs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from llmrec.errors import InputError
from llmrec.sid_vocab.extend import extend_vocabulary
from llmrec.sid_vocab.rows import DEVIATION, TIE_BREAK, centroid_deviations, code_means, initial_rows
from llmrec.sid_vocab.table import SIDTable
from llmrec.testing.worlds import tiny_items, tiny_model, tiny_tokenizer


def world(num_items: int = 300, noise: float = 0.0, seed: int = 0):
    """Items whose title row is a linear function of their reconstruction, but for `noise`; one token per title."""
    rng = np.random.default_rng(seed)
    books = (rng.normal(size=(8, 6)), 0.5 * rng.normal(size=(10, 6)))
    # code 7 of the first level has no item
    codes = np.stack([rng.integers(0, 7, num_items), rng.integers(0, 10, num_items), rng.integers(0, 3, num_items)], 1)
    ids = tuple(map(str, range(num_items)))
    table = SIDTable(ids, codes, (8, 10, 3), has_suffix=True, codebooks=books)
    true = rng.normal(size=(6, 16))
    rows = (books[0][codes[:, 0]] + books[1][codes[:, 1]]) @ true + 5 + noise * rng.normal(size=(num_items, 16))
    return table, torch.from_numpy(rows).float(), [[row] for row in range(num_items)], true


def test_without_noise_the_map_is_found_and_an_unseen_code_is_placed_by_it():
    table, base, title_ids, true = world()
    projected = centroid_deviations(base, table, title_ids).numpy()
    assert projected.shape == (18, 16)
    row = 0
    for level, book in enumerate(table.codebooks):
        centred = book - book[table.codes[:, level]].mean(axis=0)
        np.testing.assert_allclose(projected[row : row + len(book)], centred @ true, atol=2e-3)
        row += len(book)


def test_with_noise_neighbours_are_borrowed_from():
    table, base, title_ids, true = world(num_items=40, noise=6.0)
    book = table.codebooks[0]
    wanted = torch.from_numpy((book - book[table.codes[:, 0]].mean(axis=0)) @ true)
    means, shared = code_means(base, table, title_ids)
    ours = centroid_deviations(base, table, title_ids)[:7]

    def likeness(rows: torch.Tensor) -> float:
        return float(torch.cosine_similarity(rows.double(), wanted[:7], dim=1).mean())

    assert likeness(ours) > likeness(means[:7] - shared) + 0.05


def test_rows_have_the_shared_part_one_length_and_title_means_in_the_suffix():
    table, base, title_ids, _ = world()
    one, again, other = (
        initial_rows(base, table, title_ids, init=init, seed=0) for init in ("centroid", "centroid", "title_mean")
    )
    assert torch.equal(one.rows, again.rows)
    _, shared = code_means(base, table, title_ids)
    lengths = (one.rows - shared).norm(dim=1) / one.typical_norm
    torch.testing.assert_close(lengths, torch.full((21,), DEVIATION), rtol=0, atol=4 * TIE_BREAK)
    assert torch.equal(one.rows[18:], other.rows[18:])
    assert not torch.equal(one.rows[:18], other.rows[:18])


def test_chunks_do_not_matter(monkeypatch):
    table, base, title_ids, _ = world(noise=1.0)
    title_ids[4] = []
    whole = centroid_deviations(base, table, title_ids)
    monkeypatch.setattr("llmrec.sid_vocab.rows._ITEMS_AT_ONCE", 7)
    torch.testing.assert_close(centroid_deviations(base, table, title_ids), whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("num_items", [1, 2, 5])
def test_fewer_items_than_directions_give_finite_rows(num_items):
    table, base, title_ids, _ = world(num_items)
    rows = initial_rows(base, table, title_ids, init="centroid", seed=0).rows
    assert torch.isfinite(rows).all()
    assert rows.norm(dim=1).max() < 100


def test_what_it_needs_is_said_before_any_change():
    texts = {item["item_id"]: item["title"] for item in tiny_items(24)}
    codes = np.stack([np.arange(24) // 6, np.arange(24) % 6], axis=1)
    tokenizer = tiny_tokenizer("bpe")
    model = tiny_model(tokenizer)
    bare = SIDTable(tuple(texts), codes, (4, 6))
    with pytest.raises(InputError, match="SIDs were given, not fitted"):
        extend_vocabulary(model, tokenizer, bare, init="centroid", item_texts=texts)
    uneven = SIDTable(tuple(texts), codes, (4, 6), codebooks=(np.ones((4, 3)), np.ones((6, 2))))
    with pytest.raises(InputError, match="differ in width"):
        extend_vocabulary(model, tokenizer, uneven, init="centroid", item_texts=texts)
    fitted = SIDTable(tuple(texts), codes, (4, 6), codebooks=(np.ones((4, 3)), np.ones((6, 3))))
    with pytest.raises(InputError, match="init='centroid' needs the items' texts"):
        extend_vocabulary(model, tokenizer, fitted, init="centroid")
    assert (len(tokenizer), model.config.vocab_size) == (400, 400)
