"""The tiny data set with a checkpoint over its items, and one whose sequences are written by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from llmrec.checkpoint import Checkpoint
from llmrec.checkpoint_card import DataCard
from llmrec.data.config import DataConfig
from llmrec.data.dataset import Dataset, read_data
from llmrec.recommender import Recommender
from llmrec.sid_vocab.table import SIDTable
from llmrec.testing.checkpoints import tiny_parts
from llmrec.train.preference.config import PreferConfig
from llmrec.train.preference.contexts import Context, Drops, select_contexts


@pytest.fixture(scope="session")
def checkpoint(tiny_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Untrained, its table over the 60 items of the tiny data set, trained (so it says) on its split."""
    data = DataCard(name="tiny", loo_sha256=tiny_dataset.split.loo_sha256, fingerprint=tiny_dataset.fingerprint)
    return tiny_parts().write(tmp_path_factory.mktemp("preference") / "cpt", data=data)


@pytest.fixture(scope="session")
def recommender(checkpoint: Checkpoint) -> Recommender:
    return Recommender(checkpoint)


@pytest.fixture
def recipe() -> Callable[..., PreferConfig]:
    """``recipe(negatives={...}, users=4)``."""

    def make(**settings: Any) -> PreferConfig:
        return PreferConfig.model_validate({"name": "test", **settings})

    return make


@pytest.fixture
def shop(tmp_path: Path) -> Callable[..., Dataset]:
    """``shop({"u": "abcd"})``: users with items of one letter in order; further columns as lists over all events."""

    def make(sequences: dict[str, Sequence[str]], **columns: list[Any]) -> Dataset:
        folder = tmp_path / "shop"
        folder.mkdir(exist_ok=True)
        events = [(user, item, time) for user, items in sequences.items() for time, item in enumerate(items)]
        frame = pl.DataFrame(events, schema=["user_id", "item_id", "timestamp"], orient="row")
        frame.with_columns(**{name: pl.Series(values) for name, values in columns.items()}).write_parquet(
            folder / "interactions.parquet"
        )
        items = sorted({item for _, item, _ in events})
        pl.DataFrame({"item_id": items, "title": [f"item {item}" for item in items]}).write_parquet(
            folder / "items.parquet"
        )
        return read_data(DataConfig(path=str(folder)))

    return make


def table_of(items: Sequence[str]) -> SIDTable:
    """Two levels: three items share a first code."""
    codes = np.array([[place // 3, place % 3] for place in range(len(items))])
    return SIDTable(tuple(items), codes, (len(items) // 3 + 1, 3))


def contexts_of(dataset: Dataset, table: SIDTable, **settings: Any) -> list[Context]:
    """All events of all users, unless `settings` say less."""
    return select_contexts(
        dataset.split, table, Drops(), **{"users": None, "recent_events": None, "min_history": 1, **settings}
    )
