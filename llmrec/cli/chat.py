"""``llmrec chat``: talk to a checkpoint, or to a server, in the terminal."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from llmrec.serve.client import Client

app = typer.Typer(add_completion=False)

HELP = """/history ITEM; ITEM …   what you chose so far, oldest first: ids or titles; without items, show it
/recommend [K]          the next K items for this history
/clear                  begin a new conversation
/help                   these lines
/quit                   leave (also Ctrl-D)"""


@app.command()
def chat(
    target: Annotated[str, typer.Argument(metavar="CHECKPOINT_OR_URL", help="A checkpoint folder, or http://…")],
    temperature: Annotated[float, typer.Option(min=0, max=2, help="0 writes the most probable words.")] = 0.0,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 256,
) -> None:
    """Talk in the terminal; items that the model names are highlighted. LLMREC_API_KEY holds a server's key."""
    from rich.console import Console

    from llmrec.serve.settings import API_KEY

    console = Console(highlight=False)
    if target.startswith(("http://", "https://")):
        from llmrec.serve.client import Client

        Chat(Client(target, os.environ.get(API_KEY)), console, temperature, max_tokens).run()
        return
    with _local_server(Path(target)) as client:
        Chat(client, console, temperature, max_tokens).run()


@contextmanager
def _local_server(checkpoint: Path) -> Iterator[Client]:
    """A server of its own on a free port of this machine, for one conversation."""
    from llmrec.cli.serve import require_extra

    require_extra()
    from llmrec.checkpoint_card import Card
    from llmrec.cli.loading import load_recommender
    from llmrec.hub import checkpoint_folder, short_name
    from llmrec.serve.app import create_app
    from llmrec.serve.client import Client
    from llmrec.serve.run import in_thread, listen
    from llmrec.serve.settings import ServeSettings

    name, checkpoint = short_name(checkpoint), checkpoint_folder(checkpoint)
    Card.read(checkpoint)
    listener, settings = listen(ServeSettings(name=name, port=0))
    with in_thread(create_app(load_recommender(checkpoint), settings), settings, listener):
        yield Client(settings.url)


class Chat:
    """One conversation.

    Args:
        client: the server.
        console: where it is shown.
        temperature: see `llmrec.serve.openai_schemas.Generation`.
        max_tokens: longest answer.
    """

    def __init__(self, client: Client, console: Console, temperature: float, max_tokens: int) -> None:
        self._client, self._console = client, console
        self._options = {"temperature": temperature, "max_tokens": max_tokens}
        self._messages: list[dict[str, Any]] = []
        self._history: list[dict[str, Any]] = []
        self._told = 0
        """Items of the history that the model knows from this conversation."""

    def run(self) -> None:
        """Read lines until the end."""
        from rich.text import Text

        from llmrec.errors import LLMRecError

        model = self._client.model()
        self._console.print(
            Text.assemble((model["id"], "bold"), f": {model['num_items']:,} items, {self._client.url}. /help helps.")
        )
        while True:
            try:
                line = self._console.input("[bold cyan]you>[/] ").strip()
            except EOFError:
                self._console.print()
                return
            if line == "/quit":
                return
            try:
                self.take(line)
            except LLMRecError as error:
                self._console.print(Text.assemble(("error: ", "bold red"), str(error)))

    def take(self, line: str) -> None:
        """Do what one line asks for."""
        from rich.text import Text

        command, _, rest = line.partition(" ")
        if not line:
            return
        if command == "/history":
            self._set_history([word.strip() for word in rest.split(";") if word.strip()])
        elif command == "/recommend":
            self._recommend(rest.strip() or "5")
        elif command == "/clear":
            self._messages, self._told = [], 0
            self._console.print(Text("a new conversation; the history stays", style="dim"))
        elif command == "/help" or command.startswith("/"):
            self._console.print(Text(HELP, style="dim"))
        else:
            self._say(line)

    def _set_history(self, words: list[str]) -> None:
        if words:
            self._history = [self._client.find(word)[0] for word in words]
            self._told = 0
        self._show(self._history)

    def _recommend(self, number: str) -> None:
        from rich.text import Text

        from llmrec.errors import InputError

        if not number.isdigit():
            raise InputError(f"/recommend takes a number, not {number!r}.")
        answer = self._client.recommend([item["item_id"] for item in self._history], int(number))
        self._show(answer["items"])
        for note in answer["notes"]:
            self._console.print(Text(f"note: {note}", style="yellow"))

    def _show(self, items: list[dict[str, Any]]) -> None:
        from rich.text import Text

        for place, item in enumerate(items, start=1):
            self._console.print(
                Text.assemble((f"{place:3} ", "dim"), (item["title"], "magenta"), (f"  {item['item_id']}", "cyan"))
            )

    def _say(self, line: str) -> None:
        from rich.text import Text

        parts: list[dict[str, Any]] = []
        if self._told < len(self._history):
            parts.append({"type": "text", "text": "Here are the items I chose, oldest first:"})
            parts += [{"type": "item", "item_id": item["item_id"]} for item in self._history]
            parts.append({"type": "text", "text": "\n"})
        message = {"role": "user", "content": [*parts, {"type": "text", "text": line}]}
        content, items = "", []
        for chunk in self._client.chat([*self._messages, message], **self._options):
            self._console.print(Text(chunk.content, style="bold magenta" if chunk.items else ""), end="")
            content += chunk.content
            items += chunk.items
        self._console.print()
        self._told = len(self._history)
        self._messages += [message, {"role": "assistant", "content": content, "items": items}]
