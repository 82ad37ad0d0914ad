"""OpenAI's own client, unchanged, in process; and llmrec's, over a real socket."""

import httpx
import pytest
from pydantic import SecretStr

from llmrec.serve.settings import ServeSettings

openai = pytest.importorskip("openai")
KEY = "k" * 24


def test_the_openai_client_works_unchanged(serve, recommender):
    settings = ServeSettings(name="films", host="0.0.0.0", api_key=SecretStr(KEY))
    messages = [{"role": "user", "content": "What next?"}]
    ask = {"model": "films", "temperature": 1.5, "max_tokens": 40}

    async def test(http):
        client = openai.AsyncOpenAI(
            base_url="http://localhost/v1", api_key=KEY, max_retries=0,
            http_client=httpx.AsyncClient(transport=httpx.ASGITransport(http.app)),
        )  # fmt: skip
        models = [model.id async for model in client.models.list()]
        for seed in range(30):  # until the random model names an item
            ask["seed"] = seed
            whole = await client.chat.completions.create(messages=messages, **ask)
            if whole.choices[0].message.items:
                break
        pieces = [chunk async for chunk in await client.chat.completions.create(messages=messages, stream=True, **ask)]
        # What came goes back as it came: the next turn of the conversation.
        more = [*messages, whole.choices[0].message.model_dump(), {"role": "user", "content": "And then?"}]
        second = await client.chat.completions.create(messages=more, **ask)
        completion = await client.completions.create(model="films", prompt="The film", max_tokens=8)
        with pytest.raises(openai.NotFoundError, match="no model 'gpt-4'"):
            await client.chat.completions.create(model="gpt-4", messages=messages)
        with pytest.raises(openai.BadRequestError, match="max_tokens"):
            await client.chat.completions.create(messages=messages, **{**ask, "max_tokens": 10**6})
        other = client.with_options(api_key="wrong")
        with pytest.raises(openai.AuthenticationError):
            await other.models.list()
        return models, whole, pieces, second, completion

    models, whole, pieces, second, completion = serve(test, settings)
    assert models == ["films"]
    message = whole.choices[0].message
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == message.content
    assert pieces[-1].choices[0].finish_reason == whole.choices[0].finish_reason
    assert message.items  # our field besides OpenAI's, as the client keeps what it does not know
    for item in message.items:
        assert message.content[item["start"] : item["end"]] == recommender.titles.title(item["item_id"])
    assert second.usage.prompt_tokens > whole.usage.prompt_tokens + whole.usage.completion_tokens
    assert completion.choices[0].text
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens


def test_an_overloaded_server_is_asked_again_by_the_openai_client(serve, monkeypatch):
    """429 with Retry-After is what the client's own retries understand."""
    from llmrec.serve.engine import EngineLoop, Overloaded

    submit, refused = EngineLoop.submit_stream, []

    def overloaded(self, job):
        if not refused:
            refused.append(job)
            raise Overloaded(0.01)
        submit(self, job)

    monkeypatch.setattr(EngineLoop, "submit_stream", overloaded)

    async def test(http):
        client = openai.AsyncOpenAI(
            base_url="http://localhost/v1", api_key="none", max_retries=1,
            http_client=httpx.AsyncClient(transport=httpx.ASGITransport(http.app)),
        )  # fmt: skip
        return await client.completions.create(model="llmrec", prompt="The", max_tokens=2)

    assert serve(test).choices[0].finish_reason in ("length", "stop")
    assert len(refused) == 1
