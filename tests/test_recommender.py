"""The recommender: its items exist, are allowed, and are the model's own ranking; its prompts are those of training."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch

from llmrec.data.catalog import Catalog
from llmrec.decode.result import Generated
from llmrec.decode.session import PrefixSession
from llmrec.errors import InputError, ProblemsError
from llmrec.explanation import read_explanation
from llmrec.prompts.answers import Part
from llmrec.prompts.task import Example
from llmrec.recommendation import ItemFilter
from llmrec.recommender import Recommender
from llmrec.sid_vocab.table import SIDTable
from llmrec.testing.checkpoints import tiny_adapter, tiny_base, tiny_parts
from llmrec.title_match import TitleMatcher

HISTORY = ["1", "7", "13", "19"]


@pytest.fixture(scope="module")
def parts():
    return tiny_parts()


@pytest.fixture(scope="module")
def checkpoint(parts, tmp_path_factory):
    return parts.write(tmp_path_factory.mktemp("run") / "cpt")


@pytest.fixture(scope="module")
def recommender(checkpoint):
    return Recommender.load(checkpoint.folder, dtype="float32")


def plain_scores(model, recommender, history):
    """Log-probability of every item by one plain forward each: no trie, no cache."""
    prompt = recommender.prompt(history).input_ids
    sids = recommender.checkpoint.table.sid_token_ids()
    batch = torch.from_numpy(np.concatenate([np.tile(prompt, (len(sids), 1)), sids], axis=1))
    with torch.no_grad():
        logits = model(batch[:, :-1]).logits.log_softmax(-1)
    gained = logits.gather(2, batch[:, 1:, None])[:, :, 0]
    return gained[:, len(prompt) - 1 :].sum(1).double().numpy()


def test_items_are_ordered_by_the_models_log_probability_alone(parts, recommender):
    # The model in memory, before it was written, ranks as the loaded one: write and load change nothing.
    scores = plain_scores(parts.model, recommender, HISTORY)
    scores[[int(item) - 1 for item in HISTORY]] = -np.inf
    best = np.argsort(-scores)[:10]
    answer = recommender.recommend(HISTORY, k=10, search="exact")
    assert [item.item_id for item in answer] == [parts.table.item_ids[row] for row in best]
    np.testing.assert_allclose([item.score for item in answer], scores[best], atol=1e-4)
    assert [item.sid for item in answer] == [parts.table.text(parts.table.item_ids[row]) for row in best]
    assert answer.items[0].title == parts.catalog.title(answer.items[0].item_id)
    wide = recommender.recommend(HISTORY, k=10, num_beams=60)
    assert [item.item_id for item in wide] == [item.item_id for item in answer]


def test_score_reranks_as_plain_forwards_do(parts, recommender):
    wanted = ["30", "2", "30", "60"]
    expected = plain_scores(parts.model, recommender, HISTORY)[[29, 1, 29, 59]]
    np.testing.assert_allclose(recommender.score(HISTORY, wanted), expected, atol=1e-4)
    assert recommender.score(HISTORY, []).shape == (0,)
    with pytest.raises(InputError, match="1 of 2 items have no SID here: '600'"):
        recommender.score(HISTORY, ["60", "600"])


def test_a_prompt_is_what_training_renders_before_the_target(recommender):
    renderer = recommender.renderer
    history = [str(i) for i in range(1, 31)]
    served = recommender.prompt(history).input_ids.tolist()
    trained = renderer.sequence([*history, "31"], targets="last", window=recommender.checkpoint.card.serving.window + 1)
    levels = recommender.checkpoint.table.num_levels
    assert served == trained.input_ids[:-levels].tolist()
    row = Example("behaviour", "behaviour:0:0", {"items": (*history[-8:], "31")}, ("31",))
    assert served == renderer.render(row).input_ids[:-levels].tolist()
    assert served == renderer.render(row, answer=False).input_ids.tolist()


def test_many_histories_at_once_give_what_one_at_a_time_gives(recommender):
    histories = [HISTORY, [], ["60"], [str(i) for i in range(1, 41)], HISTORY]
    together = recommender.recommend_many(histories, k=5)
    for history, answer in zip(histories, together, strict=True):
        alone = recommender.recommend(history, k=5)
        assert [item.item_id for item in answer] == [item.item_id for item in alone]
        np.testing.assert_allclose([i.score for i in answer], [i.score for i in alone], atol=1e-4)
    assert recommender.recommend_many([]) == []


def test_history_and_exclusions_are_never_recommended(recommender):
    long = [str(i) for i in range(1, 41)]  # 32 of them lie beyond the window of 8
    answer = recommender.recommend(long, k=60, exclude=["41", "no such item"])
    assert {item.item_id for item in answer} == {str(i) for i in range(42, 61)}
    assert answer.truncated_items == 32
    again = recommender.recommend(long, k=60, exclude_history=False)
    assert len(again) == 60
    assert again.notes == ()


def test_only_what_a_filter_allows_is_recommended(parts, recommender):
    scores = plain_scores(parts.model, recommender, HISTORY)
    allow, exclude = [str(i) for i in range(10, 30)], ["11", "12"]
    left = sorted(set(allow) - set(exclude) - set(HISTORY), key=lambda item: -scores[int(item) - 1])
    answer = recommender.recommend(HISTORY, k=5, allow=[*allow, "600"], exclude=exclude)
    assert [item.item_id for item in answer] == left[:5]
    every = recommender.recommend(HISTORY, k=50, allow=allow, exclude=exclude)
    assert len(every) == len(left)
    assert any("filtered out" in note for note in every.notes)
    assert not recommender.recommend(HISTORY, k=5, allow=[]).items


def test_each_history_of_a_batch_has_its_own_filter(recommender):
    filters = [ItemFilter(allow=("3", "4", "5")), ItemFilter(exclude=("3",)), ItemFilter()]
    together = recommender.recommend_many([HISTORY] * 3, k=3, filters=filters)
    alone = [recommender.recommend(HISTORY, k=3, allow=one.allow, exclude=one.exclude) for one in filters]
    assert [[item.item_id for item in answer] for answer in together] == [
        [item.item_id for item in answer] for answer in alone
    ]
    with pytest.raises(InputError, match="2 histories, but filters for 3"):
        recommender.recommend_many([HISTORY] * 2, k=3, filters=filters)


def test_a_bonus_moves_items_and_leaves_their_scores(parts, recommender):
    scores = plain_scores(parts.model, recommender, HISTORY)
    low = str(1 + int(np.argmin(scores)))
    bonus = recommender.item_bonus({low: 50.0})
    for search in ("beam", "exact"):
        first = recommender.recommend(HISTORY, k=3, bonus=bonus, search=search, exclude_history=False).items[0]
        assert first.item_id == low
        assert first.score == pytest.approx(scores.min(), abs=1e-4)
    with pytest.raises(InputError, match="no SID"):
        recommender.item_bonus({"600": 1.0})


def test_a_diverse_list_begins_with_more_first_codes(recommender):
    def kinds(diversity):
        answer = recommender.recommend(HISTORY, k=6, num_beams=6, diversity=diversity)
        assert len({item.item_id for item in answer}) == 6
        return len({item.sid.split(">")[0] for item in answer})

    assert kinds(100.0) >= kinds(0.0)
    with pytest.raises(InputError, match="leave one of them out"):
        recommender.recommend(HISTORY, diversity=1.0, search="exact")


def test_prefixes_that_are_kept_change_no_answer(checkpoint, recommender):
    keeping = Recommender.load(checkpoint.folder, dtype="float32", prefix_cache_mb=8)
    for end in range(1, 5):
        for _ in range(2):
            kept, plain = keeping.recommend(HISTORY[:end]), recommender.recommend(HISTORY[:end])
            assert [item.item_id for item in kept] == [item.item_id for item in plain]


def test_an_unknown_engine_is_refused(checkpoint):
    with pytest.raises(InputError, match="engine='cuda' is unknown"):
        Recommender.load(checkpoint.folder, engine="cuda")


def test_k_above_the_catalogue_returns_all_items_and_says_so(recommender):
    for search in ("beam", "exact"):
        answer = recommender.recommend(HISTORY, k=1000, search=search)
        assert {item.item_id for item in answer} == {str(i) for i in range(1, 61)} - set(HISTORY)
        scores = [item.score for item in answer]
        assert scores == sorted(scores, reverse=True)
        assert answer.notes == (
            "k=1000 is more than there is: these are all 56 of 60 items that are neither excluded, "
            "filtered out nor retired",
        )
    everything = [str(i) for i in range(1, 61)]
    assert len(recommender.recommend(everything, k=3)) == 0


def test_unknown_items_are_skipped_and_counted(recommender):
    answer = recommender.recommend(["x", *HISTORY, "y", "x"], k=5)
    assert answer.items == recommender.recommend(HISTORY, k=5).items
    assert answer.unknown_items == ("x", "y", "x")
    assert answer.notes == ("3 of 7 history items have no SID and were skipped: x, y, x",)


def test_a_history_of_unknown_items_only_is_refused_with_near_misses(recommender):
    with pytest.raises(InputError, match="None of the 2 history items") as caught:
        recommender.recommend(["nothing", "601"])
    assert "60 (" in caught.value.hint
    with pytest.raises(InputError, match="None of the 1 history items") as caught:
        recommender.explain(["zzz"], "1")
    assert "ids look like 1, 2, 3" in caught.value.hint


def test_an_empty_history_gives_the_prior(parts, recommender):
    answer = recommender.recommend([], k=3, search="exact")
    scores = plain_scores(parts.model, recommender, [])
    assert [int(item.item_id) - 1 for item in answer] == np.argsort(-scores)[:3].tolist()


def test_normalisation_is_named_and_may_be_chosen(recommender):
    vocab, legal = recommender.recommend(HISTORY, k=60), recommender.recommend(HISTORY, k=60, normalise="legal")
    assert (vocab.normalise, legal.normalise) == ("vocab", "legal")
    assert np.exp([item.score for item in legal]).sum() == pytest.approx(1, abs=1e-4)
    assert np.exp([item.score for item in vocab]).sum() < 0.99
    with pytest.raises(InputError, match="one of vocab, level, legal"):
        recommender.recommend(HISTORY, normalise="softmax")


def test_senseless_numbers_are_refused(recommender):
    with pytest.raises(InputError, match="k=0"):
        recommender.recommend(HISTORY, k=0)
    with pytest.raises(InputError, match="num_beams=3, top_k=10"):
        recommender.recommend(HISTORY, k=10, num_beams=3)


def test_a_descendant_table_recommends_new_items_and_no_retired_ones(parts, checkpoint):
    old = parts.table
    status = np.zeros(61, np.uint8)
    status[[4, 9]] = 1
    new = SIDTable(
        item_ids=(*old.item_ids, "new"),
        codes=np.concatenate([old.codes, [[2, 3, 2]]]),
        codebook_sizes=old.codebook_sizes,
        has_suffix=True,
        status=status,
        token_ids=old.token_ids,
        codebooks=old.codebooks,
        parent=old.rows_fingerprint,
    )
    recommender = Recommender.load(checkpoint.folder, dtype="float32", table=new)
    answer = recommender.recommend(["10"], k=100)
    found = {item.item_id: item for item in answer}
    assert found.keys() == {*old.item_ids, "new"} - {"5", "10"}
    assert found["new"].title == "new"
    assert recommender.score([], ["5"])[0] < 0  # retired items still have a score and a place in histories
    row = {"item_id": "new", "title": "The New One", "genres": ["Drama"], "year": "2020"}
    frame = pl.concat([parts.catalog.frame, pl.DataFrame([row], schema=parts.catalog.frame.schema)])
    named = Recommender.load(checkpoint.folder, table=new, catalog=Catalog(frame, ("title",), ("genres", "year")))
    assert named.titles.title("new") == "The New One"


def test_an_adapter_ranks_as_the_model_that_was_trained(tmp_path):
    base = tiny_base(tmp_path / "base", tied=False)
    adapter, trained = tiny_adapter(tmp_path / "sft", base)
    loaded = Recommender.load(adapter.folder, dtype="float32")
    scores = plain_scores(trained, loaded, HISTORY)
    answer = loaded.recommend(HISTORY, k=60, exclude_history=False, search="exact")
    np.testing.assert_allclose([item.score for item in answer], np.sort(scores)[::-1], atol=1e-3)
    merged = Recommender(adapter.export_merged(tmp_path / "merged"))
    assert [i.item_id for i in merged.recommend(HISTORY)] == [i.item_id for i in loaded.recommend(HISTORY)]


# -- explanations ------------------------------------------------------------------------------------------------------


def test_explain_writes_behind_the_explain_tasks_prompt_and_names_what_was_shown(recommender, monkeypatch):
    seen = []
    plain = PrefixSession.__init__

    def watched(self, model, prompts, **settings):
        seen.append(list(prompts[0]))
        plain(self, model, prompts, **settings)

    monkeypatch.setattr(PrefixSession, "__init__", watched)
    found = recommender.explain(["1", "7", "gone"], "40", max_new_tokens=60)
    expected = Example("explain", "", {"history": ("1", "7"), "item": ("40",)})
    assert seen == [recommender.renderer.render(expected, answer=False).input_ids.tolist()]
    assert set(found.named_items) <= {"1", "7", "40"}
    assert not found.unknown_sids
    assert found.unknown_items == ("gone",)


def test_an_answer_of_another_engine_is_read_the_same_way(recommender, monkeypatch):
    table = recommender.checkpoint.table
    codec = recommender.renderer.codec
    sid = {item: table.sid_token_ids()[table.row(item)].tolist() for item in ("1", "7", "40")}
    answer = [*codec.text("You chose "), *sid["7"], *codec.text(' and "Nosuch Film". '), *sid["40"], codec.eos_id]
    monkeypatch.setattr(recommender, "_written", lambda *_: Generated(np.array(answer), "stop"))
    found = recommender.explain(["1", "7", "gone"], "40")
    titles = recommender.titles.title
    assert found.text == f'You chose “{titles("7")}” and "Nosuch Film". “{titles("40")}”'
    assert found.named_items == ("7", "40")
    assert found.named_titles_unknown == ("Nosuch Film",)
    assert found.unknown_items == ("gone",)
    assert found.finished


def test_explain_generates_greedily_within_its_length(recommender):
    found = recommender.explain(HISTORY, "40", max_new_tokens=12)
    assert found == recommender.explain(HISTORY, "40", max_new_tokens=12)
    assert found.item_id == "40"
    with pytest.raises(InputError, match="no SID here: '4000'"):
        recommender.explain(HISTORY, "4000")
    with pytest.raises(InputError, match="no history to explain from"):
        recommender.explain([], "40")


def test_what_an_explanation_names_is_checked():
    titles = {"a": "Alien", "b": "Blade Runner", "c": "Casablanca"}
    parts = [
        Part("Like "),
        Part("<a_1>", True, ("b", "a")),
        Part(', “Blade Runner,” "Casablanka", «Dune»; "casablanca" or '),
        Part("<a_2>", True, ()),
    ]
    found = read_explanation(parts, "c", ["a"], titles, finished=False)
    assert found.named_items == ("a",)  # of items that share a SID, the one of the history
    assert found.named_titles_unknown == ("Casablanka", "Dune")
    assert found.unknown_sids == ("<a_2>",)
    assert found.text.startswith("Like “Alien”, “Blade Runner,”")


# -- titles ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def films():
    titles = ["Star Wars (1977)", "Toy Story 2 (1999)", "Toy Story (1995)", "Matrix, The (1999)", "The Godfather", "77"]
    frame = pl.DataFrame({"item_id": [f"i{n}" for n in range(5)] + ["77"], "title": titles})
    return TitleMatcher(Catalog(frame), frame["item_id"].to_list())


@pytest.mark.parametrize(
    ("word", "item_id"),
    [
        ("i3", "i3"), ("77", "77"), ("star wars", "i0"), ("STAR WARS 1977", "i0"), ("toy story", "i2"),
        ("the matrix", "i3"),        ("godfather", "i4"),
        ("matrix", "i3"),
        ("toy stroy 2", "i1"), ("Godfahter, the", "i4"),
    ],
)  # fmt: skip
def test_words_find_items(films, word, item_id):
    (match,) = films.resolve([word])
    assert match.item_id == item_id
    assert match.is_id == (word == item_id)


def test_words_that_are_near_to_nothing_are_refused_together(films):
    with pytest.raises(ProblemsError) as caught:
        films.resolve(["star wars", "the", "qqqqqq", "i2"])
    assert len(caught.value.problems) == 2
    assert caught.value.problems[0].startswith("'the': nearest are ")
    assert caught.value.problems[0].count("(i") == 3
    assert "2 of the 4 given are neither" in str(caught.value)


def test_a_replaced_model_is_used(checkpoint, parts):
    model = tiny_parts(seed=5).model
    own = Recommender(checkpoint, parts.model).recommend(HISTORY, k=60)
    other = Recommender(replace(checkpoint), model).recommend(HISTORY, k=60)
    assert [item.item_id for item in own] != [item.item_id for item in other]
