"""What `/docs` shows: examples that work as they are, errors as they come."""

import json

import pytest
from pydantic import SecretStr

from llmrec.serve.app import create_app
from llmrec.serve.settings import ServeSettings

JSON = {"Content-Type": "application/json"}


def test_every_example_of_the_page_works(serve):
    async def test(http):
        schema = (await http.get("/openapi.json")).json()
        answers = []
        for path, methods in schema["paths"].items():
            for method, operation in methods.items():
                body = operation.get("requestBody")
                if method != "post" or path == "/admin/catalog":
                    continue
                name = body["content"]["application/json"]["schema"]["$ref"].split("/")[-1]
                examples = schema["components"]["schemas"][name]["examples"]
                for example in examples:
                    # The page's ids are MovieLens's; the tiny world has 60 items.
                    text = json.dumps(example).replace("181", "18").replace("172", "17")
                    answers.append((path, await http.post(path, content=text, headers=JSON)))
        return answers

    answers = serve(test)
    assert {path for path, _ in answers} == {
        "/v1/recommendations",
        "/v1/score",
        "/v1/chat/completions",
        "/v1/completions",
    }
    for path, answer in answers:
        assert answer.status_code == 200, (path, answer.text)


def test_the_page_names_the_errors_and_the_key_and_nothing_that_does_not_come(recommender):
    app = create_app(recommender, ServeSettings(host="0.0.0.0", api_key=SecretStr("k" * 24)))
    schema = app.openapi()
    for methods in schema["paths"].values():
        for operation in methods.values():
            assert "422" not in operation["responses"]
            assert {"400", "401", "429"} <= set(operation["responses"])
            assert operation["security"] == [{"key": []}]
            assert operation["summary"]
    assert "HTTPValidationError" not in schema["components"]["schemas"]
    for name, described in schema["components"]["schemas"].items():
        assert described.get("description"), name


@pytest.mark.parametrize("path", ["/docs", "/openapi.json", "/health"])
def test_the_page_is_open_where_nothing_else_is(serve, path):
    async def test(http):
        return await http.get(path, headers={"Host": "anything.example"})

    assert serve(test, ServeSettings(host="0.0.0.0", api_key=SecretStr("k" * 24))).status_code == 200
