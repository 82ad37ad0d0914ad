"""Figures of a data set, computed by hand for a small one, and the picture."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from llmrec.data.config import DataConfig
from llmrec.data.dataset import Dataset, read_data
from llmrec.data.stats import Quantiles, data_stats, draw_curves, item_popularity
from llmrec.testing.worlds import write_tiny_folder


@pytest.fixture
def small(tmp_path: Path) -> Dataset:
    rows = ["a,1,1", "a,2,1", "a,1,2", "a,3,3", "b,2,1", "b,1,2", "b,4,3", "c,1,9"]
    (tmp_path / "interactions.csv").write_text("user_id,item_id,timestamp\n" + "\n".join(rows), encoding="utf-8")
    items = [{"item_id": str(i), "title": title} for i, title in enumerate(["x", "same", "same", "abc", "four"])]
    (tmp_path / "items.jsonl").write_text("\n".join(map(json.dumps, items)), encoding="utf-8")
    return read_data(DataConfig(path=str(tmp_path), name="small"))


def test_figures(small: Dataset) -> None:
    stats = data_stats(small)
    assert (stats.events, stats.users, stats.participating_users) == (8, 3, 2)
    assert (stats.items, stats.catalog_items, stats.unknown_items) == (4, 5, 0)
    assert stats.density == pytest.approx(6 / 8)
    assert stats.sequence_length == Quantiles(mean=3.5, min=3, p25=3, median=3, p75=4, p95=4, max=4)
    assert item_popularity(small).tolist() == [3, 2, 1, 1]
    assert stats.repeat_share == pytest.approx(1 / 8)
    assert stats.repeat_target_share == 0
    assert stats.tie_share == pytest.approx(2 / 8)
    assert stats.top_tenth_share == pytest.approx(3 / 7)
    # Train holds a: 1, 2 and b: 2; the test targets 3 and 4 are cold.
    assert stats.cold_items == 2
    assert stats.cold_target_share == 1
    assert stats.shared_titles == 2
    assert (stats.text_length.min, stats.text_length.max) == (1, 4)
    assert json.loads(json.dumps(stats.as_dict()))["sequence_length"]["median"] == 3
    assert dict(stats.rows())["check value (loo_sha256)"] == small.split.loo_sha256


def test_curves(small: Dataset, tmp_path: Path) -> None:
    world = read_data(DataConfig(path=str(write_tiny_folder(tmp_path / "tiny"))))
    for dataset in (small, world):
        path = tmp_path / "plots" / f"{dataset.name}.png"
        draw_curves(dataset, path)
        content = path.read_bytes()
        assert content.startswith(b"\x89PNG")
        assert struct.unpack(">II", content[16:24]) == (1500, 600)
        assert len(content) > 20_000
