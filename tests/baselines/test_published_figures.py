"""The baselines on real data against known figures: leave-one-out, full catalogue, filtered test."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from llmrec.baselines import make_baseline
from llmrec.metrics import per_user_metrics, rank_of_target, summarise


@pytest.fixture(scope="module")
def ml_100k():
    from llmrec.data.config import DataConfig
    from llmrec.data.dataset import read_data

    return read_data(DataConfig(path="asset:ml-100k")).split


@pytest.fixture(scope="module")
def games():
    folder = os.environ.get("LLMREC_DATA_DIR")
    if not folder:
        pytest.skip("LLMREC_DATA_DIR is not set: it names the folder that holds amazon-games-10core")
    from llmrec.data.config import DataConfig
    from llmrec.data.dataset import read_data

    return read_data(DataConfig(path=f"{folder}/amazon-games-10core")).split


def filtered_test(split: Any, name: str, settings: Mapping[str, Any] | None = None) -> tuple[float, float]:
    """Recall@10 and NDCG@10."""
    histories = [split.history(user, "test") for user in range(len(split.users))]
    model = make_baseline(name, settings).fit(split.train(), len(split.items))
    placement = rank_of_target(model.scores(histories), split.targets("test"), excluded=histories)
    summary = summarise(per_user_metrics(placement))
    return summary["Recall@10"]["value"], summary["NDCG@10"]["value"]


@pytest.mark.assets
def test_popularity_on_ml_100k(ml_100k) -> None:
    assert np.round(filtered_test(ml_100k, "popularity"), 4).tolist() == [0.0859, 0.0449]


@pytest.mark.assets
def test_itemknn_on_ml_100k(ml_100k) -> None:
    assert np.round(filtered_test(ml_100k, "itemknn"), 4).tolist() == [0.1898, 0.1007]


@pytest.mark.assets
def test_ease_on_ml_100k(ml_100k) -> None:
    """.1474 / .0722 within one standard error (.012 of Recall@10, .006 of NDCG@10); the regularisation is not known."""
    np.testing.assert_allclose(filtered_test(ml_100k, "ease"), [0.1474, 0.0722], atol=0.006)


def test_popularity_on_games(games) -> None:
    assert np.round(filtered_test(games, "popularity"), 4).tolist() == [0.0183, 0.0099]


@pytest.mark.slow
def test_itemknn_and_ease_on_games(games) -> None:
    """Standard error of Recall@10 .005; settings were tuned on valid, ours are the defaults."""
    np.testing.assert_allclose(filtered_test(games, "itemknn"), [0.1182, 0.0619], atol=0.005)
    np.testing.assert_allclose(filtered_test(games, "ease"), [0.0933, 0.0498], atol=0.005)
