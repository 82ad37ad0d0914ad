"""``llmrec eval``: judge a checkpoint, or what another recommender wrote to a file, beside the baselines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from llmrec.checkpoint_card import Card
    from llmrec.data.config import DataConfig
    from llmrec.data.dataset import Dataset
    from llmrec.eval.config import EvalConfig

app = typer.Typer(add_completion=False)


@app.command("eval")
def evaluate(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[CHECKPOINT] [KEY=VALUE]...", help="A checkpoint folder, and changed settings."),
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", help="Recipe, data folder or asset:NAME; by default the checkpoint's own.")
    ] = None,
    users: Annotated[int | None, typer.Option(help="Judge this many users, chosen by the hash of their id.")] = None,
    part: Annotated[str | None, typer.Option(help="test (the last event) or valid (the one before).")] = None,
    predictions: Annotated[
        Path | None, typer.Option(help="Lists of another recommender: .parquet, .csv or .jsonl (see eval/README.md).")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Folder for the results; by default runs/eval/NAME.")] = None,
    engine: Annotated[Literal["torch", "vllm"], typer.Option(help="What runs the model.")] = "torch",
    as_json: Annotated[bool, typer.Option("--json", help="Print eval.json instead of tables.")] = False,
) -> None:
    """Judge a checkpoint or a file of predictions: leave-one-out, full catalogue, beside the baselines."""
    from rich.console import Console

    from llmrec.checkpoint_card import Card
    from llmrec.data.dataset import read_data
    from llmrec.errors import InputError
    from llmrec.eval.evaluate import evaluate as judge
    from llmrec.eval.examples import example_users
    from llmrec.eval.predictions import PredictionsRanker
    from llmrec.eval.progress import shown
    from llmrec.eval.ranker import Ranker
    from llmrec.eval.report import write_report
    from llmrec.eval.table import print_examples, print_table
    from llmrec.hub import checkpoint_folder, short_name

    # 1. Everything that can be wrong with the words comes before any work.
    overrides = [word for word in words or [] if "=" in word and not Path(word).exists()]
    folders = [Path(word) for word in words or [] if word not in overrides]
    if len(folders) > 1:
        raise InputError(f"one checkpoint at a time, given {', '.join(map(str, folders))}")
    checkpoint = checkpoint_folder(folders[0]) if folders else None
    card = Card.read(checkpoint) if checkpoint else None
    flags = [f"{key}={value}" for key, value in (("users", users), ("part", part)) if value is not None]
    config = _config(card, [*overrides, *flags])
    if card is None and data is None:
        raise InputError("no checkpoint and no data", hint="llmrec eval CHECKPOINT, or --data with --predictions")
    models: dict[str, Ranker] = {}
    if predictions:
        models[predictions.stem] = PredictionsRanker.read(predictions)

    # 2. Data and model.
    console = Console(stderr=True)
    dataset = read_data(_data_config(data, card))
    warnings = []
    if checkpoint and card:
        from llmrec.cli.loading import load_recommender
        from llmrec.eval.generate import Generator

        warnings = _warnings(card, dataset)
        name = short_name(folders[0])
        models = {name: Generator.of_recommender(load_recommender(checkpoint, engine), label=name), **models}

    # 3. Judge, write, print.
    with shown(console) as progress:
        seeds = [card.recipe["seed"]] if card and "seed" in card.recipe else []
        result = judge(dataset, models, config, seeds=seeds, warnings=warnings, progress=progress)
    folder = output or Path("runs", "eval", next(iter(models), dataset.name))
    path = result.save(folder)
    report = write_report(folder / "report.html", result, dataset)
    if as_json:
        typer.echo(json.dumps(result.summary, indent=2, ensure_ascii=False))
        typer.echo(f"{path}\n{report}", err=True)
        return
    out = Console()
    print_table(result, out)
    out.print()
    print_examples(example_users(result, dataset, count=3), out)
    out.print(f"figures: {path}\nreport:  {report}", highlight=False, soft_wrap=True)


def _config(card: Card | None, overrides: list[str]) -> EvalConfig:
    """The settings of the checkpoint's recipe with `overrides`; what it does not set keeps its default."""
    from llmrec.config import apply_overrides, build_config
    from llmrec.eval.config import EvalConfig

    of_recipe: dict[str, Any] = (card.recipe.get("eval") or {}) if card else {}
    return build_config(EvalConfig, apply_overrides(of_recipe, overrides), source="llmrec eval")


def _data_config(data: str | None, card: Card | None) -> DataConfig:
    from llmrec.cli.data import data_config
    from llmrec.config import build_config
    from llmrec.data.config import DataConfig
    from llmrec.errors import InputError

    if data is not None:
        return data_config(data)
    if card is None or not isinstance(card.recipe.get("data"), dict):
        raise InputError("the checkpoint's recipe names no data", hint="name it with --data RECIPE_OR_FOLDER")
    return build_config(DataConfig, card.recipe["data"], source="the checkpoint's recipe, data")


def _warnings(card: Card, dataset: Dataset) -> list[str]:
    trained, judged = card.data.loo_sha256, dataset.split.loo_sha256
    if trained == judged:
        return []
    return [
        f"trained on {card.data.name} with split {(trained or 'unknown')[:12]}…, judged on {dataset.name} with "
        f"{judged[:12]}…: targets may have been in its training data"
    ]
