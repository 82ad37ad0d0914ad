"""Think data: train events only, pruned by closeness, true in every statement, the same each time."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmrec.errors import DataError, InputError
from llmrec.prompts.explain import value_frequencies
from llmrec.prompts.grounding import grounding_rates
from llmrec.prompts.think import write_rows
from llmrec.train.batches import render_epoch
from llmrec.train.config import StageConfig
from llmrec.train.stage import train_sequences
from llmrec.train.think.build import check_thoughts, make_thoughts
from llmrec.train.think.closeness import Closeness
from llmrec.train.think.config import ThinkDataConfig

CONFIG = ThinkDataConfig(recent_events=3)


def test_thoughts_are_about_train_events_and_true(world: Any) -> None:
    made = make_thoughts(world.dataset, world.table, CONFIG)
    assert made == make_thoughts(world.dataset, world.table, CONFIG)
    sequences = train_sequences(world.dataset)
    for row in made.rows:
        train = sequences[row.user]
        assert row.events == len(train)
        assert train[row.position] == row.item
        assert set(row.evidence) <= set(train[: row.position])
        assert row.item not in row.evidence
    rates = grounding_rates(check_thoughts(made.rows, world.renderer, world.dataset, CONFIG))
    assert rates["grounded"] == 1
    assert rates["texts"] >= 2 * len(made.rows)
    # held-out events are not looked at: with others in their place the data is the same
    split = world.dataset.split
    other = tuple(np.concatenate([one[:-2], one[:1], one[:1]]).astype(one.dtype) for one in split.sequences)
    changed = replace(world.dataset, split=replace(split, sequences=other))
    assert make_thoughts(changed, world.table, CONFIG).rows == made.rows


def test_a_false_row_stops_the_build(world: Any) -> None:
    row = make_thoughts(world.dataset, world.table, CONFIG).rows[0]
    for lie, told in (
        (replace(row, shared="Opera"), "no such value"),
        (replace(row, kin=next(i for i in world.table.item_ids if i not in row.evidence and i != row.item)), "not in"),
    ):
        with pytest.raises(DataError, match=told):
            check_thoughts([lie], world.renderer, world.dataset, CONFIG)


def test_pruning_keeps_the_closest_items(world: Any) -> None:
    catalog, table = world.dataset.catalog, world.table
    frequencies = value_frequencies(catalog)
    # items 1, 7, 13 ... are one genre and one first code; 2, 8, ... another
    closeness = Closeness(catalog, frequencies, table, ThinkDataConfig(evidence=2))
    assert closeness.prune(["7", "2", "13", "8", "19"], "1") == ["13", "19"]  # ties: the recent ones
    assert closeness.prune(["2", "8"], "1") == []
    assert closeness.prune(["1", "7"], "1") == ["7"]
    vectors = {"1": np.array([1.0, 0]), "7": np.array([1.0, 0.1]), "13": np.array([0, 1.0]), "19": np.array([1.0, 0])}
    with_vectors = Closeness(catalog, frequencies, table, ThinkDataConfig(evidence=2), vectors)
    assert with_vectors.prune(["7", "13", "19", "2"], "1") == ["7", "19"]
    assert with_vectors.kin(["7", "2"], "1") == ["7"]
    assert closeness.depth("1", "7") == 1
    assert closeness.depth("1", "1") == 2
    assert closeness.shared_information("7", "1") == pytest.approx(1.0)
    assert closeness.shared_information("2", "1") == 0


def test_sft_trains_on_the_file(world: Any, tmp_path: Path) -> None:
    made = make_thoughts(world.dataset, world.table, CONFIG)
    path = tmp_path / "think.jsonl"
    write_rows(path, made.rows)
    config = StageConfig(tasks={"think": {"settings": {"rows": str(path)}}})
    rows, _ = render_epoch(config, world.renderer, world.dataset.catalog, train_sequences(world.dataset), 0)
    assert len(rows["think"]) == len(made.rows)


def test_data_that_gives_no_thoughts_says_why(world: Any) -> None:
    with pytest.raises(InputError, match="no prefix of SIDs of 2 levels"):
        make_thoughts(world.dataset, world.table, ThinkDataConfig(prefix_depth=2))
    with pytest.raises(InputError, match="users with too few train events"):
        make_thoughts(world.dataset, world.table, ThinkDataConfig(min_history=50))
    with pytest.raises(ValueError, match="all weights are 0"):
        ThinkDataConfig(sid_weight=0, attribute_weight=0, vector_weight=0)
