"""``llmrec prefer``: preference data from a recipe: chosen and rejected items, and where every pair is from."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from llmrec.data.catalog import Catalog
    from llmrec.train.preference.answers import Progress
    from llmrec.train.preference.build import Preferences
    from llmrec.train.preference.config import PreferConfig
    from llmrec.train.preference.files import PreferenceCard

app = typer.Typer(add_completion=False)
_DEFAULT = "beams"
_EXAMPLES = 3


@app.command()
def prefer(
    source: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE_OR_RUN", help="A recipe of train/preference (beams, self-play, ...), or a run: its beams."
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Settings to change, such as checkpoint=runs/ml-100k-small."),
    ] = None,
    output: Annotated[Path | None, typer.Option(help="A new folder; by default runs/preference/NAME.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the card instead of tables.")] = False,
) -> None:
    """Make preference data: negatives, self-play, a scorer or graded feedback; no valid or test target in any pair."""
    from rich.console import Console

    from llmrec.align.start import data_of, last_checkpoint
    from llmrec.checkpoint import Checkpoint
    from llmrec.checkpoint_card import Card
    from llmrec.errors import InputError
    from llmrec.hub import checkpoint_folder
    from llmrec.train.preference.build import make_preferences
    from llmrec.train.preference.files import CARD_FILE, save_preferences

    # 1. Everything that can be wrong with the words comes before any work.
    console = Console(stderr=True)
    config = _config(source, overrides or [])
    if config.checkpoint is None:
        raise InputError(
            f"The recipe {config.name} names no checkpoint.", hint="add checkpoint=runs/NAME (a run or a checkpoint)"
        )
    folder = output or Path("runs", "preference", config.name)
    if folder.exists():
        raise InputError(f"{folder} exists already and is not overwritten", hint="remove it, or give --output")
    place = last_checkpoint(checkpoint_folder(config.checkpoint))
    card = Card.read(place)
    dataset = data_of(card, config.data)

    # 2. Ask, pick, check.
    parts = folder.with_name(folder.name + ".parts")
    if config.needs_model:
        from llmrec.cli.loading import load_recommender

        recommender = load_recommender(place)
        checkpoint = recommender.checkpoint
    else:
        recommender, checkpoint = None, Checkpoint.load(place)
    try:
        with _shown(console) as progress:
            made = make_preferences(
                config, dataset, checkpoint, recommender=recommender, parts=parts, progress=progress
            )
    except KeyboardInterrupt:
        console.print(f"Stopped. Answers so far are in {parts}; the same command goes on from there.", highlight=False)
        raise

    # 3. Write, print.
    engine = recommender.engine if recommender else None
    written = save_preferences(folder, config, made, dataset, checkpoint, engine=engine)
    if parts.exists():
        shutil.rmtree(parts)
    if as_json:
        typer.echo((folder / CARD_FILE).read_text(encoding="utf-8"), nl=False)
        return
    out = Console()
    _print_counts(written, made, out)
    _print_examples(made, checkpoint.catalog, out)
    out.print(f"\nrows  {folder / 'preferences.parquet'}\ncard  {folder / CARD_FILE}", highlight=False, soft_wrap=True)


def _config(source: str, overrides: list[str]) -> PreferConfig:
    """The recipe of a name, of a path, or for a run the default one with its checkpoint."""
    from llmrec import recipes
    from llmrec.config import load_config, read_yaml
    from llmrec.errors import InputError
    from llmrec.train.preference.config import PreferConfig

    shelf = recipes.folder("train") / "preference"
    if Path(source).is_dir():
        return load_config(PreferConfig, shelf / f"{_DEFAULT}.yaml", [f"checkpoint={source}", *overrides])
    named = shelf / f"{source}.yaml"
    path = named if named.is_file() and not Path(source).exists() else recipes.find(source)
    values = read_yaml(path)
    if isinstance(values, dict) and "cpt" in values:
        name = values.get("name", "NAME")
        raise InputError(
            f"{source} is a pipeline, which has no preference data of its own.",
            hint=f"run it (llmrec run {source}), then llmrec prefer runs/{name}",
        )
    return load_config(PreferConfig, path, overrides)


@contextmanager
def _shown(console: Console, every_seconds: float = 20.0) -> Iterator[Progress]:
    """A bar with the time that is left on a terminal, a line now and then elsewhere."""
    from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    tasks: dict[str, TaskID] = {}
    started: dict[str, float] = {}
    first: dict[str, int] = {}
    printed = time.perf_counter()
    columns = TextColumn("{task.description:<20}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Bars(*columns, console=console, disable=not console.is_terminal) as bars:

        def update(what: str, done: int, total: int) -> None:
            nonlocal printed
            if console.is_terminal:
                if what not in tasks:
                    tasks[what] = bars.add_task(what, total=total)
                bars.update(tasks[what], completed=done)
                return
            now = time.perf_counter()
            if what not in started:
                started[what], first[what] = now, done
            if done >= total or now - printed > every_seconds:
                pace = (now - started[what]) / max(1, done - first[what])
                left = "" if done >= total else f", about {pace * (total - done):,.0f} s left"
                console.print(f"prefer  {what} {done:,}/{total:,}{left}", highlight=False)
                printed = now

        yield update


def _print_counts(card: PreferenceCard, made: Preferences, console: Console) -> None:
    from rich.table import Table

    iteration = f", iteration {card.iteration}" if card.iteration else ""
    console.print(
        f"[bold]{card.name}[/bold]: {card.pairs:,} pairs in {card.rows:,} rows of {card.users:,} users of "
        f"{card.data.name}; seed {card.seed}{iteration}",
        highlight=False,
    )
    model = f"{card.model.stage} {card.model.fingerprint[:12]}…"
    asked = f"asked with {card.model.engine}" if card.model.engine else "not asked, its SIDs are used"
    console.print(f"model {model}, {asked}; split {(card.data.loo_sha256 or '')[:12]}…", highlight=False)
    if card.scorer:
        console.print(f"judged by {card.scorer}, fitted on train", highlight=False)
    if made.resumed:
        console.print(f"{made.resumed:,} of {made.asked:,} answers were left by an earlier run", highlight=False)
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(justify="right")
    table.add_column(overflow="fold")
    for source, count in card.pairs_by_source.items():
        table.add_row(f"{count:,}", f"pairs from {source}")
    for reason, count in card.rows_dropped.items():
        table.add_row(f"{count:,}", f"left out: {reason}")
    for reason, count in card.items_dropped.items():
        table.add_row(f"{count:,}", f"not rejected: {reason}")
    for name, count in card.items_missing.items():
        table.add_row(f"{count:,}", f"missing: {name} had fewer than asked for")
    console.print(table, markup=False)


def _print_examples(made: Preferences, catalog: Catalog, console: Console) -> None:
    known = set(catalog.item_ids)

    def titled(item_id: str) -> str:
        return f"{catalog.title(item_id) if item_id in known else '?'} ({item_id})"

    step = max(1, len(made.rows) // _EXAMPLES)
    for row in made.rows[::step][:_EXAMPLES]:
        before = f"\nuser {row.user_id}, after {row.position:,} events, last {titled(row.history[-1])}"
        console.print(before, markup=False, highlight=False, soft_wrap=True)
        console.print(
            f"  chosen    {titled(row.chosen)}{_score(row.chosen_score)}", markup=False, highlight=False, soft_wrap=True
        )
        for pair, score in zip(row.pairs, row.scores, strict=True):
            weight = "" if pair.weight == 1 else f", weight {pair.weight:.2f}"
            told = f"  rejected  {titled(pair.rejected)}: {pair.source}{_score(score)}{weight}"
            console.print(told, markup=False, highlight=False, soft_wrap=True)


def _score(score: float | None) -> str:
    return "" if score is None else f", {score:.2f}"
