"""Real data sets against their published check values."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from llmrec.data.config import DataConfig
from llmrec.data.dataset import read_data
from llmrec.data.stats import data_stats

ML_100K = "c39a254605c780114ee02675c0b7e8754142a3e1773419fd4ece121566df9600"


@pytest.mark.assets
def test_movielens_100k() -> None:
    dataset = read_data(DataConfig(path="asset:ml-100k"))
    assert dataset.name == "ml-100k"
    assert dataset.report.source == "recbole"
    assert dataset.split.loo_sha256 == ML_100K
    assert (dataset.report.events, len(dataset.split.users), len(dataset.split.items)) == (100_000, 943, 1_682)
    assert dataset.catalog.text_fields == ("title",)
    assert dataset.catalog.title("98") == "The Silence of the Lambs"
    assert dataset.catalog.attribute_values("98") == {"genres": ("Drama", "Thriller"), "year": ("1991",)}
    assert dataset.catalog.attribute_values("267") == {}
    assert dataset.report.warnings() == []
    assert any(note.startswith("389 titles") for note in dataset.report.notes)
    stats = data_stats(dataset)
    assert stats.loo_sha256 == ML_100K
    assert stats.density == pytest.approx(100_000 / (943 * 1_682))
    assert (stats.sequence_length.min, stats.sequence_length.max) == (20, 737)
    assert stats.cold_items == 4


def test_data_sets_of_the_environment() -> None:
    folder = os.environ.get("LLMREC_DATA_DIR")
    if not folder:
        pytest.skip("LLMREC_DATA_DIR is not set: it names the folder with the Amazon sets and their CHECKS.json")
    checks = json.loads((Path(folder) / "CHECKS.json").read_text(encoding="utf-8"))
    found = [name for name in checks if (Path(folder) / name).is_dir()]
    assert found
    for name in found:
        dataset = read_data(DataConfig(path=f"$LLMREC_DATA_DIR/{name}"))
        assert dataset.split.loo_sha256 == checks[name]["loo_sha256"], name
        counts = {"rows": dataset.report.events, "users": len(dataset.split.users), "items": len(dataset.split.items)}
        assert counts == {key: checks[name][key] for key in counts}, name
