"""The recommender's endpoints: they answer as the library does, and say what they cannot do."""

import asyncio

import numpy as np
import pytest

from llmrec.decode.text import TextStream
from llmrec.serve.settings import Limits, ServeSettings

HISTORY = ["1", "7", "13"]


def test_a_list_is_the_librarys_own(serve, recommender):
    async def test(http):
        answer = await http.post("/v1/recommendations", json={"history": HISTORY, "k": 5, "exclude": ["19"]})
        assert answer.status_code == 200, answer.text
        return answer.json()

    body = serve(test)
    expected = recommender.recommend(HISTORY, 5, exclude=["19"])
    assert [item["item_id"] for item in body["items"]] == [item.item_id for item in expected]
    np.testing.assert_allclose([item["score"] for item in body["items"]], [item.score for item in expected], atol=1e-5)
    first = expected.items[0]
    assert (body["items"][0]["title"], body["items"][0]["sid"]) == (first.title, first.sid)
    assert (body["search"], body["normalise"], body["num_beams"]) == ("beam", "vocab", 10)
    assert body["catalog_version"] == recommender.checkpoint.table.rows_fingerprint


def test_lists_that_arrive_together_run_together_and_equal_those_that_run_alone(serve, recommender):
    histories = [[str(i), str(i + 6)] for i in range(1, 31)]

    async def test(http):
        calls = [http.post("/v1/recommendations", json={"history": one, "k": 4}) for one in histories]
        answers = await asyncio.gather(*calls)
        metrics = (await http.get("/metrics")).text
        return [answer.json() for answer in answers], metrics

    answers, metrics = serve(test, ServeSettings(batch_wait_ms=50))
    for history, answer in zip(histories, answers, strict=True):
        expected = recommender.recommend(history, 4)
        assert [item["item_id"] for item in answer["items"]] == [item.item_id for item in expected]
    assert 'llmrec_jobs_total{kind="ListWork"} 30.0' in metrics
    batches = next(line for line in metrics.splitlines() if line.startswith('llmrec_batch_size_count{kind="ListWork"}'))
    assert float(batches.split()[-1]) < 10


def test_scores_are_the_librarys_own(serve, recommender):
    async def test(http):
        calls = [http.post("/v1/score", json={"history": [h], "items": ["30", "2", "30"]}) for h in HISTORY]
        none = http.post("/v1/score", json={"items": []})
        return [answer.json() for answer in await asyncio.gather(*calls, none)]

    *answers, none = serve(test)
    for item, answer in zip(HISTORY, answers, strict=True):
        expected = recommender.score([item], ["30", "2", "30"])
        np.testing.assert_allclose([one["score"] for one in answer["scores"]], expected, atol=1e-5)
        assert [one["item_id"] for one in answer["scores"]] == ["30", "2", "30"]
    assert none["scores"] == []


def test_items_and_models_tell_what_is_served(serve, recommender):
    async def test(http):
        item = (await http.get("/v1/items/7")).json()
        models = (await http.get("/v1/models")).json()
        missing = await http.get("/v1/items/777")
        return item, models, missing

    item, models, missing = serve(test, ServeSettings(name="films"))
    assert item["title"] == recommender.titles.title("7")
    assert item["attributes"]["genres"] == ["Drama"]
    assert item["retired"] is False
    assert models["data"][0]["id"] == "films"
    assert models["data"][0]["attributes"] == ["genres", "year"]
    assert missing.status_code == 404
    assert "close ids: 7 (" in missing.json()["error"]["hint"]


