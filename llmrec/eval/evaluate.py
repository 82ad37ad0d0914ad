"""Judge models and baselines on the same users and put them into one table.

    result = evaluate(dataset, {"llmrec": generator, "untrained": other}, EvalConfig())
    result.save(Path("runs/demo/eval"))

The first model is what the evaluation is about: it is tested against every other one (`llmrec.eval.paired`).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from llmrec.baselines import BASELINES
from llmrec.data.dataset import Dataset
from llmrec.errors import InputError
from llmrec.eval.baseline_ranker import BaselineRanker
from llmrec.eval.config import EvalConfig, Mode
from llmrec.eval.judged import Judged
from llmrec.eval.paired import paired_tests
from llmrec.eval.ranker import Progress, RankedUsers, Ranker, quiet
from llmrec.eval.result import EvalResult, plain
from llmrec.eval.slices import sliced
from llmrec.metrics import PerUser, per_user_metrics, summarise

PROTOCOL = "leave-one-out, full catalogue, version 1"


def evaluate(
    dataset: Dataset,
    models: Mapping[str, Ranker],
    config: EvalConfig,
    *,
    seeds: Sequence[int] = (),
    selection: str = "not recorded",
    warnings: Sequence[str] = (),
    progress: Progress = quiet,
) -> EvalResult:
    """Rank with every model and every baseline of `config`, and compare.

    Args:
        dataset: the data; the judged users come from its split.
        models: by the name they have in the table, the one that matters first. May be empty: baselines alone.
        config: settings.
        seeds: the seeds the models were trained with.
        selection: what chose the checkpoint, such as ``valid NDCG@10`` or ``last step``.
        warnings: what readers of the figures must know, such as a model that was trained on another split.
        progress: see `llmrec.eval.ranker.Progress`; `llmrec.eval.progress.shown` draws bars with an ETA.

    Raises:
        InputError: nothing to judge, or a model has the name of a baseline.
    """
    if clash := sorted(set(models) & set(config.baselines)):
        raise InputError(f"a model and a baseline are both called {clash[0]!r}", hint="give the model another name")
    rankers: dict[str, Ranker] = {
        **models,
        **{name: BaselineRanker(name, settings) for name, settings in config.baselines.items()},
    }
    if not rankers:
        raise InputError("there is nothing to judge: no model and no baseline", hint="name a baseline or a checkpoint")
    judged = Judged.choose(dataset.split, config.part, config.users)

    # 1. Rank. Beam's recall of exact is measured for the first model only: exact search is slow on untrained ones.
    ranked: dict[str, RankedUsers] = {}
    timing: dict[str, dict[str, float]] = {}
    for place, (name, ranker) in enumerate(rankers.items()):
        wall, cpu = time.perf_counter(), time.process_time()
        own = config if place == 0 else config.model_copy(update={"exact_users": 0})
        ranked[name] = ranker.rank(dataset, judged, own, progress)
        timing[name] = {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}

    # 2. Metrics, tests, slices.
    values: dict[Mode, dict[str, PerUser]] = {
        mode: {name: per_user_metrics(answer.rankings[mode].placement) for name, answer in ranked.items()}
        for mode in config.modes
    }
    main = next(iter(ranked.values())).details
    summary: dict[str, Any] = {
        "protocol": PROTOCOL,
        "dataset": dataset.name,
        "loo_sha256": dataset.split.loo_sha256,
        "split": config.part,
        "users": len(judged),
        "users_total": len(dataset.split.users),
        "users_chosen_by": "all" if len(judged) == len(dataset.split.users) else "SHA-256 of the user id",
        "items": len(dataset.split.items),
        "modes": {
            mode: {name: summarise(metrics) for name, metrics in models_of.items()}
            for mode, models_of in values.items()
        },
        "main_mode": config.main_mode,
        "paired": paired_tests(values, seed=config.seed) if models else [],
        "invalid": sum(answer.invalid for answer in ranked.values()),
        "checked": sum(answer.checked for answer in ranked.values()),
        "duplicates": sum(answer.duplicates for answer in ranked.values()),
        "excluded_violations": sum(answer.excluded for answer in ranked.values()),
        "seeds": list(seeds),
        "selection": selection,
        "warnings": list(warnings),
        "window": main.get("window"),
        "num_beams": main.get("num_beams"),
        "normalise": main.get("normalise"),
        "cold_share": float(np.isin(judged.targets, dataset.split.cold_items()).mean()),
        "repeat_share": float(
            np.mean([target in history for target, history in zip(judged.targets, judged.histories, strict=True)])
        ),
        "sid_level": main.get("sid_level"),
        "beam_recall_of_exact": main.get("beam_recall_of_exact"),
        "baselines_left_out": [name for name in BASELINES if name not in config.baselines],
        "slices": sliced(judged, values[config.main_mode]),
        "details": {name: answer.details for name, answer in ranked.items()},
        "timing": timing,
        "wall_s": sum(one["wall_s"] for one in timing.values()),
        "cpu_s": sum(one["cpu_s"] for one in timing.values()),
        "config": config.model_dump(mode="json"),
    }
    return EvalResult(plain(summary), _per_user(judged, ranked, values), _lists(judged, ranked))


def _per_user(
    judged: Judged, ranked: Mapping[str, RankedUsers], values: Mapping[Mode, Mapping[str, PerUser]]
) -> pl.DataFrame:
    return pl.concat(
        pl.DataFrame(
            {
                "mode": [mode] * len(judged),
                "model": [name] * len(judged),
                "user_id": judged.user_ids,
                "target": [judged.split.items[item] for item in judged.targets],
                "history_length": [len(history) for history in judged.histories],
                "first": ranked[name].rankings[mode].placement.first,
                "size": ranked[name].rankings[mode].placement.size,
                **metrics,
            }
        )
        for mode, models in values.items()
        for name, metrics in models.items()
    )


def _lists(judged: Judged, ranked: Mapping[str, RankedUsers]) -> pl.DataFrame:
    items = judged.split.items
    return pl.concat(
        pl.DataFrame(
            {
                "mode": [mode] * len(judged),
                "model": [name] * len(judged),
                "user_id": judged.user_ids,
                "items": [[items[item] for item in one] for one in ranking.lists],
            },
            schema_overrides={"items": pl.List(pl.String)},
        )
        for name, answer in ranked.items()
        for mode, ranking in answer.rankings.items()
    )
