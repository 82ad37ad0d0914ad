"""The gate: is thinking worth it? Think and no-think on the same users, with the same candidates, and what each costs.

Thinking does not win by itself: OneReason (arXiv:2606.06260) reports that its predecessors' thinking mode showed no
advantage over the other one. So a thinking model is recommended only when a paired sign-flip test on the per-user
metric says that it is better, by more than a margin that is set beforehand. Every other outcome, a tie included, is
"serve plain", which costs less. With an adaptive budget a third arm thinks only where the plain search is not sure; the
two tests are then adjusted together (Holm), and of arms that pass the one with the larger gain is served.

Every arm searches with the same beams and lists the same number of items, one prompt at a time, so that CPU seconds
compare like with like; a plain search is cheaper still in batches. Forwards and tokens are counted at the model.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from pydantic import Field, field_validator, model_validator

from llmrec.config import Config
from llmrec.data.dataset import Dataset
from llmrec.data.split import Part
from llmrec.errors import InputError
from llmrec.eval.config import EvalConfig, Mode
from llmrec.eval.generate import rank_with_model
from llmrec.eval.judged import Judged
from llmrec.eval.ranker import Progress, quiet
from llmrec.eval.result import plain
from llmrec.metrics import MAX_CUTOFF, METRICS, PerUser, holm, per_user_metrics, sign_flip_test, summarise
from llmrec.prompts.grounding import Facts, Grounding, check_thought, grounding_rates
from llmrec.prompts.renderer import Renderer
from llmrec.prompts.thought_form import ThoughtForm
from llmrec.recommendation import MAX_THOUGHT_TOKENS

if TYPE_CHECKING:
    from llmrec.decode.searcher import Searcher
    from llmrec.decode.thought import Thought
    from llmrec.recommender import Recommender

FILE = "think_gate.json"


class ThinkGateConfig(Config):
    """Settings of the gate."""

    part: Part = "valid"
    """Whose targets decide. The decision is a choice, so by default it is made on valid."""
    users: int | None = Field(200, ge=2)
    """Users, chosen by the SHA-256 of their ids; None takes all."""
    mode: Mode = "filtered"
    """Whether the history is out of the lists."""
    num_beams: int = Field(20, ge=MAX_CUTOFF)
    """Width of every search, behind a thought or not."""
    max_thought_tokens: int = Field(MAX_THOUGHT_TOKENS, ge=1)
    """Budget of a thought."""
    sure_margin: float | None = Field(None, ge=0)
    """Adds the arm "adaptive": no thought where the plain search's best SID is ahead by this many nats."""
    metric: str = "NDCG@10"
    """That decides."""
    alpha: float = Field(0.05, gt=0, lt=1)
    """Thinking is recommended at a p-value below this only."""
    min_gain: float = Field(0.0, ge=0)
    """And at a difference above this only, in units of the metric."""
    window: int | None = Field(None, ge=1)
    """Most recent items in the prompt; None takes the checkpoint's."""
    seed: int = 0
    """Of the sign flips."""

    @field_validator("metric")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in METRICS:
            raise ValueError(f"{value!r} is no metric; known are {', '.join(METRICS)}")
        return value

    @model_validator(mode="after")
    def _decidable(self) -> ThinkGateConfig:
        if self.alpha < 2e-4:
            raise ValueError(f"alpha={self.alpha} is below what 10,000 sign flips can show")
        return self


