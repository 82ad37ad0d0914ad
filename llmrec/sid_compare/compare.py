"""Compare tokenizers: fit them all, train and judge a proxy for each, and put both into one result.

    compare_tokenizers(arms, ProxyConfig(), Path("runs/sid-compare"), console).save(folder)

Everything is cached by content below that folder, so a comparison that was killed goes on where it stopped, and one
more tokenizer costs its own fit and proxies alone. Fits come first, because a mistake in a recipe shall not come out
after an hour of training; then all tokenizers with the first seed, then with the second.

What the proxy says. All tokenizers get the same model, the same number of training tokens and the same schedule: equal
compute, not equal passes over the data. A SID of two tokens sees twice the items that one of four sees, which is a real
advantage of short SIDs at a fixed cost and no statement about what they reach when trained to the end. It does not say
what a pretrained model makes of codes that follow text, how new items fare (targets without train events are few), or
how long a list takes to serve. Figures are of valid: the best of many tokenizers is too good there, test is for one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from llmrec.data.dataset import Dataset, read_data
from llmrec.errors import DataError, InputError
from llmrec.eval.result import EvalResult
from llmrec.eval.table import decimal
from llmrec.pipeline_parts import EVAL_VERSION
from llmrec.sid_compare.config import Arm, ProxyConfig
from llmrec.sid_compare.estimate import tell_estimate
from llmrec.sid_compare.fits import Fit, fit_arm
from llmrec.sid_compare.proxy import NAME, Proxy
from llmrec.sid_compare.result import Compared, Comparison, make_comparison
from llmrec.stages import StageCache

BASELINES: dict[str, dict[str, Any]] = {"popularity": {}, "itemknn": {}}
"""Without training: below the first one a proxy has learned nothing, the second is what it should come near."""


def compare_tokenizers(arms: Sequence[Arm], config: ProxyConfig, folder: Path, console: Console) -> Comparison:
    """Fit, train and judge what earlier calls have not.

    Args:
        arms: the tokenizers, with different names; the first is the one that others are tested against.
        config: of the proxy.
        folder: fits and proxies are kept below it, in a folder called like the data set.
        console: where progress is told.

    Raises:
        DataError: a data set cannot be read, or the arms' data sets have different splits.
        InputError: no valid target has a SID; or a tokenizer that the data or the proxy cannot take.
    """
    datasets = _read(arms, console)
    first = datasets[arms[0].name]
    folder = folder / first.name
    fits: dict[str, Fit] = {}
    for arm in arms:
        console.print(f"[bold]{arm.name}[/bold]", highlight=False)
        fits[arm.name] = fit_arm(arm, datasets[arm.name], folder, console)
    baselines = _judge_baselines(first, config, folder, console)

    proxies = {
        (seed, arm.name): Proxy(config, seed, fits[arm.name].table, datasets[arm.name], folder)
        for seed in config.seeds
        for arm in arms
    }
    for proxy in proxies.values():
        proxy.require_positions()
    console.print(tell_estimate(list(proxies.values())), highlight=False)
    compared: dict[str, Compared] = {arm.name: Compared(arm, fits[arm.name], []) for arm in arms}
    for number, ((seed, name), proxy) in enumerate(proxies.items(), start=1):
        console.print(f"[bold]{name}[/bold] seed {seed}, proxy {number} of {len(proxies)}", highlight=False)
        run = proxy.run(console)
        compared[name].runs.append(run)
        found = [f"{metric} {decimal(run.evaluation.value(NAME, metric))}" for metric in ("Recall@10", "NDCG@10")]
        console.print(f"       {', '.join(found)} on valid after {run.training.epochs:.1f} epochs", highlight=False)
    return make_comparison(list(compared.values()), baselines, config, first)


def _read(arms: Sequence[Arm], console: Console) -> dict[str, Dataset]:
    """Data per arm; each different setting is read once."""
    read: dict[str, Dataset] = {}
    for arm in arms:
        key = arm.data.model_dump_json()
        if key not in read:
            read[key] = read_data(arm.data)
            for line in read[key].report.lines():
                console.print(f" data  {line}", highlight=False, markup=False)
    datasets = {arm.name: read[arm.data.model_dump_json()] for arm in arms}
    first, *others = datasets
    problems = [
        f"{name}: {datasets[name].name} with {len(datasets[name].split.users):,} users and "
        f"{len(datasets[name].split.items):,} items, check value {datasets[name].split.loo_sha256[:12]}"
        for name in datasets
    ]
    if not all(_same_split(datasets[first], datasets[other]) for other in others):
        hint = "an override holds for all recipes: data.path=FOLDER"
        raise DataError("Tokenizers are compared on one data set, these have different ones:", problems, hint=hint)
    split, catalog = datasets[first].split, datasets[first].catalog
    if not any(split.items[target] in catalog for target in split.targets("valid")):
        raise InputError(
            f"No user of {datasets[first].name} has a valid target in the catalogue: there is nothing to judge.",
            hint="a user's event before the last is the valid target; `llmrec data` shows what the files hold",
        )
    return datasets


def _same_split(a: Dataset, b: Dataset) -> bool:
    one, other = a.split, b.split
    return (
        a.catalog.item_ids == b.catalog.item_ids
        and one.users == other.users
        and one.items == other.items
        and all(map(np.array_equal, one.sequences, other.sequences))
    )


def _judge_baselines(dataset: Dataset, config: ProxyConfig, folder: Path, console: Console) -> EvalResult:
    from llmrec.eval.evaluate import evaluate

    judged = folder / "baselines" / "eval"

    def work(key: str) -> None:
        evaluate(dataset, {}, config.evaluation(BASELINES)).save(judged)

    parts = {"data": dataset.fingerprint, "users": config.users, "baselines": BASELINES, "eval_version": EVAL_VERSION}
    StageCache(judged.parent, console).run("baselines", parts, [judged], work)
    return EvalResult.load(judged)
