"""Which start of the SID rows serves a recipe: the first steps of its continued pretraining, once for each of them.

Base, data, SIDs, settings, seeds and batches are the recipe's own and the same for all. The first epoch shows each
target once, and a step's loss is taken before the step learns from it, so the losses are of targets that the model has
not seen, paired batch by batch. They are compared over the last half of the steps: what a start is worth is how fast it
learns, not where it begins (in the table of `llmrec.sid_vocab.rows` the best beginning is not the best end). The valid
loss stands beside them.

Few steps say little about where a long training ends: a start saves steps, and the longer a training is, the less that
matters.
"""

from __future__ import annotations

import dataclasses
import gc
import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llmrec import recipes
from llmrec.costs import architecture
from llmrec.errors import InputError
from llmrec.machine import Machine, this_machine
from llmrec.pipeline_config import PipelineConfig
from llmrec.pipeline_parts import extended_base
from llmrec.sid_vocab.rows import INITS, Init
from llmrec.stages import quiet_libraries

if TYPE_CHECKING:
    from rich.console import Console

    from llmrec.data.dataset import Dataset
    from llmrec.sid_vocab.table import SIDTable

MIN_STEPS = 4
"""Fewer leave no half to compare."""
_ARM_SECONDS = 5  # to load a base and make its rows
_NOISE = 2.0  # standard errors within which two starts count as equal


