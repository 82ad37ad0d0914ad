"""Runs a preference stage to its end, from the last state a killed run has left: `llmrec.train.stage` for preferences.

    model = prepare(start, config, flow)
    result = run_preference("preference", config, rows, model=model, tokenizer=..., renderer=..., dataset=..., ...)

An iteration trains `PreferenceConfig.epochs` over its rows against a reference that stands still, and the next one
begins with the model as its reference. Rows are given once, or made for each iteration (self-play as in SPRec, Gao et
al., 2024). Each iteration has a folder of states; when it is done, its trained weights take the place of the states.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset as Rows
from rich.console import Console
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from llmrec import processes
from llmrec.checkpoint import Checkpoint
from llmrec.data.dataset import Dataset
from llmrec.errors import MismatchError
from llmrec.prompts.renderer import Renderer
from llmrec.train.config import Flow, StageConfig
from llmrec.train.log import TrainingLog
from llmrec.train.preference.losses import PreferenceObjective
from llmrec.train.preference.pairs import PreferenceRow
from llmrec.train.preference.reference import kept_scores, score_rows
from llmrec.train.preference.rows import PreferenceBatches, build_rows
from llmrec.train.preference.stage_config import PreferenceConfig
from llmrec.train.preference.trainer import MEASURES, PreferenceCollator, PreferenceTrainer
from llmrec.train.progress import LogCallback
from llmrec.train.sharded import FULL, make_whole, require_whole_weights
from llmrec.train.stage import evaluated_at_the_end, stage_arguments, valid_dataset
from llmrec.train.start import prepare_start
from llmrec.train.start_weights import StartWeights
from llmrec.train.trainer_run import quiet_beside_main, shared_out, state_to_resume, steps_of, train
from llmrec.train.tree_forward import TreeForward

RowsOf = Callable[[int, Any], Sequence[PreferenceRow]]
"""Makes the rows of an iteration (from 0) with the model as it is then."""
_DONE = "trained.safetensors"


@dataclass(frozen=True)
class PreferenceResult:
    """What a stage measured.

    Attributes:
        steps: optimizer steps of all iterations.
        seconds: training time, over all iterations and resumed parts.
        valid_losses: per iteration ``(step, loss)``: nats per SID token of the valid target behind its history.
        logs: per iteration the JSON-lines file.
    """

    steps: int
    seconds: float
    valid_losses: tuple[tuple[tuple[int, float], ...], ...]
    logs: tuple[Path, ...]


def prepare(start: Checkpoint, config: PreferenceConfig, flow: Flow) -> Any:
    """The model that learns. Raises InputError for a start without SFT, or settings that contradict it."""
    return prepare_start("preference", start, _stage(config), flow)


def run_preference(
    name: str,
    config: PreferenceConfig,
    rows: Sequence[PreferenceRow] | RowsOf,
    *,
    model: Any,
    tokenizer: Any,
    renderer: Renderer,
    dataset: Dataset,
    work: Path,
    log: Path,
    console: Console | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> PreferenceResult:
    """Train `model` in place; in several processes, each with the same arguments, in all of them.

    Args:
        name: of the stage, in the log and on the console.
        rows: of every iteration, or what makes those of one.
        model: a causal LM or PEFT model whose trainable parameters are set already (`prepare`), with the weights that
            the first reference has.
        work: folder of the states to resume from; a state found there is resumed.
        log: JSON-lines file of the first iteration; the others get its name with a number.

    Raises:
        DataError: malformed rows.
        InputError: nothing to train on.
        EnvironmentProblem: the disk has no room for states to resume from.
    """
    console = quiet_beside_main(console)
    logs, losses, seconds, steps = [], [], 0.0, 0
    for iteration in range(config.iterations):
        folder = work / f"iteration-{iteration}"
        path = log if iteration == 0 else log.with_name(f"{log.stem}-{iteration}{log.suffix}")
        title = name if config.iterations == 1 else f"{name} {iteration + 1}/{config.iterations}"
        if processes.from_main((folder / _DONE).exists):
            _load(model, folder / _DONE)
            console.print(f"{title:>4}  was done before", highlight=False)
        else:
            made = build_rows(config, renderer, rows(iteration, model) if callable(rows) else rows)
            _run_iteration(
                title, config, made, model=model, tokenizer=tokenizer, renderer=renderer, dataset=dataset, work=folder,
                log=TrainingLog(path, name), console=console, callbacks=callbacks,
            )  # fmt: skip
            if processes.is_main():
                _finish(model, folder)
        found = processes.from_main(TrainingLog(path, name).rows)
        logs.append(path)
        losses.append(tuple((row["step"], row["valid_loss"]) for row in found if "valid_loss" in row))
        seconds += max((row["seconds"] for row in found), default=0.0)
        steps += max((row["step"] for row in found), default=0)
    return PreferenceResult(steps, seconds, tuple(losses), tuple(logs))


def _run_iteration(
    name: str,
    config: PreferenceConfig,
    batches: PreferenceBatches,
    *,
    model: Any,
    tokenizer: Any,
    renderer: Renderer,
    dataset: Dataset,
    work: Path,
    log: TrainingLog,
    console: Console,
    callbacks: Sequence[TrainerCallback],
) -> None:
    stage = _stage(config)
    steps = steps_of(len(batches.batches), config.gradient_accumulation)
    for line in _describe(name, config, batches, steps):
        console.print(line, highlight=False)
    state = state_to_resume(name, model, work, steps=steps, save_steps=config.save_steps)
    forward = TreeForward(model, normalise=config.head, table=renderer.table)
    reference = scores = None
    if config.precompute_reference:  # before a state is loaded into the model: it is its own reference now
        scores = kept_scores(work, batches, partial(score_rows, model, forward, batches, batch_rows=config.batch_rows))
    else:
        reference = StartWeights(model)
    progress = LogCallback(log, tokens=batches.tokens, console=console, measures=MEASURES)
    rows = [{"rows": list(batch), "counts": True} for batch in batches.batches]
    rows += [{**rows[0], "counts": False}] * (-len(rows) % processes.count())
    trainer = PreferenceTrainer(
        model=model,
        args=stage_arguments(stage, steps, work, fresh=state is None),
        train_dataset=Rows.from_list(rows),
        eval_dataset=valid_dataset(stage, renderer, dataset, config.window),
        processing_class=tokenizer,
        data_collator=PreferenceCollator(batches, scores, tokenizer.pad_token_id or 0),
        callbacks=[progress, *callbacks],
        table=renderer.table,
        stage=stage,
        forward=forward,
        objective=PreferenceObjective(config),
        reference=reference,
    )
    require_whole_weights(name, trainer, _needs_whole_weights(config))
    train(trainer, name, work=work, state=state, progress=progress, console=console)
    evaluated_at_the_end(trainer, log, steps)
    make_whole(model)


def _needs_whole_weights(config: PreferenceConfig) -> list[str]:
    needs = {
        FULL: config.method == "full",
        "precompute_reference: false swaps in a copy of the start's weights": not config.precompute_reference,
        "a further iteration cannot begin with a model that was sharded": config.iterations > 1,
    }
    return [reason for reason, there in needs.items() if there]


def _stage(config: PreferenceConfig) -> StageConfig:
    """What the trainer of all stages reads."""
    shared = StageConfig.model_fields.keys() & PreferenceConfig.model_fields.keys()
    return StageConfig(**{name: getattr(config, name) for name in shared})


def _finish(model: Any, folder: Path) -> None:
    """Leave the trained weights, and nothing else, in the folder of an iteration that is done."""
    waiting = folder / f".{_DONE}.{os.getpid()}"
    save_file({name: each.detach().contiguous() for name, each in _trained(model).items()}, waiting)
    waiting.rename(folder / _DONE)
    for other in folder.iterdir():
        if other.name != _DONE:
            shutil.rmtree(other) if other.is_dir() else other.unlink()


def _load(model: Any, path: Path) -> None:
    trained, kept = _trained(model), load_file(path)
    if trained.keys() != kept.keys():
        raise MismatchError(
            f"{path} holds the weights of another model: {len(kept)} tensors, of which "
            f"{len(kept.keys() & trained.keys())} are among the {len(trained)} that learn here.",
            hint="remove the folder to train the iteration again",
        )
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(kept[name])


def _trained(model: Any) -> dict[str, Any]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def _describe(name: str, config: PreferenceConfig, batches: PreferenceBatches, steps: int) -> list[str]:
    losses = " + ".join(f"{weight:g} {loss}" for loss, weight in config.losses.items())
    anchor = f" + {config.sft_weight:g} sft anchor" if config.sft_weight else ""
    lines = [
        f"{name:>4}  {config.epochs:g} epochs, {steps:,} steps: {len(batches.rows):,} rows, {batches.pairs:,} rejected "
        f"items; {losses}{anchor}, beta {config.beta:g}, log-probabilities over the {config.head}"
    ]
    lines += shared_out(name, config.gradient_accumulation, f"batches of up to {config.batch_rows} rows")
    return lines + [f"{name:>4}  left out: {count:,} {reason}" for reason, count in batches.dropped.items()]
