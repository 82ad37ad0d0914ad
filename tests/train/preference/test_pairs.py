"""Rows of preference data: single pairs of a row, and every problem of a bad one."""

import dataclasses

import pytest

from llmrec.errors import DataError
from llmrec.train.preference.pairs import Pair, PreferenceRow, check_rows

ROW = PreferenceRow(
    row_id="u:2",
    user_id="u",
    position=2,
    history=("1", "2"),
    chosen="3",
    rejected=("4", "5"),
    chosen_source="event",
    source=("random", "beams"),
    weights=(1.0, 0.5),
    scores=(None, -2.5),
)


def test_a_row_gives_its_pairs_in_order():
    assert ROW.pairs == (Pair("3", "4", "random", 1.0), Pair("3", "5", "beams", 0.5))


def test_good_rows_pass():
    check_rows([ROW, dataclasses.replace(ROW, row_id="u:3")], what="good")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"chosen": "4"}, "4 is both chosen and rejected"),
        ({"rejected": (), "source": (), "weights": (), "scores": ()}, "nothing is rejected"),
        ({"rejected": ("4", "4")}, "an item is rejected twice"),
        ({"weights": (1.0,)}, "2 rejected items have 2 sources, 1 weights and 2 scores"),
        ({"weights": (1.0, 0.0)}, "a weight is 0.0"),
        ({"weights": (1.0, float("nan"))}, "a weight is nan"),
        ({"source": ("random", "guess")}, "unknown source guess"),
        ({"position": 3}, "the history has 2 items, its position says 3"),
    ],
)
def test_a_bad_row_is_named(change, told):
    with pytest.raises(DataError, match="row u:2: ") as caught:
        check_rows([dataclasses.replace(ROW, **change)], what="bad.parquet")
    assert told in str(caught.value)


def test_all_problems_come_together_and_many_are_counted():
    bad = dataclasses.replace(ROW, chosen="4")
    with pytest.raises(DataError) as caught:
        check_rows([bad] * 40, what="bad.parquet")
    assert "and 20 more: chosen is rejected" in str(caught.value)
    with pytest.raises(DataError, match="no rows"):
        check_rows([], what="empty.parquet")