@dataclass(frozen=True)
class Verdict:
    """What to serve.

    Attributes:
        serve: "plain", "think" or "adaptive".
        reason: in words.
        tests: per arm that thinks ``difference`` (to plain), ``p_value``, ``p_holm``, ``num_different``.
    """

    serve: str
    reason: str
    tests: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class GateResult:
    """What the gate found.

    Attributes:
        summary: JSON: verdict, arms with metrics and compute, settings.
        per_user: ``user_id`` and the metric of each arm.
    """

    summary: dict[str, Any]
    per_user: pl.DataFrame

    def save(self, folder: Path) -> Path:
        """Write ``think_gate.json`` and ``think_gate.parquet``; returns the former."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / FILE
        path.write_text(json.dumps(self.summary, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        self.per_user.write_parquet(path.with_suffix(".parquet"))
        return path


def decide(values: Mapping[str, np.ndarray], config: ThinkGateConfig) -> Verdict:
    """The verdict on per-user values of the arms, "plain" among them."""
    arms = [name for name in values if name != "plain"]
    found = {name: sign_flip_test(values[name], values["plain"], seed=config.seed) for name in arms}
    adjusted = dict(zip(arms, holm([found[name].p_value for name in arms]), strict=True))
    tests = {
        name: {
            "difference": test.difference,
            "p_value": test.p_value,
            "p_holm": float(adjusted[name]),
            "num_different": test.num_different,
        }
        for name, test in found.items()
    }
    better = [
        name for name in arms if tests[name]["difference"] > config.min_gain and tests[name]["p_holm"] < config.alpha
    ]
    serve = max(better, key=lambda name: tests[name]["difference"]) if better else "plain"
    told = max(arms, key=lambda name: tests[name]["difference"]) if serve == "plain" else serve
    wanted = f"wanted: above {config.min_gain:g} at p below {config.alpha:g}"
    reason = (
        f"{told} - plain = {tests[told]['difference']:+.4f} {config.metric}, p = {tests[told]['p_holm']:.4f} ({wanted})"
    )
    return Verdict(serve, reason, tests)


def think_gate(
    recommender: Recommender, dataset: Dataset, config: ThinkGateConfig, progress: Progress = quiet
) -> GateResult:
    """Judge a checkpoint with thoughts and without.

    Raises:
        InputError: the checkpoint was never taught to think, its back end is not torch, or there are no users.
    """
    serving = recommender.checkpoint.card.serving
    tokenizer = recommender.checkpoint.tokenizer
    return gate_arms(
        recommender.searcher(serving.normalise),
        recommender.renderer,
        dataset,
        config,
        stop_ids=[int(token_id) for token_id in tokenizer.all_special_ids],
        window=config.window or serving.window,
        max_length=serving.max_length,
        progress=progress,
    )


def gate_arms(
    searcher: Searcher,
    renderer: Renderer,
    dataset: Dataset,
    config: ThinkGateConfig,
    *,
    stop_ids: Sequence[int],
    window: int,
    max_length: int | None = None,
    progress: Progress = quiet,
) -> GateResult:
    """`think_gate` on parts: a searcher over a torch model, and how the prompt is cut."""
    from llmrec.decode.thinking_searcher import ThinkingSearcher
    from llmrec.decode.thought import ThoughtSettings
    from llmrec.decode.torch_backend import TorchBackend

    if not isinstance(searcher.backend, TorchBackend):
        raise InputError("Thoughts are written by the torch back end.", hint='open the checkpoint with engine="torch"')
    form = ThoughtForm.of(renderer)
    margins: dict[str, float | None] = {"think": None}
    if config.sure_margin is not None:
        margins["adaptive"] = config.sure_margin
    arms: dict[str, Searcher] = {"plain": searcher} | {
        name: ThinkingSearcher(
            searcher,
            opening_ids=form.opening_ids,
            closing_ids=form.closing_ids,
            stop_ids=stop_ids,
            settings=ThoughtSettings(config.max_thought_tokens, sure_margin=margin),
        )
        for name, margin in margins.items()
    }
    judged = Judged.choose(dataset.split, config.part, config.users)
    facts = Facts(dataset.catalog, renderer.table)
    settings = {"part": config.part, "modes": [config.mode], "num_beams": config.num_beams, "batch_size": 1}
    ranking = EvalConfig.model_validate({**settings, "baselines": {}, "exact_users": 0})
    metrics: dict[str, PerUser] = {}
    reports: dict[str, dict[str, Any]] = {}
    for name, arm in arms.items():
        with _counted(searcher.backend.model) as cost:
            ranked = rank_with_model(
                arm, renderer, judged, ranking, progress, window=window, max_length=max_length, label=name
            )
        metrics[name] = per_user_metrics(ranked.rankings[config.mode].placement)
        count = len(judged)
        reports[name] = {
            "metrics": summarise(metrics[name]),
            "invalid": ranked.invalid,
            "compute_per_user": {
                "tokens": cost["tokens"] / count,
                "forwards": cost["forwards"] / count,
                "cpu_s": ranked.details["search_cpu_s"] / count,
                "wall_s": ranked.details["search_wall_s"] / count,
            },
        }
        if isinstance(arm, ThinkingSearcher):
            reports[name]["thoughts"] = _thought_figures(arm.thoughts, renderer, form, facts)
    verdict = decide({name: values[config.metric] for name, values in metrics.items()}, config)
    summary = {
        "serve": verdict.serve,
        "reason": verdict.reason,
        "tests": verdict.tests,
        "arms": reports,
        "dataset": dataset.name,
        "loo_sha256": dataset.split.loo_sha256,
        "users": len(judged),
        "config": config.model_dump(mode="json"),
    }
    columns = {name: values[config.metric] for name, values in metrics.items()}
    return GateResult(plain(summary), pl.DataFrame({"user_id": judged.user_ids, **columns}))


def _thought_figures(
    thoughts: Sequence[tuple[np.ndarray, Thought]], renderer: Renderer, form: ThoughtForm, facts: Facts
) -> dict[str, Any]:
    """How thoughts ended, how long they were, and how much of what they say is true."""
    header, opening, closing = len(renderer.prefix_ids), len(form.opening_ids), len(form.closing_ids)
    checked: list[Grounding] = []
    written = []
    for prompt, thought in thoughts:
        if thought.end == "sure":
            continue
        ids = thought.ids[opening : len(thought.ids) - closing]
        history = {item_id for items in renderer.reader.items(prompt[header:]) for item_id in items}
        checked.append(check_thought(renderer.reader.parts(ids), history, facts))
        written.append(len(ids))
    return {
        "ends": dict(Counter(thought.end for _, thought in thoughts)),
        "tokens": float(np.mean(written)) if written else 0.0,
        "grounding": grounding_rates(checked),
    }


@contextmanager
def _counted(model: Any) -> Iterator[Counter[str]]:
    """Forwards of the model, and tokens in them, while the context is open."""
    cost: Counter[str] = Counter()

    def count(module: Any, arguments: Any, keywords: Mapping[str, Any]) -> None:
        cost["forwards"] += 1
        cost["tokens"] += keywords["input_ids"].numel()

    handle = model.get_decoder().register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield cost
    finally:
        handle.remove()
