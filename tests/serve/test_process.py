"""The command: what it refuses before a model is loaded, and a real process on loopback."""

import os
import signal
import socket
import subprocess
import sys

import httpx
import pytest

from llmrec import cli
from llmrec.errors import EnvironmentProblem, InputError
from llmrec.serve.run import listen
from llmrec.serve.settings import ServeSettings


def call(capsys, *words):
    with pytest.raises(SystemExit) as end:
        cli.main(["serve", *map(str, words)])
    return end.value.code, capsys.readouterr().err


def test_another_machines_address_without_a_key_is_refused_before_anything_is_loaded(
    capsys, served_checkpoint, monkeypatch
):
    monkeypatch.setattr("llmrec.cli.loading.load_recommender", pytest.fail)
    code, shown = call(capsys, served_checkpoint.folder, "--host", "0.0.0.0")
    assert code == 2
    assert "can be reached from other machines" in shown
    assert "LLMREC_API_KEY" in shown
    code, shown = call(capsys, served_checkpoint.folder / "none")
    assert code == 2


def test_a_missing_extra_names_the_command_that_brings_it(capsys, served_checkpoint, monkeypatch):
    found = cli.serve.importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *rest: None if name == "fastapi" else found(name, *rest)
    )
    code, shown = call(capsys, served_checkpoint.folder)
    assert code == 3
    assert "fastapi" in shown
    assert "pip install 'llmrec[serve]'" in shown


@pytest.mark.enable_socket
def test_a_port_in_use_is_the_environments_fault(capsys, served_checkpoint, monkeypatch):
    monkeypatch.setattr("llmrec.cli.loading.load_recommender", pytest.fail)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        code, shown = call(capsys, served_checkpoint.folder, "--port", port)
        with pytest.raises(EnvironmentProblem, match="is in use"):
            listen(ServeSettings(port=port))
    assert code == 3
    assert f"Port {port} of 127.0.0.1 is in use." in shown
    assert "Traceback" not in shown
    assert len(shown.splitlines()) <= 4


@pytest.mark.enable_socket
def test_a_free_port_is_taken_and_told(capsys):
    listener, settings = listen(ServeSettings(port=0))
    with listener:
        assert settings.port == listener.getsockname()[1] > 0
        assert settings.url == f"http://127.0.0.1:{settings.port}"
    with pytest.raises(InputError, match="cannot listen on"):
        listen(ServeSettings(host="192.0.2.1"))


@pytest.mark.slow
@pytest.mark.enable_socket
def test_a_stop_signal_finishes_what_runs(served_checkpoint):
    """A real process: it tells where it listens, answers, and on SIGTERM finishes its requests and leaves with 0."""
    environment = {**os.environ, "LLMREC_ADMIN_KEY": "a" * 24}
    command = [sys.executable, "-m", "llmrec", "serve", str(served_checkpoint.folder), "--port", "0", "--threads", "1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        first = process.stdout.readline()
        url = first.split(" at ")[1].split()[0]
        with httpx.Client(base_url=url, timeout=60) as http:
            assert http.get("/health").json()["status"] == "ok"
            ask = {"model": "tiny", "max_tokens": 300, "temperature": 2, "seed": 38, "stream": True}
            ask["messages"] = [{"role": "user", "content": "What next?"}]
            with http.stream("POST", "/v1/chat/completions", json=ask) as answer:
                lines = answer.iter_lines()
                first = next(lines)
                process.send_signal(signal.SIGTERM)
                lines = [first, *lines]
        assert lines[-2] == "data: [DONE]"
        assert len(lines) > 40
        assert process.wait(30) == 0
        rest = process.stdout.read()
        assert "/docs" in rest
        assert "curl" in rest
        shown = process.stderr.read()
        assert "Traceback" not in shown, shown
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()