@pytest.mark.parametrize(
    ("path", "body", "status", "says"),
    [
        ("recommendations", {"history": ["nope"]}, 400, "None of the 1 history items has a SID"),
        ("recommendations", {"history": [], "k": 0}, 400, "k: Input should be greater than or equal to 1"),
        ("recommendations", {"history": [], "k": -1}, 400, "k: Input should be greater than or equal to 1"),
        ("recommendations", {"history": [], "k": 10**9}, 400, "k: 1000000000 is more than this server's limit of 100"),
        ("recommendations", {"history": ["1"] * 100_000}, 400, "history: List should have at most 10000 items"),
        ("recommendations", {"history": ["1"] * 1_001}, 400, "history: 1001 items are more than this server's limit"),
        ("recommendations", {"history": [], "num_beams": 10**6}, 400, "limit of 200"),
        ("recommendations", {"history": [], "num_beams": 3, "k": 5}, 400, "a beam of 3 cannot find k=5"),
        ("recommendations", {"history": [50]}, 400, "history.0: Input should be a valid string"),
        ("recommendations", {"histroy": ["1"]}, 400, "histroy: Extra inputs are not permitted"),
        ("recommendations", {"history": ["\ud800"]}, 400, "history.0"),
        ("recommendations", b'{"history": ["1"', 400, "The body is not JSON"),
        ("recommendations", b"\xff\xfe", 400, ""),
        ("recommendations", b"[" * 100_000, 400, ""),
        ("recommendations", b"", 400, ""),
        ("recommendations", b" " * 2_100_000, 413, "larger than 2,000,000 bytes"),
        ("score", {"history": ["1"], "items": ["5", "nope"]}, 400, "1 of 2 items have no SID here: 'nope'"),
        ("score", {"history": ["nope"], "items": ["5"]}, 400, "None of the 1 history items"),
        ("score", {"history": ["1"], "items": ["5"] * 1001}, 400, "items: 1001 items are more"),
    ],
)
def test_bad_input_gets_a_clear_error_and_the_server_lives_on(serve, path, body, status, says):
    async def test(http):
        how = {"content": body, "headers": {"Content-Type": "application/json"}} if isinstance(body, bytes) else {}
        if isinstance(body, dict):
            import json

            how = {"content": json.dumps(body).encode(), "headers": {"Content-Type": "application/json"}}
        answer = await http.post(f"/v1/{path}", **how)
        after = await http.post("/v1/recommendations", json={"history": ["1"]})
        return answer, after

    answer, after = serve(test)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code", "hint"}
    assert error["type"] == "invalid_request_error"
    assert says in error["message"]
    assert after.status_code == 200


def test_one_bad_history_spoils_no_other_of_its_batch(serve):
    histories = [["1"], ["nope"], ["2"], ["3"]]

    async def test(http):
        calls = [http.post("/v1/recommendations", json={"history": history}) for history in histories]
        return [answer.status_code for answer in await asyncio.gather(*calls)]

    assert serve(test, ServeSettings(batch_wait_ms=100)) == [200, 400, 200, 200]


def test_more_items_than_there_are_come_back_with_a_note(serve):
    async def test(http):
        return (await http.post("/v1/recommendations", json={"history": ["1"], "k": 80})).json()

    body = serve(test, ServeSettings(limits=Limits(k=80)))
    assert len(body["items"]) == 59
    assert "these are all 59 of 60" in body["notes"][0]


# -- filters, diversity, explanations --------------------------------------------------------------------------------


def post(serve, body, settings=None):
    async def test(http):
        return await http.post("/v1/recommendations", json=body)

    return serve(test, settings)


def found_ids(answer):
    assert answer.status_code == 200, answer.text
    return [item["item_id"] for item in answer.json()["items"]]


@pytest.mark.parametrize(
    ("filters", "keeps"),
    [
        ([{"attribute": "genres", "any_of": ["Drama"]}], lambda i: i % 6 == 0),
        ([{"attribute": "genres", "any_of": ["Drama", "Comedy"]}], lambda i: i % 6 in (0, 1)),
        ([{"attribute": "genres", "none_of": ["Drama"]}], lambda i: i % 6 != 0),
        ([{"attribute": "year", "at_least": 1960, "at_most": 1969}], lambda i: 10 <= i < 20),
        (
            [{"attribute": "year", "at_most": 1969.5}, {"attribute": "genres", "any_of": ["Western"]}],
            lambda i: i < 20 and i % 6 == 3,
        ),
    ],
)
def test_filters_leave_exactly_the_items_that_fulfil_them(serve, filters, keeps):
    answer = post(serve, {"history": ["60"], "k": 60, "filters": filters, "search": "exact"})
    assert sorted(map(int, found_ids(answer))) == [i + 1 for i in range(60) if keeps(i) and i != 59]


