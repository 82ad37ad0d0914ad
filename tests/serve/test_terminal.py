"""``llmrec chat``: what it sends and shows, against a real server on loopback."""

import io
import re

import pytest
from rich.console import Console

from llmrec.cli.chat import Chat, _local_server, require_page
from llmrec.errors import EnvironmentProblem, InputError
from llmrec.serve.client import Client
from llmrec.serve.talk import Talk

pytestmark = [pytest.mark.enable_socket]


def test_a_conversation_in_the_terminal(served_checkpoint, recommender):
    screen = io.StringIO()
    console = Console(file=screen, width=100, force_terminal=True, color_system="standard")
    with _local_server(served_checkpoint.folder) as client:
        chat = Chat(Talk(client, 1.5, 40), console)
        title = recommender.titles.title("7")
        chat.take(f"/history {title}; 13")
        chat.take("/recommend 3")
        expected = recommender.recommend(["7", "13"], 3)
        for item in expected:
            assert item.title in screen.getvalue()
        chat.take("What next?")
        first, answer = chat.talk.messages
        assert [part.get("item_id") for part in first["content"]] == [None, "7", "13", None, None]
        shown = re.sub(r"\x1b\[[0-9;]*m", "", screen.getvalue())
        assert "".join(answer["content"].split()) in "".join(shown.split())  # the console wraps and expands tabs
        chat.take("And then?")
        assert [message["role"] for message in chat.talk.messages] == ["user", "assistant"] * 2
        assert len(chat.talk.messages[2]["content"]) == 1  # the history was told already
        chat.take("/clear")
        assert chat.talk.messages == []
        with pytest.raises(InputError, match="takes a number"):
            chat.take("/recommend many")
        with pytest.raises(InputError, match="neither an item id nor close to a title"):
            chat.take("/history qqqqqq")
        with pytest.raises(InputError, match="more than this server's limit"):
            chat.take("/recommend 100000")
        assert chat.take("") is None
        assert client.find("7")[0]["similarity"] == 100
    with pytest.raises(EnvironmentProblem, match="No server answers"):
        client.model()


def test_an_address_that_is_no_server_is_said_so():
    for url in ("http://127.0.0.1:1", "http://", "http://[::1"):
        with pytest.raises(EnvironmentProblem, match="No server answers"):
            Client(url, timeout=1).model()


def test_a_page_without_gradio_names_the_extra_before_anything_is_loaded(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(EnvironmentProblem, match=r"llmrec\[chat\]"):
        require_page()
