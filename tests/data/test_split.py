"""The split against a naive splitter, and against the published check values."""

from __future__ import annotations

import hashlib

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec.data.interactions import Interactions
from llmrec.data.split import leave_one_out, ordered_ids
from llmrec.errors import InputError

Event = tuple[str, str, int]


def interactions(events: list[Event]) -> Interactions:
    schema = {"user_id": pl.String, "item_id": pl.String, "timestamp": pl.Int64}
    return Interactions(pl.DataFrame(events, schema=schema, orient="row"))


def naive(events: list[Event]) -> dict[str, list[str]]:
    """Per participating user the items, by insertion into a sorted list after all equal times."""
    per_user: dict[str, list[tuple[int, str]]] = {}
    for user, item, time in events:
        row = per_user.setdefault(user, [])
        place = len([t for t, _ in row if t <= time])
        row.insert(place, (time, item))
    return {user: [item for _, item in row] for user, row in per_user.items() if len(row) >= 3}


integers = st.integers(0, 12).map(str)
names = st.sampled_from(["a", "B", "c", "10", "9", "zoë", "x y"])


def logs(ids: st.SearchStrategy[str]) -> st.SearchStrategy[list[Event]]:
    return st.lists(st.tuples(ids, ids, st.integers(0, 3)), max_size=60)


@settings(deadline=None)
@given(st.one_of(logs(integers), logs(names)))
def test_agrees_with_a_naive_splitter(events: list[Event]) -> None:
    split = leave_one_out(interactions(events))
    expected = naive(events)
    numeric = all(user.isdigit() for user in expected)
    users = sorted(expected, key=(lambda name: int(name)) if numeric else (lambda name: name))
    assert list(split.users) == users
    lines = "".join(f"{user}\t{expected[user][-2]}\t{expected[user][-1]}\n" for user in users)
    assert split.loo_sha256 == hashlib.sha256(lines.encode()).hexdigest()
    assert list(split.items) == ordered_ids({item for items in expected.values() for item in items})
    for row, user in enumerate(users):
        named = [split.items[i] for i in split.sequences[row]]
        assert named == expected[user]
        assert [split.items[i] for i in split.train()[row]] == expected[user][:-2]
        assert [split.items[i] for i in split.history(row, "valid")] == expected[user][:-2]
        assert [split.items[i] for i in split.history(row, "test")] == expected[user][:-1]
        assert split.items[split.targets("valid")[row]] == expected[user][-2]
        assert split.items[split.targets("test")[row]] == expected[user][-1]
    trained = {item for items in expected.values() for item in items[:-2]}
    assert [split.items[i] for i in split.cold_items()] == [item for item in split.items if item not in trained]
    everyone = {user for user, _, _ in events}
    assert split.counts.users == len(everyone)
    assert split.counts.users_too_short == len(everyone) - len(users)
    assert split.counts.events_too_short == len(events) - sum(map(len, expected.values()))
    assert split.counts.items + split.counts.items_too_short == len({item for _, item, _ in events})


def test_ties_keep_the_order_of_the_file() -> None:
    split = leave_one_out(interactions([("1", item, 5) for item in ("30", "4", "100", "4")]))
    assert [split.items[i] for i in split.sequences[0]] == ["30", "4", "100", "4"]


def test_shape_and_read_only() -> None:
    split = leave_one_out(interactions([("1", str(i), i) for i in range(5)]))
    assert split.targets("test").dtype == split.sequences[0].dtype == np.int32
    with pytest.raises(ValueError, match="read-only"):
        split.sequences[0][0] = 1
    assert split.train_counts().tolist() == [1, 1, 1, 0, 0]


def test_negative_and_mixed_ids() -> None:
    assert ordered_ids(["10", "9", "-1", "9"]) == ["-1", "9", "10"]
    assert ordered_ids(["10", "9", "a"]) == ["10", "9", "a"]


def test_interactions_refuse_what_cannot_be_ordered() -> None:
    frame = pl.DataFrame({"user_id": ["1"], "item_id": ["2"], "timestamp": [float("nan")]})
    with pytest.raises(InputError, match="1 values"):
        Interactions(frame)
    with pytest.raises(InputError, match="not text"):
        Interactions(pl.DataFrame({"user_id": [1], "item_id": ["2"], "timestamp": [1]}))
    with pytest.raises(InputError, match=r"\['timestamp'\]"):
        Interactions(pl.DataFrame({"user_id": ["1"], "item_id": ["2"]}))
    with pytest.raises(InputError, match="not Int64"):
        Interactions(pl.DataFrame({"user_id": ["1"], "item_id": ["2"], "timestamp": ["3"]}))
    extra = Interactions(
        pl.DataFrame({"user_id": ["1"], "item_id": ["2"], "timestamp": [3], "event": ["buy"], "rating": [4]})
    )
    assert extra.context_columns == ("rating",)
    assert extra.num_events == 1