def test_filters_and_allowed_items_hold_together_and_one_batch_has_many_filters(serve, recommender):
    bodies = [
        {"history": ["1"], "k": 3, "allow": ["2", "3", "4", "nope"], "exclude": ["3"]},
        {"history": ["1"], "k": 3, "allow": ["2", "3", "4"], "filters": [{"attribute": "year", "at_least": 1952}]},
        {"history": ["1"], "k": 3},
    ]

    async def test(http):
        return await asyncio.gather(*(http.post("/v1/recommendations", json=body) for body in bodies))

    first, second, third = serve(test, ServeSettings(batch_wait_ms=50))
    assert sorted(found_ids(first)) == ["2", "4"]
    assert "1 of 4 allowed items have no SID" in first.json()["notes"]
    assert sorted(found_ids(second)) == ["3", "4"]
    assert found_ids(third) == [item.item_id for item in recommender.recommend(["1"], 3)]


@pytest.mark.parametrize(
    "nothing",
    [
        {"filters": [{"attribute": "genres", "any_of": ["Opera"]}]},
        {"filters": [{"attribute": "year", "at_least": 3000}]},
        {"allow": []},
        {"allow": ["nope"]},
        {"allow": ["2"], "exclude": ["2"]},
        {"allow": ["1"]},
    ],
)
@pytest.mark.parametrize("search", ["beam", "exact"])
def test_filters_that_leave_nothing_give_an_empty_list_with_a_note(serve, nothing, search):
    answer = post(serve, {"history": ["1"], "k": 5, "search": search, **nothing})
    assert found_ids(answer) == []
    assert "these are all 0 of 60 items" in answer.json()["notes"][0]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"filters": [{"attribute": "genre", "any_of": ["Drama"]}]}, "The catalogue has no attribute 'genre'"),
        ({"filters": [{"attribute": "genres", "at_least": 3}]}, "has no numbers to compare with"),
        ({"filters": [{"attribute": "genres"}]}, "give at least one of any_of"),
        ({"diversity": 1.0, "search": "exact"}, "A diverse list comes from a beam search"),
        ({"diversity": -1}, "diversity"),
        ({"explain": 4, "history": ["1"]}, "explain: 4 is more than this server's limit of 3"),
        ({"explain": 1}, "There is no history to explain from."),
    ],
)
def test_filters_that_cannot_be_meant_are_told(serve, body, says):
    answer = post(serve, body)
    assert answer.status_code == 400
    assert says in answer.json()["error"]["message"]


def test_a_diverse_list_is_the_librarys_own(serve, recommender):
    answer = post(serve, {"history": HISTORY, "k": 6, "diversity": 2.0})
    expected = [item.item_id for item in recommender.recommend(HISTORY, 6, diversity=2.0)]
    assert found_ids(answer) == expected
    assert expected != [item.item_id for item in recommender.recommend(HISTORY, 6)]


def test_the_best_items_are_explained_as_the_library_does(serve, recommender):
    answer = post(serve, {"history": HISTORY, "k": 4, "explain": 2})
    items = answer.json()["items"]
    assert [item["explanation"] for item in items[2:]] == [None, None]
    for item in items[:2]:
        expected = recommender.explain(HISTORY, item["item_id"])
        assert item["explanation"] == {
            "text": expected.text,
            "named_items": list(expected.named_items),
            "unknown_names": [*expected.named_titles_unknown, *expected.unknown_sids],
            "outside_history": list(expected.named_outside_history),
            "untrue_attributes": list(expected.untrue_attributes),
            "finished": expected.finished,
        }


def test_what_an_explanation_says_untruly_is_told(serve, recommender, monkeypatch):
    renderer = recommender.renderer
    lie = [*renderer.codec.text("It has the genres Opera, like "), *sid_of(recommender, "2"), *renderer.codec.text(".")]
    monkeypatch.setattr(TextStream, "token_ids", lie)
    answer = post(serve, {"history": HISTORY, "k": 1, "explain": 1, "exclude": ["2"]})
    (item,) = answer.json()["items"]
    assert item["explanation"]["untrue_attributes"] == ["genres: Opera"]
    assert item["explanation"]["outside_history"] == ["2"]


def sid_of(recommender, item_id):
    table = recommender.checkpoint.table
    return table.sid_token_ids()[table.row(item_id)].tolist()


def test_an_engine_that_writes_no_steps_explains_in_one_go(serve, recommender, monkeypatch):
    class Other:
        pass

    monkeypatch.setattr("llmrec.serve.explaining.TorchBackend", Other)
    answer = post(serve, {"history": HISTORY, "k": 1, "explain": 1})
    (item,) = answer.json()["items"]
    assert item["explanation"]["text"] == recommender.explain(HISTORY, item["item_id"]).text
