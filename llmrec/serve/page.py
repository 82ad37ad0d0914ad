"""The chat page: what was chosen and what comes next on the left, the conversation on the right, in a browser.

It is a client of the server like any other, listens on this machine alone, and asks no other one for scripts, fonts or
statistics. Titles and the model's words are data: nothing in them is read as markup.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported

import gradio as gr

from llmrec.errors import LLMRecError
from llmrec.serve.client import Chunk, Client
from llmrec.serve.run import listen
from llmrec.serve.settings import ServeSettings
from llmrec.serve.talk import Talk

_MARKUP = re.compile(r"([\\`*_{}\[\]()#+\-.!|~<>&$:@])")


def build_page(client: Client, *, temperature: float = 0.0, max_tokens: int = 256) -> gr.Blocks:
    """The page over a server; every visitor has a conversation of his own.

    Raises:
        LLMRecError: the server does not answer.
    """
    model = client.model()
    page: gr.Blocks = gr.Blocks(title=f"{model['id']} · llmrec", analytics_enabled=False, fill_width=True)
    with page:
        talk = gr.State(Talk(client, temperature, max_tokens))
        gr.Markdown(f"## {plain(model['id'])}\n{model['num_items']:,} items; whatever is named here is one of them.")
        with gr.Row():
            with gr.Column(scale=1):
                word = gr.Textbox(
                    label="What did you choose?", placeholder="a title or an id, then Enter; oldest first",
                    submit_btn="Add", elem_id="find",
                )  # fmt: skip
                history = gr.Dataframe(
                    headers=["title", "id"], label="Your history", interactive=False, wrap=True, elem_id="history"
                )
                with gr.Row():
                    back = gr.Button("Remove last", size="sm", elem_id="back")
                    empty = gr.Button("Clear", size="sm", elem_id="empty")
                with gr.Row():
                    count = gr.Slider(1, min(20, model["num_items"]), value=5, step=1, label="How many")
                    why = gr.Checkbox(label="Say why the first one fits")
                ask = gr.Button("Recommend", variant="primary", elem_id="recommend")
                listed = gr.Dataframe(
                    headers=["#", "title", "id", "log p"], type="array", label="Next; a click chooses it",
                    interactive=False, wrap=True, elem_id="next",
                )  # fmt: skip
                reason = gr.Markdown(elem_id="reason")
            with gr.Column(scale=1):
                said = gr.Chatbot(
                    label="Conversation", height=520, feedback_options=None, buttons=["copy"], elem_id="said"
                )
                line = gr.Textbox(label="Message", placeholder="What next, and why?", submit_btn=True, elem_id="line")
                anew = gr.Button("New conversation", size="sm", elem_id="anew")
        word.submit(_add, [talk, word], [talk, word, history], show_progress="hidden")
        listed.select(_choose, [talk, listed], [talk, history], show_progress="hidden")
        back.click(_remove, talk, [talk, history], show_progress="hidden")
        empty.click(_empty, talk, [talk, history], show_progress="hidden")
        ask.click(_recommend, [talk, count, why], [listed, reason])
        line.submit(_say, [talk, line, said], [talk, line, said])
        for cleared in (anew.click, said.clear):
            cleared(_anew, talk, [talk, said], show_progress="hidden")
    return page


def show(
    client: Client,
    *,
    port: int = 7860,
    temperature: float = 0.0,
    max_tokens: int = 256,
    say: Callable[[str], None] = lambda line: None,
) -> None:
    """Serve the page on this machine until Ctrl-C.

    Raises:
        EnvironmentProblem: the port is in use.
        LLMRecError: the server does not answer.
    """
    page = build_page(client, temperature=temperature, max_tokens=max_tokens)
    url = launch(page, port)
    say(f"page  {url}  (Ctrl-C stops)")
    page.block_thread()


def launch(page: gr.Blocks, port: int = 0) -> str:
    """Serve `page` from a thread of this process, on loopback, and give its address; 0 takes a free port.

    Raises:
        EnvironmentProblem: the port is in use.
    """
    listener, settings = listen(ServeSettings(port=port))
    listener.close()  # gradio takes a number, no socket
    _, url, _ = page.launch(
        server_name=settings.host, server_port=settings.port, share=False, quiet=True, show_error=True,
        prevent_thread_lock=True, footer_links=[], ssr_mode=False, pwa=False, mcp_server=False, theme=_theme(),
    )  # fmt: skip
    return str(url)


def plain(text: str) -> str:
    """`text` as Markdown that shows it as it is."""
    return _MARKUP.sub(r"\\\1", text)


def _theme() -> gr.themes.Base:
    """The system's fonts: gradio's own are fetched from another machine."""
    return gr.themes.Soft(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])


# -- what happens on the page ------------------------------------------------------------------------------------------


def _add(talk: Talk, word: str) -> tuple[Talk, str, list[list[str]]]:
    """The item nearest to what was typed; the history shows which one that is."""
    if word.strip():
        with _shown():
            talk.history = [*talk.history, talk.client.find(word.strip())[0]]
    return talk, "", _rows(talk)


def _choose(talk: Talk, listed: Any, clicked: gr.SelectData) -> tuple[Talk, list[list[str]]]:
    """The item of a row of the list."""
    _, title, item_id, _ = listed[clicked.index[0]]
    talk.history = [*talk.history, {"item_id": str(item_id), "title": str(title)}]
    return talk, _rows(talk)


def _remove(talk: Talk) -> tuple[Talk, list[list[str]]]:
    talk.history = talk.history[:-1]
    return talk, _rows(talk)


def _empty(talk: Talk) -> tuple[Talk, list[list[str]]]:
    talk.history = []
    return talk, _rows(talk)


def _recommend(talk: Talk, count: float, why: bool) -> tuple[list[list[Any]], str]:
    with _shown():
        answer = talk.recommend(int(count), explain=int(why and bool(talk.history)))
    rows = [
        [place, item["title"], item["item_id"], f"{item['score']:.2f}"]
        for place, item in enumerate(answer["items"], start=1)
    ]
    told = [plain(note) for note in answer["notes"]]
    if answer["items"] and (explained := answer["items"][0].get("explanation")):
        told.insert(0, plain(explained["text"] or "The model gives no reason."))
        told += [f"Not so in the catalogue: {plain(untrue)}" for untrue in explained["untrue_attributes"]]
    return rows, "\n\n".join(told)


def _say(talk: Talk, line: str, said: list[Any]) -> Iterator[tuple[Talk, str, list[Any]]]:
    line = line.strip()
    if not line:
        yield talk, "", said
        return
    said = [*said, {"role": "user", "content": plain(line)}, {"role": "assistant", "content": ""}]
    yield talk, "", said
    with _shown():
        for chunk in talk.say(line):
            said[-1]["content"] += _marked(chunk)
            yield talk, "", said


def _anew(talk: Talk) -> tuple[Talk, list[Any]]:
    talk.clear()
    return talk, []


def _marked(chunk: Chunk) -> str:
    """A piece of the answer as Markdown, titles in bold."""
    title = chunk.content.strip()
    if not chunk.items or not title:
        return plain(chunk.content)
    before, after = chunk.content.split(title, 1)
    return f"{before}**{plain(title)}**{after}"


def _rows(talk: Talk) -> list[list[str]]:
    return [[item["title"], item["item_id"]] for item in talk.history]


@contextmanager
def _shown() -> Iterator[None]:
    """What the server says against a request, on the page."""
    try:
        yield
    except LLMRecError as error:
        raise gr.Error(str(error), print_exception=False) from error
