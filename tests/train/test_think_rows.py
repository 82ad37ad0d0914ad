"""Batches of thoughts: what carries loss, and over what a token's probability is normalised."""

from typing import Any

from llmrec.train.batches import render_epoch
from llmrec.train.config import StageConfig
from llmrec.train.stage import train_sequences


def test_the_item_behind_a_thought_keeps_its_levels_and_the_thought_has_none(world: Any) -> None:
    config = StageConfig(tasks={"think": {"settings": {"window": 5}}, "explain": {}})
    rows, dropped = render_epoch(config, world.renderer, world.dataset.catalog, train_sequences(world.dataset), 0)
    assert rows["think"]
    assert dropped["think: items that nothing in their history leads to"] > 0
    for row in rows["think"]:
        assert row.sid_level[-2:].tolist() == [0, 1]
        assert (row.sid_level[:-2] == -1).all()
        assert row.target[-2:].all()
        assert any(segment.codes for segment in row.segments if segment.target)
    assert all((row.sid_level == -1).all() for row in rows["explain"])
