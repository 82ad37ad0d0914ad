"""Keys, addresses, sizes, overload, clients that leave: what a server refuses, and how."""

import asyncio
import threading

import httpx
import pytest
from pydantic import SecretStr

from llmrec.errors import InputError
from llmrec.serve.app import create_app
from llmrec.serve.settings import Limits, ServeSettings, read_keys
from llmrec.serve.works import ListWork

KEY, ADMIN = "k" * 24, "a" * 24


def bearer(key):
    return {"Authorization": f"Bearer {key}"}


def test_other_machines_get_in_with_a_key_only(recommender):
    for host in ("0.0.0.0", "::", "192.168.1.5", "my-host"):
        with pytest.raises(InputError, match="can be reached from other machines") as refused:
            create_app(recommender, ServeSettings(host=host))
        assert "LLMREC_API_KEY" in refused.value.hint
    for host in ("127.0.0.1", "127.0.0.9", "::1", "localhost"):
        ServeSettings(host=host).require_key()
    with pytest.raises(InputError, match="fewer than 16 characters"):
        ServeSettings(host="0.0.0.0", api_key=SecretStr("short")).require_key()
    ServeSettings(host="0.0.0.0", api_key=SecretStr(KEY)).require_key()


def test_keys_come_from_the_environment_or_a_file(tmp_path):
    file = tmp_path / "key"
    file.write_text(f"{KEY}\n")
    assert read_keys(None, {}) == (None, None)
    assert read_keys(file, {"LLMREC_ADMIN_KEY": ADMIN}) == (SecretStr(KEY), SecretStr(ADMIN))
    assert read_keys(None, {"LLMREC_API_KEY": f" {KEY} "})[0].get_secret_value() == KEY
    with pytest.raises(InputError, match="different keys"):
        read_keys(file, {"LLMREC_API_KEY": "other"})
    with pytest.raises(InputError, match="cannot be read"):
        read_keys(tmp_path / "none", {})
    file.write_text(" \n")
    with pytest.raises(InputError, match="is empty"):
        read_keys(file, {})


def test_a_key_opens_everything_but_the_admins(serve):
    settings = ServeSettings(host="0.0.0.0", api_key=SecretStr(KEY), admin_key=SecretStr(ADMIN))

    async def test(http):
        get = {path: (await http.get(path)).status_code for path in ("/health", "/docs", "/metrics", "/v1/models")}
        wrong = [
            (await http.get("/v1/models", headers=headers)).status_code
            for headers in (bearer("wrong"), bearer(""), {"Authorization": KEY}, {"Authorization": f"Basic {KEY}"})
        ]
        right = [(await http.get(path, headers=bearer(KEY))).status_code for path in ("/metrics", "/v1/models")]
        admin = [
            (await http.post("/admin/catalog", json={"table": "/none"}, headers=headers)).status_code
            for headers in ({}, bearer(KEY), bearer(ADMIN))
        ]
        refusal = (await http.get("/v1/models")).json()["error"]
        return get, wrong, right, admin, refusal

    get, wrong, right, admin, refusal = serve(test, settings)
    assert get == {"/health": 200, "/docs": 200, "/metrics": 401, "/v1/models": 401}
    assert wrong == [401] * 4
    assert right == [200, 200]
    assert admin == [401, 401, 400]
    assert refusal["type"] == "authentication_error"


def test_without_a_key_admin_is_closed_and_other_names_are_refused(serve):
    async def test(http):
        admin = await http.post("/admin/catalog", json={"table": "/none"})
        names = {
            name: (await http.get("/v1/models", headers={"Host": name})).status_code
            for name in (
                "localhost",
                "localhost:8000",
                "127.0.0.1:80",
                "[::1]:8000",
                "evil.example",
                "127.0.0.1.nip.io",
            )
        }
        crossed = await http.get("/v1/models", headers={"Origin": "https://evil.example"})
        return admin, names, crossed.headers

    admin, names, headers = serve(test)
    assert admin.status_code == 403
    assert list(names.values()) == [200, 200, 200, 200, 421, 421]
    assert "access-control-allow-origin" not in headers


def test_a_body_is_refused_by_its_size_before_it_is_read_and_by_its_time(serve):
    async def slow():
        yield b'{"history": '
        await asyncio.sleep(5)

    async def endless():
        for _ in range(100):
            yield b" " * 100

    async def test(http):
        announced = await http.post("/v1/recommendations", content=b" " * 2000)
        streamed = await http.post("/v1/recommendations", content=endless())
        strange = await http.post("/v1/recommendations", content=b"{}", headers={"Content-Length": "many"})
        late = await http.post("/v1/recommendations", content=slow())
        return [answer.status_code for answer in (announced, streamed, strange, late)]

    assert serve(test, ServeSettings(limits=Limits(body_bytes=1000, read_seconds=0.1))) == [413, 413, 413, 408]


