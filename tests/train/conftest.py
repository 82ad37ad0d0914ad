"""A tiny data set with its SIDs, extended model and renderer, made anew for each test that trains."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmrec import recipes
from llmrec.data.config import DataConfig
from llmrec.data.dataset import Dataset, read_data
from llmrec.prompts.renderer import Renderer
from llmrec.prompts.templates import TemplateSet
from llmrec.sid_vocab.extend import extend_vocabulary
from llmrec.sid_vocab.table import SIDTable
from llmrec.testing.worlds import Family, TokenizerKind, tiny_model, tiny_tokenizer, write_tiny_folder


@dataclass
class World:
    dataset: Dataset
    table: SIDTable
    model: Any
    tokenizer: Any
    renderer: Renderer


@pytest.fixture(scope="session")
def tiny_dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = write_tiny_folder(tmp_path_factory.mktemp("tiny") / "tiny")
    return read_data(DataConfig(path=str(folder), attributes=["genres"]))


def make_world(dataset: Dataset, family: Family = "llama", kind: TokenizerKind = "bpe", *, tied: bool = True) -> World:
    item_ids = dataset.catalog.item_ids
    numbers = np.array([int(item_id) - 1 for item_id in item_ids])
    # a level for the genre, one for the place in it: what behaviour and titles of the tiny world follow
    table = SIDTable(
        item_ids=item_ids,
        codes=np.stack([numbers % 6, numbers // 6], axis=1).astype(np.int32),
        codebook_sizes=(6, 10),
        has_suffix=True,
    )
    tokenizer = tiny_tokenizer(kind)
    model = tiny_model(tokenizer, family, tied=tied)
    titles = {item_id: dataset.catalog.title(item_id) for item_id in item_ids}
    extended = extend_vocabulary(model, tokenizer, table, item_texts=titles)
    templates = TemplateSet.load(recipes.folder("prompts"))
    return World(dataset, extended.table, model, tokenizer, Renderer(tokenizer, extended.table, templates))


@pytest.fixture
def world(tiny_dataset: Dataset) -> World:
    return make_world(tiny_dataset)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log.jsonl"