@dataclass(frozen=True)
class InitTrial:
    """One start; losses in nats per target."""

    init: Init
    losses: tuple[float, ...]
    """Of each step, before it learned from its batch."""
    valid_before: float
    """Of SID tokens of valid targets, before the first step."""
    valid_after: float
    seconds: float

    @property
    def late(self) -> np.ndarray:
        """(steps / 2,) the losses that are compared."""
        return np.array(self.losses[len(self.losses) // 2 :])


@dataclass(frozen=True)
class InitReport:
    """All starts of a recipe."""

    recipe: str
    steps: int
    of_steps: int
    """Steps of the whole stage, by which the learning rate goes."""
    trials: tuple[InitTrial, ...]
    """Best first."""
    use: Init
    """The recipe's own start where the best is no better than that beyond chance, else the best."""
    why: str
    left_out: tuple[str, ...]
    """Starts that this recipe cannot have, and why."""
    estimated_seconds: float
    """What was said beforehand."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dataclasses.asdict(self)


def init_report(
    config: PipelineConfig,
    dataset: Dataset,
    table: SIDTable,
    *,
    steps: int,
    console: Console,
    machine: Machine | None = None,
) -> InitReport:
    """Train the first `steps` of the recipe's cpt from every start, and compare.

    Args:
        config: the recipe; its own ``init`` is what the others have to beat.
        dataset: its data.
        table: its SIDs, without token ids.
        steps: optimizer steps of each trial; no more than the first epoch has.
        console: where the estimate and the progress are told.
        machine: what to estimate for; by default this one, measured.

    Raises:
        InputError: fewer steps than 4, or more than the first epoch has.
    """
    from llmrec.prompts.renderer import Renderer
    from llmrec.prompts.templates import TemplateSet
    from llmrec.sid_vocab.extend import extend_tokenizer
    from llmrec.train import cpt
    from llmrec.train.batches import build_batches
    from llmrec.train.first_steps import first_steps
    from llmrec.train.light_base import light_base
    from llmrec.train.stage import train_sequences, valid_dataset

    quiet_libraries()
    stage = config.cpt
    base = light_base(config.base, dataset.catalog.texts())
    extended = extend_tokenizer(base.tokenizer, table)  # ids are the same for every start, and so are the batches
    renderer = Renderer(
        base.tokenizer,
        extended,
        TemplateSet.load(Path(config.prompts) if config.prompts else recipes.folder("prompts")),
    )
    first_epoch = stage.model_copy(update={"epochs": min(1.0, stage.epochs)})
    batches = build_batches(first_epoch, renderer, dataset.catalog, train_sequences(dataset)).dataset
    of_epoch = len(batches) // stage.gradient_accumulation
    of_steps = math.ceil(len(batches) * max(1.0, stage.epochs) / stage.gradient_accumulation)
    _check_steps(steps, of_epoch)
    train = batches.select(range(steps * stage.gradient_accumulation))
    valid = valid_dataset(stage, renderer, dataset, config.serving.window)

    inits = [init for init in INITS if init != "centroid" or table.codebooks]
    left_out = () if table.codebooks else ("centroid: the SIDs were given in a file, so there are no centroids",)
    model = architecture(base.shape, table.num_tokens, max(base.tokenizer.get_vocab().values()) + 1)
    learned, judged = _size(train, stage.head), _size(valid, stage.head)
    operations = model.training(stage, learned.tokens, learned.length, learned.vocabulary_targets)
    operations += 2 * model.forward(judged.tokens, judged.length)
    machine = machine or this_machine(Path())
    seconds = len(inits) * (_ARM_SECONDS + machine.seconds(operations, model.hidden))
    console.print(
        f"{len(inits)} starts x {steps} of {of_steps:,} steps ({learned.tokens:,} tokens) and the valid loss of "
        f"{min(stage.valid_users, len(dataset.split.users))} users twice: about {seconds / 60:.1f} minutes "
        f"({machine.flops / 1e9:,.0f} GFLOP/s, {machine.name}); a factor of 2 either way"
    )

    trials = []
    for init in inits:
        started, extension = extended_base(config, dataset, table, init)
        with tempfile.TemporaryDirectory() as work:
            measured = first_steps(
                stage,
                model=cpt.prepare(started, extension.table, stage, config.flow),
                tokenizer=extension.tokenizer,
                table=extension.table,
                train=train,
                valid=valid,
                steps=steps,
                of_steps=of_steps,
                work=Path(work),
            )
        trial = InitTrial(init, measured.losses, measured.valid_before, measured.valid_after, measured.seconds)
        trials.append(trial)
        console.print(f"  {init:<10}  loss {trial.losses[0]:.2f} > {trial.losses[-1]:.2f}, {trial.seconds:.0f} s")
        del started, extension, measured
        gc.collect()  # a trainer hangs in reference cycles
    trials.sort(key=lambda trial: float(trial.late.mean()))
    use, why = choose(trials, config.init)
    return InitReport(config.name, steps, of_steps, tuple(trials), use, why, left_out, seconds)


def choose(trials: Sequence[InitTrial], own: Init) -> tuple[Init, str]:
    """The start to use, and why in words.

    Args:
        trials: best first.
        own: the recipe's start, which stays unless another one is better by more than two standard errors of the
            paired differences. Steps follow each other, so that the true error is larger: a near miss is none.
    """
    best = trials[0]
    rival = next((trial for trial in trials if trial.init == own), trials[-1])
    if rival is best:
        return own, f"the recipe's own start has the lowest loss, {best.late.mean():.3f}"
    differences = rival.late - best.late
    mean, error = float(differences.mean()), float(differences.std(ddof=1) / math.sqrt(len(differences)))
    told = (
        f"{best.init} {best.late.mean():.3f}, {rival.init} {rival.late.mean():.3f}, difference {mean:.3f} ± {error:.3f}"
    )
    if rival.init == own and mean <= _NOISE * error:
        return own, f"no other start is better than the recipe's own beyond chance: {told}"
    return best.init, f"lowest loss in the last {len(best.late)} steps: {told}"


@dataclass(frozen=True)
class _Size:
    tokens: int
    """Computed, padding included."""
    length: float
    vocabulary_targets: int
    """Tokens that are scored over the whole vocabulary."""


def _size(batches: Any, head: str) -> _Size:
    tokens = rows = scored = 0
    for batch in batches:
        rows += len(batch["input_ids"])
        tokens += len(batch["input_ids"]) * max(map(len, batch["input_ids"]))
        for labels, levels in zip(batch["labels"], batch["sid_level"], strict=True):
            scored += sum(
                label >= 0 and (level < 0 or head == "vocab") for label, level in zip(labels, levels, strict=True)
            )
    return _Size(tokens, tokens / max(rows, 1), scored)


def _check_steps(steps: int, of_epoch: int) -> None:
    if steps < MIN_STEPS:
        raise InputError(f"--steps is {steps}.", hint=f"give at least {MIN_STEPS}: the last half is compared")
    if steps > of_epoch:
        raise InputError(
            f"--steps is {steps}, but the first epoch of cpt has {of_epoch} steps; beyond it the targets are not new.",
            hint=f"give at most {of_epoch}" if of_epoch >= MIN_STEPS else "lower cpt.batch_tokens",
        )