@pytest.fixture
def held(monkeypatch):
    """Lists stop in the model until the gate is set."""
    gate, started = threading.Event(), threading.Event()
    run = ListWork.run

    def hold(self, together):
        started.set()
        assert gate.wait(20)
        return run(self, together)

    monkeypatch.setattr(ListWork, "run", hold)
    yield gate, started
    gate.set()


async def until(condition):
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it never happened")


def test_overload_is_429_with_a_time_to_come_back(serve, held):
    gate, started = held

    async def test(http):
        def ask(item):
            return asyncio.create_task(http.post("/v1/recommendations", json={"history": [item]}))

        running = ask("1")
        await until(started.is_set)
        waiting = [ask("2"), ask("3")]
        await until(lambda: http.server.engine.num_pending == 2)
        refused = await ask("4")
        gate.set()
        return refused, [(await task).status_code for task in (running, *waiting)]

    refused, others = serve(test, ServeSettings(limits=Limits(pending=2)))
    assert refused.status_code == 429
    assert int(refused.headers["Retry-After"]) >= 1
    assert refused.json()["error"]["type"] == "rate_limit_error"
    assert others == [200] * 3


def test_more_requests_than_may_be_inside_are_429(serve, held):
    gate, started = held

    async def test(http):
        tasks = [asyncio.create_task(http.post("/v1/recommendations", json={"history": []})) for _ in range(2)]
        await until(started.is_set)
        refused = await http.get("/v1/models")
        alive = await http.get("/health")
        gate.set()
        return refused, alive, [(await task).status_code for task in tasks]

    refused, alive, others = serve(test, ServeSettings(limits=Limits(connections=2)))
    assert (refused.status_code, refused.headers["Retry-After"]) == (429, "1")
    assert alive.status_code == 200
    assert others == [200, 200]


def test_a_client_that_leaves_frees_its_place_in_the_queue(serve, held):
    gate, started = held

    async def test(http):
        first = asyncio.create_task(http.post("/v1/recommendations", json={"history": ["1"]}))
        await until(started.is_set)
        answered = []

        async def receive():  # the body, and then the disconnection
            return messages.pop(0) if len(messages) > 1 else messages[0]

        async def send(message):
            answered.append(message)

        messages = [
            {"type": "http.request", "body": b'{"history": ["2"]}', "more_body": False},
            {"type": "http.disconnect"},
        ]
        scope = {
            "type": "http", "method": "POST", "path": "/v1/recommendations", "raw_path": b"", "query_string": b"",
            "headers": [(b"host", b"localhost"), (b"content-type", b"application/json")], "http_version": "1.1",
            "asgi": {"version": "3.0"}, "scheme": "http", "client": None, "server": ("localhost", 80), "root_path": "",
        }  # fmt: skip
        await http.app(scope, receive, send)
        gate.set()
        status = (await first).status_code
        await until(lambda: http.server.engine.num_pending == 0)
        return answered[0]["status"], status, (await http.get("/metrics")).text

    left, stayed, metrics = serve(test)
    assert (left, stayed) == (499, 200)
    assert 'llmrec_jobs_dropped_total{kind="ListWork",reason="cancelled"} 1.0' in metrics
    assert 'llmrec_requests_total{endpoint="/v1/recommendations",status="499"} 1.0' in metrics


def test_an_answer_that_takes_too_long_is_504(serve, held):
    gate, _ = held

    async def test(http):
        answer = await http.post("/v1/recommendations", json={"history": ["1"]})
        gate.set()
        return answer, await http.post("/v1/recommendations", json={"history": ["2"]})

    late, after = serve(test, ServeSettings(limits=Limits(request_seconds=0.3)))
    assert (late.status_code, late.json()["error"]["type"]) == (504, "timeout_error")
    assert after.status_code == 200


def test_a_fault_of_the_server_is_told_without_its_inside(serve, monkeypatch, caplog):
    def broken(self, together):
        raise RuntimeError("secret detail")

    async def test(http):
        with monkeypatch.context() as patch:
            patch.setattr(ListWork, "run", broken)
            failed = await http.post("/v1/recommendations", json={"history": ["1"]})
        return failed, await http.post("/v1/recommendations", json={"history": ["1"]})

    failed, after = serve(test)
    assert failed.status_code == 500
    assert "secret detail" not in failed.text
    assert "secret detail" in caplog.text
    assert after.status_code == 200


def test_unknown_paths_and_methods_have_errors_of_the_same_shape(serve):
    async def test(http):
        return [await http.get("/v2"), await http.get("/v1/recommendations"), await http.delete("/v1/items/7")]

    answers = serve(test)
    assert [answer.status_code for answer in answers] == [404, 405, 405]
    assert all(set(answer.json()) == {"error"} for answer in answers)
    assert isinstance(answers[0], httpx.Response)
