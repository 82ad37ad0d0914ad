"""Behaviour vectors: from train alone, to the bit, and in the order of the catalogue."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from llmrec.data.interactions import Interactions
from llmrec.data.split import Split, leave_one_out
from llmrec.errors import InputError
from llmrec.sid_vocab.behaviour_vectors import adjacent_pairs, behaviour_signal, behaviour_vectors
from llmrec.testing.worlds import tiny_events, tiny_items

IDS = [item["item_id"] for item in tiny_items()]
SOURCES = [("cooccurrence", 1), ("sasrec", 3)]


def split_of(events: list[tuple[str, str, int]]) -> Split:
    columns = dict(zip(("user_id", "item_id", "timestamp"), map(list, zip(*events, strict=True)), strict=True))
    return leave_one_out(Interactions(pl.DataFrame(columns).with_columns(weight=pl.lit(1.0))))


def vectors_of(split: Split, source: str, epochs: int = 1, item_ids: list[str] = IDS) -> np.ndarray:
    return behaviour_vectors(split.train(), split.items, item_ids, source=source, size=8, epochs=epochs)


@pytest.mark.parametrize(("source", "epochs"), SOURCES)
def test_no_valid_or_test_event_moves_a_vector(source: str, epochs: int) -> None:
    events = tiny_events()
    expected = vectors_of(split_of(events), source, epochs)
    last = {user: time for user, _, time in events}
    rng = np.random.default_rng(0)
    changed = [
        # other targets, some of which no user had met before: the evaluation catalogue grows
        (user, f"new-{rng.integers(30)}" if last[user] - time < 2 else item, time)
        for user, item, time in events
    ]
    split = split_of(changed)
    assert len(split.items) > len(split_of(events).items)
    np.testing.assert_array_equal(vectors_of(split, source, epochs), expected)
    swapped = replace(split, sequences=tuple(np.concatenate([s[:-2], s[-1:], s[-2:-1]]) for s in split.sequences))
    np.testing.assert_array_equal(vectors_of(swapped, source, epochs), expected)


@pytest.mark.parametrize(("source", "epochs"), SOURCES)
def test_a_train_event_does_move_them(source: str, epochs: int) -> None:
    events = tiny_events()
    expected = vectors_of(split_of(events), source, epochs)
    first = {}
    for row, (user, _, _) in enumerate(events):
        first.setdefault(user, row)
    row = first["1"]
    changed = [*events[:row], ("1", "42", events[row][2]), *events[row + 1 :]]
    assert not np.array_equal(vectors_of(split_of(changed), source, epochs), expected)


@pytest.mark.parametrize(("source", "epochs"), SOURCES)
def test_rows_follow_the_catalogue(source: str, epochs: int) -> None:
    split = split_of(tiny_events())
    counts = dict(zip(split.items, split.train_counts().tolist(), strict=True))
    asked = [*IDS[::-1], "never seen"]
    vectors = vectors_of(split, source, epochs, asked)
    assert vectors.shape == (61, 8)
    assert vectors.dtype == np.float32
    lengths = np.linalg.norm(vectors, axis=1)
    np.testing.assert_allclose(lengths, [float(counts.get(item_id, 0) > 0) for item_id in asked], atol=1e-5)
    np.testing.assert_array_equal(vectors_of(split, source, epochs)[::-1], vectors[:-1])
    np.testing.assert_array_equal(vectors_of(split, source, epochs, asked[5:9]), vectors[5:9])


def test_cooccurrence_puts_items_of_the_same_users_together() -> None:
    split = split_of(tiny_events())
    vectors = vectors_of(split, "cooccurrence")
    genre = np.arange(60) % 6
    likeness = vectors @ vectors.T
    same = genre[:, None] == genre[None]
    assert likeness[same].mean() > likeness[~same].mean() + 0.2


def test_small_worlds_and_none() -> None:
    train = [np.array([0, 1]), np.array([1, 2])]
    assert behaviour_vectors(train, ["a", "b", "c"], ["c", "a"], size=64).shape == (2, 2)
    with pytest.raises(InputError, match="no train event"):
        behaviour_vectors([np.array([], np.int32)], ["a"], ["a"])
    with pytest.raises(InputError, match="no next item to learn"):
        behaviour_vectors([np.array([0])], ["a"], ["a"], source="sasrec", epochs=1)


def test_pairs_are_neighbours_of_train_in_rows_of_the_catalogue() -> None:
    train = [np.array([0, 1, 1, 2]), np.array([2]), np.array([1, 3, 0]), np.array([], np.int64)]
    pairs = adjacent_pairs(train, ["a", "b", "c", "gone"], ["c", "b", "a", "new"])
    assert pairs.tolist() == [[2, 1], [1, 0]]  # no repeat, nothing with an item that the catalogue lacks
    assert adjacent_pairs([], ["a"], ["a"]).shape == (0, 2)


def test_a_signal_goes_with_its_catalogue_and_no_target_moves_it() -> None:
    events = tiny_events()
    split = split_of(events)
    signal = behaviour_signal(split.train(), split.items, IDS, size=8)
    signal.require(60)
    assert signal.pairs.shape[1] == 2
    assert signal.known.sum() == len({item for sequence in split.train() for item in sequence.tolist()})
    last = {user: time for user, _, time in events}
    other = split_of([(user, "1" if last[user] - time < 2 else item, time) for user, item, time in events])
    again = behaviour_signal(other.train(), other.items, IDS, size=8)
    np.testing.assert_array_equal(again.pairs, signal.pairs)
    np.testing.assert_array_equal(again.vectors, signal.vectors)
