"""Chosen and rejected by a scorer: best and worst, ties, numbers that are none, and the teacher's view of train."""

import numpy as np
import pytest

from llmrec.errors import InputError
from llmrec.train.preference.answers import Answer
from llmrec.train.preference.config import ScorerConfig
from llmrec.train.preference.contexts import Context, Drops
from llmrec.train.preference.scored import BaselineScorer, scored_rows

CONTEXT = Context("u:1", "u", 1, ("h",), "c", ("l",))


class Fixed:
    """Scores by item; also stands in for the model, whose answers are the scored items in their order."""

    name = "fixed"

    def __init__(self, **scores):
        self.scores = scores

    def ask(self, question, what):
        self.question = question
        return {"u:1": Answer(tuple(self.scores), tuple(-float(i) for i in range(len(self.scores))), None)}

    def __call__(self, histories, candidates):
        return [np.array([self.scores[item] for item in items]) for items in candidates]


def rows(count=1, **scores):
    drops, fixed = Drops(), Fixed(**scores)
    found = scored_rows(ScorerConfig(candidates=8, count=count), [CONTEXT], fixed, fixed, drops)
    assert (fixed.question.search, fixed.question.top_k, fixed.question.num_beams) == ("beam", 8, 8)
    return found, drops


def test_the_best_is_chosen_and_the_worst_are_rejected():
    (row,), drops = rows(count=2, x=0.5, y=3.0, z=-1.0, w=0.1)
    assert (row.chosen, row.chosen_score, row.chosen_source) == ("y", 3.0, "scorer")
    assert (row.rejected, row.scores) == (("z", "w"), (-1.0, 0.1))
    assert row.source == ("scorer", "scorer")
    assert not +drops.items


def test_of_equal_scores_the_models_order_decides():
    (row,), _ = rows(x=1.0, y=1.0, z=0.0, w=0.0)
    assert (row.chosen, row.rejected) == ("x", ("z",))


def test_what_the_user_met_may_be_chosen_but_not_rejected():
    (row,), drops = rows(c=0.0, l=0.1, x=1.0, y=0.5)
    assert (row.chosen, row.rejected) == ("x", ("y",))
    assert drops.items["scorer: the chosen item itself"] == 1
    assert drops.items["scorer: a later train event of the user"] == 1
    (row,), _ = rows(l=2.0, x=1.0)
    assert (row.chosen, row.rejected) == ("l", ("x",))


def test_rows_without_a_difference_or_a_score_are_counted():
    found, drops = rows(x=1.0, y=1.0)
    assert not found
    assert drops.rows == {"the scorer tells no candidates apart": 1}
    found, drops = rows(x=np.nan, y=np.inf)
    assert not found
    assert drops.rows == {"no candidate has a score": 1}
    assert drops.items["scorer: no finite score"] == 2


def test_a_scorer_of_another_length_is_refused():
    fixed = Fixed(x=1.0, y=2.0)
    short = type("Short", (), {"name": "short", "__call__": lambda self, histories, candidates: [np.zeros(1)]})()
    with pytest.raises(InputError, match="The scorer short gave 1 lists of 1 scores; asked for were 1 of 2"):
        scored_rows(ScorerConfig(), [CONTEXT], fixed, short, Drops())


def test_the_teacher_sees_train_alone_and_knows_no_other_item(shop):
    before = shop({"u": "abcde", "v": "abdec", "w": "bcade"})
    teacher = BaselineScorer("itemknn", {}, before.split)
    after = BaselineScorer("itemknn", {}, shop({"u": "abced", "v": "abdce", "w": "bcaed"}).split)
    histories, candidates = [("a",), ("b", "c")], [("b", "c", "new"), ("a", "d")]
    for one, other in zip(teacher(histories, candidates), after(histories, candidates), strict=True):
        np.testing.assert_array_equal(one, other)
    first = teacher(histories, candidates)[0]
    assert np.isnan(first[2])
    assert first[0] > first[1]  # a and b were met together by all, a and c by two
