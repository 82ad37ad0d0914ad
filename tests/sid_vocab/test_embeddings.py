"""Item vectors: text encoder, files, fusion with behaviour, and all problems of bad input at once."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec.config import build_config
from llmrec.errors import ConfigError, DataError, InputError
from llmrec.sid_vocab.embeddings import EmbeddingConfig, embed_items, embed_texts, fuse
from llmrec.sid_vocab.vectors import normalise
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
    vectors = embed_texts(encoder, ids, texts, batch_size=4)
    assert vectors.shape == (21, 16)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(vectors[3], vectors[20])
    for row in (0, 7, 19):
        np.testing.assert_allclose(embed_texts(encoder, ["x"], [texts[row]])[0], vectors[row], atol=1e-6)
    np.testing.assert_array_equal(vectors, embed_texts(encoder, ids, texts, batch_size=4))


def test_texts_that_cannot_be_embedded(encoder: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        embed_texts(encoder, ["a", "b", "c"], ["fine", "  "])
    assert len(caught.value.problems) == 2
    assert "'b'" in str(caught.value)
    with pytest.raises(DataError, match="there are none"):
        embed_texts(encoder, [], [])
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="cannot be loaded"):
        embed_texts(str(tmp_path), ["a"], ["text"])


@pytest.mark.assets
def test_the_packaged_encoder_puts_like_titles_together() -> None:
    titles = [f"{kind} {number}" for kind in ("Toy Story", "Star Wars", "Cooking with fish") for number in range(16)]
    vectors = embed_texts("asset:all-minilm-l6-v2", [str(row) for row in range(48)], titles)
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


@given(seed=st.integers(0, 2**32), weight=st.floats(0, 1))
@settings(max_examples=40, deadline=None)
def test_fusion_weighs_the_distances(seed: int, weight: float) -> None:
    rng = np.random.default_rng(seed)
    text, acts = rng.normal(size=(5, 7)), rng.normal(size=(5, 3))
    fused = fuse(text, acts, weight)
    assert fused.notes == ()
    np.testing.assert_allclose(np.linalg.norm(fused.vectors, axis=1), 1, rtol=1e-5)

    def distances(vectors: np.ndarray) -> np.ndarray:
        return np.square(vectors[:, None] - vectors[None]).sum(axis=-1)

    expected = (1 - weight) * distances(normalise(text)) + weight * distances(normalise(acts))
    np.testing.assert_allclose(distances(fused.vectors), expected, atol=1e-5)


def test_items_without_behaviour_keep_their_text() -> None:
    acts = np.ones((6, 2))
    acts[4] = 0
    for weight in (0.3, 1.0):
        fused = fuse(VECTORS, acts, weight)
        np.testing.assert_allclose(fused.vectors[4], [*normalise(VECTORS)[4], 0, 0], rtol=1e-6)
        assert fused.notes == ("1 items without train behaviour are placed by text alone",)
    np.testing.assert_array_equal(fuse(VECTORS, acts, 1.0).vectors[0, :4], 0)


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
    ],
)
def test_config_errors(values: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build_config(EmbeddingConfig, values, source="recipe")
