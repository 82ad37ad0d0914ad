"""Item vectors: sentence encoder, files, fusion, new items, and all problems of bad input at once."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from llmrec.config import build_config
from llmrec.errors import ConfigError, DataError, InputError
from llmrec.sid_vocab.embeddings import EmbeddingConfig, embed_items, embed_new_items
from llmrec.sid_vocab.text_encoder import SentenceEncoder
from llmrec.sid_vocab.text_vectors import embed_texts
from llmrec.testing.worlds import tiny_items, tiny_tokenizer

IDS = [f"i{row}" for row in range(6)]
VECTORS = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
TITLES = [item["title"] for item in tiny_items(20)]


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A sentence-transformers folder: the mean of 16 random numbers per token."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    tokenizer = tiny_tokenizer("bpe").backend_tokenizer
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("encoder")
    module = StaticEmbedding(tokenizer, embedding_weights=torch.randn(tokenizer.get_vocab_size(), 16).numpy())
    SentenceTransformer(modules=[module], device="cpu").save(str(folder), create_model_card=False)
    return str(folder)


def test_texts_keep_their_order_and_batches_do_not_matter(encoder: str) -> None:
    texts = [*TITLES, TITLES[3]]
    ids = [str(row) for row in range(len(texts))]
    model = SentenceEncoder(encoder)
    vectors = embed_texts(model, ids, texts, batch_size=4).vectors
    assert vectors.shape == (21, 16)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(vectors[3], vectors[20])
    for row in (0, 7, 19):
        np.testing.assert_allclose(embed_texts(model, ["x"], [texts[row]]).vectors[0], vectors[row], atol=1e-6)
    np.testing.assert_array_equal(vectors, embed_texts(model, ids, texts, batch_size=4).vectors)


def test_texts_that_cannot_be_embedded(encoder: str, tmp_path: Path) -> None:
    model = SentenceEncoder(encoder)
    with pytest.raises(DataError) as caught:
        embed_texts(model, ["a", "b", "c"], ["fine", "  "])
    assert len(caught.value.problems) == 2
    assert "'b'" in str(caught.value)
    with pytest.raises(DataError, match="there are none"):
        embed_texts(model, [], [])
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="cannot be loaded"):
        SentenceEncoder(str(tmp_path))


@pytest.mark.assets
def test_the_packaged_encoder_puts_like_titles_together() -> None:
    titles = [f"{kind} {number}" for kind in ("Toy Story", "Star Wars", "Cooking with fish") for number in range(16)]
    vectors = embed_texts(SentenceEncoder("asset:all-minilm-l6-v2"), [str(row) for row in range(48)], titles).vectors
    assert vectors.shape == (48, 384)
    likeness = (vectors @ vectors.T).reshape(3, 16, 3, 16).mean(axis=(1, 3))
    assert (likeness.argmax(axis=1) == np.arange(3)).all()


def write_npy(folder: Path, vectors: np.ndarray, ids: list) -> EmbeddingConfig:
    np.save(folder / "v.npy", vectors)
    (folder / "ids.json").write_text(json.dumps(ids))
    return EmbeddingConfig(source="file", path=str(folder / "v.npy"), ids=str(folder / "ids.json"))


def test_npy_in_another_order_with_unknown_items(tmp_path: Path) -> None:
    config = write_npy(tmp_path, np.vstack([VECTORS[::-1], np.ones((2, 4))]), [*IDS[::-1], "other", "more"])
    found = embed_items(config, IDS, [""] * 6)
    np.testing.assert_array_equal(found.vectors, VECTORS)
    assert found.notes == ("2 vectors of items that the catalogue lacks were left out",)
    (tmp_path / "ids.txt").write_text("\n".join([*IDS[::-1], "other", "more"]) + "\n")
    texts = embed_items(config.model_copy(update={"ids": str(tmp_path / "ids.txt")}), IDS, [""] * 6)
    np.testing.assert_array_equal(texts.vectors, VECTORS)


@pytest.mark.parametrize("layout", ["list", "array", "columns"])
def test_parquet(tmp_path: Path, layout: str) -> None:
    ids = list(range(6))  # numbers in the file, text in llmrec
    if layout == "columns":
        frame = pl.DataFrame({"item": ids, **{f"v{i}": VECTORS[:, i] for i in range(4)}, "title": ["t"] * 6})
    else:
        kind = pl.List(pl.Float32) if layout == "list" else pl.Array(pl.Float32, 4)
        frame = pl.DataFrame({"item": ids, "count": ids, "v": pl.Series(VECTORS.tolist(), dtype=kind)})
    frame.write_parquet(tmp_path / "v.parquet")
    config = EmbeddingConfig(source="file", path=str(tmp_path / "v.parquet"), id_column="item")
    np.testing.assert_array_equal(embed_items(config, ["3", "1"], ["", ""]).vectors, VECTORS[[3, 1]])


def test_all_problems_of_a_file_come_together(tmp_path: Path) -> None:
    vectors = VECTORS.copy()
    vectors[1, 2], vectors[2] = np.nan, 0
    config = write_npy(tmp_path, vectors, ["i0", "i1", "i2", "i3", "i4", "i4"])
    with pytest.raises(DataError) as caught:
        embed_items(config, IDS, [""] * 6)
    text = str(caught.value)
    assert len(caught.value.problems) == 4
    for words in ("1 ids occur more than once, first: 'i4'", "1 of 6 catalogue items have no vector, first: 'i5'",
                  "NaN or infinity, first: 'i1'", "are zero, first: 'i2'"):  # fmt: skip
        assert words in text
    with pytest.raises(DataError, match="5 ids for 6 vectors"):
        embed_items(write_npy(tmp_path, VECTORS, IDS[:5]), IDS[:5], [""] * 5)


def test_lists_of_unequal_length_and_nulls(tmp_path: Path) -> None:
    path = tmp_path / "v.parquet"
    config = EmbeddingConfig(source="file", path=str(path))
    pl.DataFrame({"item_id": IDS[:4], "v": [[1.0, 2.0], [1.0], [3.0, 1.0], None]}).write_parquet(path)
    with pytest.raises(DataError, match="2 vectors do not have 2 numbers like most, first: 'i1', 'i3'"):
        embed_items(config, IDS[:4], [""] * 4)
    pl.DataFrame({"item_id": IDS[:2], "v": [1.0, None], "w": [1.0, 2.0]}).write_parquet(path)
    with pytest.raises(DataError, match="NaN or infinity, first: 'i1'"):
        embed_items(config, IDS[:2], [""] * 2)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    def read(path: Path, **more: str) -> None:
        embed_items(EmbeddingConfig(source="file", path=str(path), **more), IDS, [""] * 6)

    (tmp_path / "broken.parquet").write_bytes(b"x")
    np.save(tmp_path / "objects.npy", np.array([{"a": 1}], dtype=object))
    (tmp_path / "ids.txt").write_text("i0\n")
    frame = pl.DataFrame({"item_id": IDS, "a": [[1.0]] * 6, "b": [["x"]] * 6})
    frame.write_parquet(tmp_path / "two.parquet")
    frame.select("item_id").write_parquet(tmp_path / "bare.parquet")
    cases = (
        ("missing.parquet", {}, "cannot be read"),
        ("broken.parquet", {}, "cannot be read"),
        ("objects.npy", {"ids": str(tmp_path / "ids.txt")}, "cannot be read.*allow_pickle"),
        ("vectors.csv", {}, "neither .npy nor .parquet"),
        ("two.parquet", {}, "several list columns: a, b"),
        ("two.parquet", {"vector_column": "b"}, "does not hold lists of numbers"),
        ("two.parquet", {"id_column": "id"}, "no column 'id'"),
        ("bare.parquet", {}, "neither a list column nor numeric columns"),
    )
    for name, more, words in cases:
        with pytest.raises(InputError, match=words):
            read(tmp_path / name, **more)


def test_behaviour_that_cannot_be_used(tmp_path: Path) -> None:
    config = write_npy(tmp_path, VECTORS, IDS).model_copy(update={"behaviour_weight": 0.5})
    with pytest.raises(InputError, match="there are no behaviour vectors"):
        embed_items(config, IDS, [""] * 6)
    with pytest.raises(DataError) as caught:
        embed_items(config, IDS, [""] * 6, np.full((5, 2), np.nan))
    assert len(caught.value.problems) == 2
    assert embed_items(config, IDS, [""] * 6, np.ones((6, 3))).vectors.shape == (6, 7)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"source": "file"}, "needs a path"),
        ({"path": "x.npy", "ids": "ids.txt"}, "set source: file"),
        ({"source": "file", "path": "x.npy"}, "name a file with them in ids"),
        ({"behaviour_weight": 1.5}, "less than or equal to 1"),
        ({"fusion": "none", "behaviour_weight": 0.5}, "set fusion: concat"),
        ({"fusion": "mix"}, "concat"),
        ({"align": {"epoch": 3}}, "epochs"),
        ({"behaviour": "sasrec", "behaviour_size": 9}, "must be even"),
    ],
)
def test_config_errors(values: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build_config(EmbeddingConfig, values, source="recipe")


def test_a_sentence_encoder_is_named_by_its_content(encoder: str, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(encoder, copy)
    assert SentenceEncoder(str(copy)).identity() == SentenceEncoder(encoder).identity()
    described = copy / "config_sentence_transformers.json"
    described.write_text(described.read_text() + " ")
    assert SentenceEncoder(str(copy)).identity() != SentenceEncoder(encoder).identity()


def test_vectors_of_an_item_list_that_changed_are_refused(tmp_path: Path) -> None:
    config = write_npy(tmp_path, VECTORS, IDS)
    with pytest.raises(DataError, match="1 of 6 catalogue items have no vector, first: 'i6'"):
        embed_items(config, [*IDS[1:], "i6"], [""] * 6)


def test_constant_columns_are_refused(tmp_path: Path) -> None:
    vectors = np.hstack([VECTORS, np.full((6, 1), 2.0), np.zeros((6, 1))])
    config = write_npy(tmp_path, vectors, IDS)
    with pytest.raises(DataError, match="2 of 6 columns are the same for all 6 items: 4, 5"):
        embed_items(config, IDS, [""] * 6)
    assert embed_items(config, IDS[:1], [""]).vectors.shape == (1, 6)  # one item: nothing to compare


def test_fusions_by_config(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    ids = [f"i{row}" for row in range(50)]
    vectors, acts = rng.normal(size=(50, 4)).astype(np.float32), rng.normal(size=(50, 3)).astype(np.float32)
    acts[3] = 0
    plain = write_npy(tmp_path, vectors, ids)

    def config(**values: object) -> EmbeddingConfig:
        return EmbeddingConfig(**{**plain.model_dump(), **values})

    none = embed_items(config(fusion="none"), ids, [""] * 50, acts)
    np.testing.assert_array_equal(none.vectors, vectors)
    joined = embed_items(config(behaviour_weight=0.5), ids, [""] * 50, acts)
    assert (joined.vectors.shape, joined.head) == ((50, 7), None)
    aligned = embed_items(config(fusion="align", align={"epochs": 2}), ids, [""] * 50, acts)
    assert aligned.head is not None
    assert aligned.vectors.shape == (50, 4)
    assert [note.split(" (")[0] for note in aligned.notes][1:] == [
        "1 items without train behaviour are placed by text alone"
    ]
    with pytest.raises(InputError, match=r"fusion is 'align'.*there are no behaviour vectors"):
        embed_items(config(fusion="align"), ids, [""] * 50)


def test_new_items_come_where_old_ones_without_behaviour_are(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    ids = [f"i{row}" for row in range(50)]
    acts = rng.normal(size=(50, 3)).astype(np.float32)
    acts[3] = 0
    plain = write_npy(tmp_path, rng.normal(size=(50, 4)).astype(np.float32), ids)
    for values in ({"fusion": "none"}, {"behaviour_weight": 0.5}, {"fusion": "align", "behaviour_weight": 0.5}):
        config = EmbeddingConfig(**{**plain.model_dump(), **values})
        old = embed_items(config, ids, [""] * 50, acts)
        dim = old.vectors.shape[1]
        new = embed_new_items(config, ["i3"], [""], dim, old.head)
        np.testing.assert_allclose(new.vectors[0], old.vectors[3], rtol=1e-6, atol=1e-7)
        if config.fusion == "align":
            with pytest.raises(InputError, match="alignment head is missing"):
                embed_new_items(config, ["i3"], [""], dim)
        else:
            with pytest.raises(InputError, match="vectors of 3 numbers, these have 4"):
                embed_new_items(config, ["i3"], [""], 3)
    with pytest.raises(InputError, match="vectors of 7 numbers, these have 4"):
        embed_new_items(plain, ["i3"], [""], 7)
