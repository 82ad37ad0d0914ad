"""The ``llmrec`` command: parse, call, print.

Each command is one file here with a module-level ``app = typer.Typer(add_completion=False)``, and one line in
`COMMANDS`; it is imported when it is called, so that ``llmrec --help`` stays fast. An app with one ``@app.command()``
and no callback is the command itself, any other app is a group.

Exit codes: 0 fine, 1 a target missed, 2 the user's input, 3 the environment, 70 a bug in llmrec, 130 Ctrl-C.
``LLMREC_DEBUG=1`` shows the traceback of any error.
"""

from __future__ import annotations

import importlib
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

COMMANDS: dict[str, tuple[str, str]] = {
    # name: (module, one line for --help); --help keeps this order
    "run": ("llmrec.cli.run", "Run a recipe: data, SIDs, training, evaluation, report."),
    "recipes": ("llmrec.cli.recipes", "List, print, copy and check recipes."),
    "data": ("llmrec.cli.data", "Look at a data set before training on it."),
    "sid": ("llmrec.cli.sid", "Fit Semantic IDs, judge them, and give new items SIDs."),
    "eval": ("llmrec.cli.eval", "Judge a checkpoint or a file of predictions beside the baselines."),
    "prefer": ("llmrec.cli.prefer", "Preference data: chosen and rejected items, and where every pair is from."),
    "align": ("llmrec.cli.align", "Align a checkpoint: preferences, rewards, or more SFT as the control."),
    "think": ("llmrec.cli.think", "Think-then-recommend: data for thoughts, and whether they earn their place."),
    "recommend": ("llmrec.cli.recommend", "The next items for a history, or for a file of users."),
    "explain": ("llmrec.cli.explain", "Why an item fits a history, in the model's words."),
    "serve": ("llmrec.cli.serve", "A checkpoint behind HTTP: recommendations, and chat for OpenAI clients."),
    "chat": ("llmrec.cli.chat", "Talk to a checkpoint or a server in the terminal."),
    "inspect": ("llmrec.cli.inspect", "What a checkpoint is and where it comes from."),
    "push": ("llmrec.cli.push", "A checkpoint to the Hugging Face Hub, with its base and a page."),
    "pull": ("llmrec.cli.pull", "A checkpoint from the Hub, verified."),
    "assets": ("llmrec.cli.assets", "Packaged models and data for machines that reach no hub."),
    "bench": ("llmrec.cli.bench", "Measure llmrec beside its peers and check the targets."),
    "doctor": ("llmrec.cli.doctor", "What this machine can run, and what to do about what is missing."),
    "version": ("llmrec.cli.version", "Versions of llmrec and of what it stands on."),
}


class LazyGroup(TyperGroup):
    """Lists `COMMANDS` from their one-line texts and imports a command's module when it is called."""

    def list_commands(self, ctx: Any) -> list[str]:
        """The names in the order of `COMMANDS`."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A stand-in with the command's help text: enough for ``--help`` and for suggestions."""
        return TyperCommand(cmd_name, help=COMMANDS[cmd_name][1]) if cmd_name in COMMANDS else None

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The real command, its module imported."""
        self.commands = dict.fromkeys(COMMANDS, TyperCommand(None))  # what typer suggests near-misses from
        name, stand_in, rest = super().resolve_command(ctx, args)
        if name is None or stand_in is None:
            return name, stand_in, rest
        module, summary = COMMANDS[name]
        command = typer.main.get_command(importlib.import_module(module).app)
        command.name = name
        command.help = command.help or summary
        return name, command, rest


app = typer.Typer(
    cls=LazyGroup,
    add_completion=False,
    no_args_is_help=True,
    help="Turn any open language model into a recommender that generates the next item.",
    epilog="Start here: llmrec run quickstart",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(asked: bool) -> None:
    if asked:
        from llmrec import __version__

        typer.echo(f"llmrec {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    pass


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and leave the process with its exit code.

    Args:
        arguments: the words after ``llmrec``; ``sys.argv`` by default.
    """
    from llmrec.cli.errors import leave

    try:
        typer.main.get_command(app).main(args=arguments, prog_name="llmrec")
    except SystemExit as end:
        # typer turns Ctrl-C into a silent exit 130
        sys.exit(leave(KeyboardInterrupt()) if end.code == 130 else end.code)
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - the last stop: one clean screen instead
        sys.exit(leave(error))
