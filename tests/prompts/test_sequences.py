"""Behaviour sequences: the serving form, its masks and how histories are cut."""

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmrec.errors import InputError
from llmrec.prompts.segments import SegmentKind
from llmrec.prompts.task import chunks
from llmrec.prompts.tasks import Behaviour

HISTORIES = st.lists(st.integers(1, 60).map(str), min_size=1, max_size=25)
FUNCTION_SCOPED = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@given(history=HISTORIES, target=st.integers(1, 60).map(str), window=st.integers(1, 30))
@FUNCTION_SCOPED
def test_one_history_gives_the_same_ids_in_training_evaluation_and_serving(world, history, target, window):
    renderer, levels = world.renderer, world.table.num_levels
    serving = renderer.sequence(history, window=window)
    assert not serving.target.any()
    for targets in ("all", "last"):
        row = renderer.sequence([*history, target], window=window + 1, targets=targets)
        np.testing.assert_array_equal(row.input_ids[:-levels], serving.input_ids)
        np.testing.assert_array_equal(row.input_ids[-levels:], world.table.sid_token_ids()[world.table.row(target)])
        assert row.target[-levels:].all()
    task = Behaviour(window=window + 1)
    example = task.examples(None, [[*history, target]], 0).rows[-1]
    # The last training row of the user holds the most recent window, which is what serving shows.
    np.testing.assert_array_equal(renderer.render(example).input_ids, row.input_ids)


@given(length=st.integers(1, 60), window=st.integers(1, 12), step=st.integers(1, 12), room=st.integers(4, 12))
@FUNCTION_SCOPED
def test_a_stepped_window_keeps_its_start_while_the_history_grows(world, length, window, step, room):
    step = min(step, window)
    renderer, history = world.renderer, [str(1 + place % 60) for place in range(length)]
    limit = len(renderer.sequence(history[:1])) - world.table.num_levels + room * world.table.num_levels
    most, starts = min(window, room), []
    for end in range(1, length + 1):
        prompt = renderer.sequence(history[:end], window=window, window_step=step, max_length=limit)
        kept = [item for segment in prompt.segments for item in segment.item_ids]
        assert kept == history[end - len(kept) : end]
        assert min(end, most - min(step, most) + 1) <= len(kept) <= min(end, most)
        assert prompt.truncated_items == end - len(kept)
        starts.append(end - len(kept))
    assert all(start % min(step, most) == 0 for start in starts)
    assert len(set(starts)) <= 1 + max(0, length - most) // min(step, most) + 1


def test_a_step_beyond_the_window_is_refused(world):
    with pytest.raises(InputError, match=r"window_step=5 must lie in 1\.\.4"):
        world.renderer.sequence(["1"], window=4, window_step=5)


@given(
    history=st.lists(st.integers(1, 70).map(str), max_size=40),
    window=st.integers(2, 12),
    context=st.integers(0, 5),
)
@FUNCTION_SCOPED
def test_every_item_is_a_target_exactly_once_and_everything_is_counted(world, history, window, context):
    context = min(context, window - 1)
    rows = world.renderer.sequence_rows(history, window=window, context=context)
    targets = [item for row in rows for s in row.segments if s.target for item in s.item_ids]
    assert targets == [item for item in history if int(item) <= 60]
    if rows:
        assert sum(row.skipped_items for row in rows) == sum(int(item) > 60 for item in history)
    for row in rows:
        assert row.target.sum() == world.table.num_levels * sum(len(s.item_ids) for s in row.segments if s.target)
        assert sum(len(s.item_ids) for s in row.segments) <= window
        assert (row.sid_level[row.target] >= 0).all()


@given(length=st.integers(0, 60), window=st.integers(1, 15), context=st.integers(0, 14))
def test_chunks_cover_every_position_once_from_the_recent_end(length, window, context):
    context = min(context, window - 1)
    cuts = chunks(length, window, context)
    assert [place for _, first, end in cuts for place in range(first, end)] == list(range(length))
    if length > window:
        assert cuts[-1] == (length - window, length - window + context, length)
    assert all(end - start <= window for start, _, end in cuts)
    assert all(first - start == (context if start or first else 0) for start, first, _ in cuts)


def test_masks_and_levels_of_a_row(world: Any) -> None:
    row = world.renderer.sequence(["1", "2"], targets="last")
    prefix = len(world.renderer.prefix_ids)
    assert row.sid_level.tolist() == [-1] * prefix + [0, 1, 2] * 2
    assert row.target.tolist() == [False] * (prefix + 3) + [True] * 3
    assert [s.kind for s in row.segments if s.item_ids] == [SegmentKind.SID, SegmentKind.SID]
    assert row.input_ids.dtype == np.int64
    assert row.sid_level.dtype == np.int8
    bos = world.tokenizer.bos_token_id
    assert (row.input_ids[0] == bos) == (world.kind == "spm")
    assert bos not in row.input_ids[1:]


def test_truncation_drops_the_oldest_items_and_counts_them(world: Any) -> None:
    history = [str(i) for i in range(1, 11)]
    prefix = len(world.renderer.prefix_ids)
    row = world.renderer.sequence(history, targets="last", max_length=prefix + 3 * 4 + 2)
    kept = [item for s in row.segments for item in s.item_ids]
    assert kept == ["7", "8", "9", "10"]
    assert row.truncated_items == 6
    assert len(row) <= prefix + 14
    assert world.renderer.sequence(history, window=3).truncated_items == 7
    assert world.renderer.sequence(["no-such", *history, "nor-this"]).skipped_items == 2


def test_what_cannot_fit_is_an_error(world: Any) -> None:
    prefix = len(world.renderer.prefix_ids)
    with pytest.raises(InputError, match=f"raise max_length to {prefix + 3}"):
        world.renderer.sequence(["1"], max_length=prefix + 2)
    with pytest.raises(InputError, match="no room for a target"):
        world.renderer.sequence_rows(["1"] * 9, window=5, context=2, max_length=prefix + 6)
    with pytest.raises(InputError, match="'99' has no SID"):
        world.renderer.sequence(["1", "99"], targets="last")
    with pytest.raises(InputError, match="window=0"):
        world.renderer.sequence(["1"], window=0)


def test_a_history_of_unknown_items_only_is_the_bare_header(world: Any) -> None:
    row = world.renderer.sequence(["x", "y"])
    np.testing.assert_array_equal(row.input_ids, world.renderer.prefix_ids)
    assert row.skipped_items == 2
    assert world.renderer.sequence_rows(["x", "y"], window=4) == []


def test_behaviour_rows_that_do_not_fit_are_an_error_and_context_gives_way(world: Any) -> None:
    items = [str(i) for i in range(1, 13)]
    first, second = Behaviour(window=8, context=3).examples(None, [items], 0).rows
    prefix = len(world.renderer.prefix_ids)
    assert (first.target, second.target) == (tuple(items[:7]), tuple(items[7:]))
    row = world.renderer.render(second, max_length=prefix + 3 * 6)
    assert row.truncated_items == 2
    assert row.target.sum() == 15
    with pytest.raises(InputError, match="5 targets"):
        world.renderer.render(second, max_length=prefix + 3 * 4)
