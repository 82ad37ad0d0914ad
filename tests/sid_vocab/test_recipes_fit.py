"""Every recipe in ``sid_vocab/`` fits a tiny data set, with fewer codes and epochs and an encoder that is made up."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmrec.config import build_config, parse_yaml
from llmrec.data.config import DataConfig
from llmrec.data.dataset import Dataset, read_data
from llmrec.sid_vocab import embeddings
from llmrec.sid_vocab.build import SIDConfig, build_table_of
from llmrec.sid_vocab.quantizer_files import load_quantizer
from llmrec.sid_vocab.quantizers import QUANTIZERS
from llmrec.sid_vocab.table import SIDTable
from llmrec.sid_vocab.text_encoder import Encoded
from llmrec.sid_vocab.vectors import normalise
from llmrec.testing.worlds import tiny_items, write_tiny_folder

FOLDER = Path(__file__).parents[2] / "sid_vocab"
RECIPES = sorted(path.name for path in FOLDER.glob("*.yaml"))
IDS = [item["item_id"] for item in tiny_items()]


class MadeUpEncoder:
    """Words to numbers by their hash: texts that share words are near."""

    reference = "made-up"

    def identity(self) -> str:
        return "0" * 64

    def encode(self, texts: Sequence[str]) -> Encoded:
        return Encoded(normalise(np.stack([self._text(text) for text in texts])), np.zeros(len(texts), bool))

    def _text(self, text: str) -> np.ndarray:
        seeds = [int.from_bytes(hashlib.sha256(word.encode()).digest()[:4], "big") for word in text.split()]
        return np.asarray(np.sum([np.random.default_rng(seed).normal(size=24) for seed in seeds], axis=0))


def small(recipe: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The recipe with sizes for 60 items and with files of its own."""
    if "index" in recipe:
        index = {item_id: [f"<a_{row % 6}>", f"<b_{row // 6}>", "<c_0>"] for row, item_id in enumerate(IDS)}
        (folder / "index.json").write_text(json.dumps(index))
        return {**recipe, "index": {**recipe["index"], "path": str(folder / "index.json")}}
    if recipe["embeddings"]["source"] == "file":
        np.save(folder / "v.npy", np.random.default_rng(0).normal(size=(60, 16)))
        (folder / "ids.txt").write_text("\n".join(IDS))
        recipe["embeddings"] |= {"path": str(folder / "v.npy"), "ids": str(folder / "ids.txt")}
    quantizer = recipe["quantizer"]
    given = quantizer.get("codebook_size")
    if quantizer["name"] == "fsq":
        quantizer["grid"] = [2 for _ in quantizer["grid"]]
    elif isinstance(given, list):
        quantizer["codebook_size"] = [max(2, size // 32) for size in given]
    else:
        quantizer["codebook_size"] = 8
    if quantizer["name"] == "rq-vae":
        quantizer |= {"epochs": 2, "warmup_epochs": 1, "hidden_sizes": [16], "latent_size": 8, "batch_size": 32}
    return recipe


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = write_tiny_folder(tmp_path_factory.mktemp("world"))
    return read_data(DataConfig(path=str(folder), attributes=["genres"]))


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_fits(name: str, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMREC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(embeddings, "make_encoder", lambda config: MadeUpEncoder())
    recipe = small(parse_yaml((FOLDER / name).read_text(encoding="utf-8"), source=name), tmp_path)
    config = build_config(SIDConfig, recipe, source=name)
    built = build_table_of(config, dataset)
    table = built.table
    assert table.num_items == 60
    if config.collisions.strategy != "share":
        assert all(len(rows) == 1 for rows in table.buckets().values())
    again = build_table_of(config, dataset).table
    assert again.vocabulary_fingerprint == table.vocabulary_fingerprint
    assert again.rows_fingerprint == table.rows_fingerprint
    built.save(tmp_path / "sid")
    assert SIDTable.load(tmp_path / "sid").rows_fingerprint == table.rows_fingerprint
    if built.fitted is not None and built.vectors is not None:
        loaded = load_quantizer(tmp_path / "sid", table)
        np.testing.assert_array_equal(loaded.encode(built.vectors), built.fitted.encode(built.vectors))


def test_every_quantizer_has_a_recipe() -> None:
    recipes = [parse_yaml((FOLDER / name).read_text(encoding="utf-8"), source=name) for name in RECIPES]
    shown = {recipe["quantizer"]["name"] for recipe in recipes if "quantizer" in recipe}
    assert shown | {"pq"} == set(QUANTIZERS)  # product.yaml says how to get pq
