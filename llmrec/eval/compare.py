"""Compare finished evaluations: two recipes, each run with one or more seeds, on the same users.

    compare([Path("runs/a-seed0/eval"), Path("runs/a-seed1/eval")], [Path("runs/b/eval")])

Each user counts with the mean over the seeds of a side, so that more seeds never look like more users.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llmrec.errors import MismatchError
from llmrec.eval.config import Mode
from llmrec.eval.result import EvalResult
from llmrec.metrics import PairedTest, PerUser, mean_over_seeds, sign_flip_test, summarise


@dataclass(frozen=True)
class Comparison:
    """Side a against side b, in one mode.

    Attributes:
        metric: which one.
        users: judged by both.
        a, b: mean and standard error over users, ``{"value": …, "se": …}``.
        test: sign flips on the users' means over seeds.
    """

    metric: str
    users: int
    a: dict[str, float]
    b: dict[str, float]
    test: PairedTest


def compare(
    a: Sequence[Path],
    b: Sequence[Path],
    *,
    metric: str = "NDCG@10",
    mode: Mode | None = None,
    models: tuple[str | None, str | None] = (None, None),
    seed: int = 0,
) -> Comparison:
    """Compare the evaluations in the folders `a` with those in `b`.

    Args:
        a: folders that `EvalResult.save` wrote, one per seed.
        b: the same for the other side.
        metric: one of `llmrec.metrics.METRICS`.
        mode: the main mode of the first folder by default.
        models: name of the model on each side, by default the first of each evaluation.
        seed: of the sign flips.

    Raises:
        InputError: a folder holds no evaluation.
        MismatchError: the evaluations differ in data, part or users.
    """
    sides = [[EvalResult.load(folder) for folder in side] for side in (a, b)]
    first = sides[0][0]
    for folder, result in zip([*a, *b], [*sides[0], *sides[1]], strict=True):
        for key in ("loo_sha256", "split"):
            if result.summary[key] != first.summary[key]:
                raise MismatchError(f"{folder} has {key} {result.summary[key]}, {a[0]} has {first.summary[key]}")
        if result.user_ids() != first.user_ids():
            raise MismatchError(
                f"{folder} judged {len(result.user_ids())} users, {a[0]} judged {len(first.user_ids())} others",
                hint="evaluate both with the same users=N",
            )
    mode = mode or first.modes[0]
    means: list[PerUser] = [
        mean_over_seeds([result.values(model or result.models[0], mode) for result in side])
        for side, model in zip(sides, models, strict=True)
    ]
    summaries = [summarise({metric: values[metric]})[metric] for values in means]
    test = sign_flip_test(means[0][metric], means[1][metric], seed=seed)
    return Comparison(metric, len(first.user_ids()), summaries[0], summaries[1], test)
