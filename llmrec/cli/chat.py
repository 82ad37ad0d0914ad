"""``llmrec chat``: talk to a checkpoint, or to a server, in the terminal."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from llmrec.serve.client import Client
    from llmrec.serve.talk import Talk

app = typer.Typer(add_completion=False)

HELP = """/history ITEM; ITEM …   what you chose so far, oldest first: ids or titles; without items, show it
/recommend [K]          the next K items for this history
/clear                  begin a new conversation
/help                   these lines
/quit                   leave (also Ctrl-D)"""


@app.command()
def chat(
    target: Annotated[
        str, typer.Argument(metavar="CHECKPOINT_OR_URL", help="A checkpoint folder, hub:OWNER/NAME, or http://…")
    ],
    temperature: Annotated[float, typer.Option(min=0, max=2, help="0 writes the most probable words.")] = 0.0,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 256,
    page: Annotated[bool, typer.Option("--page", help="In the browser instead of the terminal.")] = False,
    port: Annotated[
        int, typer.Option(min=0, max=65_535, help="Of the page, on this machine; 0 takes a free one.")
    ] = 7860,
) -> None:
    """Talk, in the terminal or on a page; items that the model names are highlighted. LLMREC_API_KEY holds a key."""
    from llmrec.serve.settings import API_KEY

    if page:
        require_page()
    with ExitStack() as stack:
        if target.startswith(("http://", "https://")):
            from llmrec.serve.client import Client

            client = Client(target, os.environ.get(API_KEY))
        else:
            client = stack.enter_context(_local_server(Path(target)))
        if page:
            from llmrec.serve.page import show

            show(client, port=port, temperature=temperature, max_tokens=max_tokens, say=typer.echo)
        else:
            from rich.console import Console

            from llmrec.serve.talk import Talk

            Chat(Talk(client, temperature, max_tokens), Console(highlight=False)).run()


def require_page() -> None:
    """Raise EnvironmentProblem unless the package of the extra ``chat`` is installed."""
    from llmrec.errors import EnvironmentProblem

    if importlib.util.find_spec("gradio") is None:
        raise EnvironmentProblem("The page needs gradio, which is not installed.", hint="pip install 'llmrec[chat]'")


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
    """A conversation in the terminal."""

    def __init__(self, talk: Talk, console: Console) -> None:
        self.talk, self._console = talk, console

    def run(self) -> None:
        """Read lines until the end."""
        from rich.text import Text

        from llmrec.errors import LLMRecError

        client = self.talk.client
        model = client.model()
        self._console.print(
            Text.assemble((model["id"], "bold"), f": {model['num_items']:,} items, {client.url}. /help helps.")
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
            self.talk.clear()
            self._console.print(Text("a new conversation; the history stays", style="dim"))
        elif command == "/help" or command.startswith("/"):
            self._console.print(Text(HELP, style="dim"))
        else:
            self._say(line)

    def _set_history(self, words: list[str]) -> None:
        if words:
            self.talk.choose(words)
        self._show(self.talk.history)

    def _recommend(self, number: str) -> None:
        from rich.text import Text

        from llmrec.errors import InputError

        if not number.isdigit():
            raise InputError(f"/recommend takes a number, not {number!r}.")
        answer = self.talk.recommend(int(number))
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

        for chunk in self.talk.say(line):
            self._console.print(Text(chunk.content, style="bold magenta" if chunk.items else ""), end="")
        self._console.print()
