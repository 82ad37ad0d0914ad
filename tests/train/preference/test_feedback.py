"""Graded feedback: who is preferred to whom, weights by the gap, ratings and event types."""

import pytest

from llmrec.errors import InputError
from llmrec.train.preference.build import make_preferences
from llmrec.train.preference.config import FeedbackConfig
from llmrec.train.preference.feedback import Grades
from tests.train.preference.conftest import contexts_of, table_of

RATINGS = {"column": "rating", "levels": [{"at_least": 4, "reward": 2.0}, {"at_least": 1, "reward": 0.5}]}


class OnlyTable:
    """All that feedback reads of a checkpoint."""

    def __init__(self, items):
        self.table = table_of(items)


def rows_of(dataset, recipe, items, **feedback):
    return make_preferences(recipe(feedback={**RATINGS, **feedback}, recent_events=None), dataset, OnlyTable(items))


def test_a_better_rated_event_is_preferred_to_later_worse_rated_ones(shop, recipe):
    #                    a  b  c  d  e  f | x  y
    dataset = shop({"u": "abcdefxy"}, rating=[5, 5, 1, 4, 2, 1, 5, 5])
    made = rows_of(dataset, recipe, "abcdefxy", count=2)
    assert [(row.chosen, row.rejected, row.position) for row in made.rows] == [
        ("b", ("c", "e"), 1),
        ("d", ("e", "f"), 3),
    ]
    assert {row.chosen_source for row in made.rows} == {"feedback"}
    assert {row.weights for row in made.rows} == {(1.0, 1.0)}  # one gap: a mean of 1
    assert made.rows[0].chosen_score == 2.0
    assert made.rows[0].scores == (0.5, 0.5)
    assert made.drops.items["feedback: not of a lower grade"] == 1  # d, between c and e
    assert made.drops.rows["events that may not be chosen"] == 3  # c, e and f: nothing lower behind them


@pytest.mark.parametrize(("weighting", "ratio"), [("inverse_gap", 3 / 4), ("gap", 4 / 3), ("equal", 1.0)])
def test_unmet_items_are_the_lowest_level_and_weights_have_a_mean_of_one(shop, recipe, weighting, ratio):
    dataset = shop({"u": "abcxy"}, rating=[5, 5, 1, 5, 5])
    made = rows_of(dataset, recipe, "abcxyz", unmet=1, weighting=weighting)
    (row,) = made.rows
    assert row.rejected == ("c", "z")
    assert row.source == ("feedback", "random")
    assert row.scores == (0.5, 0.0)  # gaps of 1.5 and 2
    assert row.weights[1] / row.weights[0] == pytest.approx(ratio)
    assert sum(row.weights) == pytest.approx(2)


def test_an_item_met_again_has_its_highest_grade_and_history_is_never_rejected(shop, recipe):
    #                    a  b  c  a  c  d | x  y
    dataset = shop({"u": "abcacdxy"}, rating=[5, 4, 1, 1, 5, 1, 5, 5])
    made = rows_of(dataset, recipe, "abcdxy", count=3)
    assert [(row.chosen, row.rejected) for row in made.rows] == [("b", ("d",)), ("c", ("d",))]
    assert made.drops.items["feedback: a history item or the chosen one again"] > 0


def test_event_types_are_levels_too_and_others_are_left_out(shop, recipe):
    events = ["view", "buy", "view", "hide", "view", "buy", "buy"]
    dataset = shop({"u": "abcdexy"}, event=events)
    levels = [{"value": "buy", "reward": 1.0}, {"value": "view", "reward": 0.2}]
    made = rows_of(dataset, recipe, "abcdexy", column="event", levels=levels, count=4)
    assert [(row.chosen, row.rejected) for row in made.rows] == [("b", ("c", "e"))]
    assert made.drops.items["feedback: an event of no level"] == 1


def test_grades_stand_beside_their_events_where_times_are_tied_and_users_interleaved(tmp_path, shop):
    dataset = shop({"9": "abcd", "10": "bcda"}, rating=[1, 2, 3, 4, 5, 4, 3, 2])
    levels = [{"at_least": grade, "reward": grade} for grade in range(1, 6)]
    grades = Grades(FeedbackConfig(column="rating", levels=levels), dataset)
    assert dataset.split.users == ("9", "10")
    assert [one.tolist() for one in grades.rewards] == [[1, 2, 3, 4], [5, 4, 3, 2]]
    context = contexts_of(dataset, table_of("abcd"), recent_events=1)[0]
    assert grades.of(context) == {"a": 1, "b": 2}  # of train alone


@pytest.mark.parametrize(
    ("feedback", "told"),
    [
        ({"column": "stars"}, "have no such column"),
        ({"column": "event"}, "holds no numbers"),
    ],
)
def test_a_column_that_does_not_grade_is_refused(shop, recipe, feedback, told):
    dataset = shop({"u": "abcxy"}, event=["view"] * 5)
    with pytest.raises(InputError, match=told):
        rows_of(dataset, recipe, "abcxy", **feedback)
