"""Negatives of the model: what is taken of its answers, self-play by iteration, and asking again after a kill."""

import pytest

from llmrec.train.preference import answers as answers_module
from llmrec.train.preference.answers import Answer, Answers, Question
from llmrec.train.preference.build import make_preferences
from llmrec.train.preference.config import BeamNegatives
from llmrec.train.preference.contexts import Context, Drops
from llmrec.train.preference.model_negatives import Answered, beam_source
from tests.train.preference.conftest import contexts_of


def test_beams_are_the_models_best_answers_but_for_what_the_user_met(tiny_dataset, checkpoint, recommender):
    contexts = contexts_of(tiny_dataset, checkpoint.table, users=6, recent_events=2)
    source = beam_source(BeamNegatives(count=3, num_beams=10), Answers(recommender, contexts))
    for context in contexts:
        found = source.pick(context, set(), Drops())
        plain = recommender.recommend(context.history, 10, num_beams=10)
        wanted = [one for one in plain if one.item_id != context.chosen and one.item_id not in context.later][:3]
        assert [one.item_id for one in found] == [one.item_id for one in wanted]
        assert [one.score for one in found] == pytest.approx([one.score for one in wanted], abs=1e-5)


def test_what_is_not_taken_is_counted():
    context = Context("u:1", "u", 1, ("h",), "c", ("l",))
    answer = Answer(("c", "l", "t", "x", "y", "z"), (-1.0, -2.0, -3.0, -4.0, -5.0, -6.0), None)
    drops = Drops()
    found = Answered("beams", {"u:1": answer}, 2).pick(context, {"t"}, drops)
    assert [(one.item_id, one.score) for one in found] == [("x", -4.0), ("y", -5.0)]
    assert drops.items == {
        "beams: the chosen item itself": 1,
        "beams: a later train event of the user": 1,
        "beams: rejected by a source before it": 1,
    }
    assert drops.missing == {"beams": 0}


def test_self_play_draws_anew_in_each_iteration_and_never_the_history(tiny_dataset, checkpoint, recommender, recipe):
    def rows(**settings):
        config = recipe(negatives={"self_play": {"count": 2, **settings}}, users=12, recent_events=2)
        return make_preferences(config, tiny_dataset, checkpoint, recommender=recommender).rows

    first, again, second = rows(), rows(), rows(iteration=2)
    assert first == again
    assert {row.iteration for row in first} == {1}
    assert {row.iteration for row in second} == {2}
    assert {row.row_id: row.rejected for row in first} != {row.row_id: row.rejected for row in second}
    assert all(set(row.rejected).isdisjoint(row.history) for row in (*first, *second))


def test_rejection_sampling_accepts_what_the_model_prefers_to_the_chosen(tiny_dataset, checkpoint, recommender, recipe):
    config = recipe(negatives={"rejection_sampled": {"count": 3, "draws": 12}}, users=15)
    made = make_preferences(config, tiny_dataset, checkpoint, recommender=recommender)
    for row in made.rows:
        chosen, *rejected = recommender.score(row.history, [row.chosen, *row.rejected])
        assert all(score >= chosen - 1e-5 for score in rejected)
        assert row.scores == pytest.approx(rejected, abs=1e-5)
    assert made.drops.items["rejection_sampled: less probable than the chosen item"] > 0


def test_a_killed_run_asks_only_what_is_left(tiny_dataset, checkpoint, recommender, recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(answers_module, "PART_SIZE", 4)
    config = recipe(negatives={"beams": {"count": 2, "num_beams": 6}}, users=10)
    told = []

    def until_second(what, done, total):
        told.append((what, done, total))
        if done == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_preferences(
            config, tiny_dataset, checkpoint, recommender=recommender, parts=tmp_path, progress=until_second
        )
    assert told == [("beams", 4, 10), ("beams", 8, 10)]
    asked = []
    plain = recommender.recommend_many
    monkeypatch.setattr(
        recommender,
        "recommend_many",
        lambda histories, *words, **more: asked.extend(histories) or plain(histories, *words, **more),
    )
    made = make_preferences(config, tiny_dataset, checkpoint, recommender=recommender, parts=tmp_path)
    assert (len(asked), made.asked, made.resumed) == (2, 10, 8)
    whole = make_preferences(config, tiny_dataset, checkpoint, recommender=recommender)
    assert made.rows == whole.rows


def test_parts_of_another_question_are_not_taken(tiny_dataset, checkpoint, recommender, tmp_path):
    contexts = contexts_of(tiny_dataset, checkpoint.table, users=4, recent_events=1)
    Answers(recommender, contexts, tmp_path).ask(Question("sample", 3, seed=1), "draws")
    for other, question in (
        (contexts, Question("sample", 3, seed=2)),
        (contexts[:3], Question("sample", 3, seed=1)),
    ):
        asked = Answers(recommender, other, tmp_path)
        asked.ask(question, "draws")
        assert asked.resumed == 0
