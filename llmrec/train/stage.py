"""Runs one training stage to its end, from the last state a killed run has left (`llmrec.train.states`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import TrainerCallback
from trl import SFTConfig

from llmrec import processes
from llmrec.data.dataset import Dataset
from llmrec.errors import InputError
from llmrec.prompts.renderer import Renderer
from llmrec.prompts.task import hash_number
from llmrec.sid_vocab.table import SIDTable
from llmrec.train.batches import Batches, build_batches, collate, evened, valid_batches
from llmrec.train.config import StageConfig
from llmrec.train.log import TrainingLog
from llmrec.train.progress import LogCallback
from llmrec.train.sharded import FULL, make_whole, require_whole_weights
from llmrec.train.states import KEPT
from llmrec.train.trainer import RecommenderTrainer
from llmrec.train.trainer_run import quiet_beside_main, shared_out, state_to_resume, steps_of, train


@dataclass(frozen=True)
class StageResult:
    """What a stage measured.

    Attributes:
        steps: optimizer steps in all.
        batches: what was trained on.
        seconds: training time, over all resumed parts.
        valid_losses: ``(step, loss)`` from before the first to after the last step: nats per SID token of the valid
            target behind its history.
    """

    steps: int
    batches: Batches
    seconds: float
    valid_losses: tuple[tuple[int, float], ...]


def train_sequences(dataset: Dataset) -> list[list[str]]:
    """Train item ids of every user, oldest first: all that a model may learn from."""
    items = dataset.split.items
    return [[items[index] for index in sequence] for sequence in dataset.split.train()]


def run_stage(
    name: str,
    config: StageConfig,
    *,
    model: Any,
    tokenizer: Any,
    renderer: Renderer,
    dataset: Dataset,
    window: int,
    work: Path,
    log: Path,
    console: Console | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> StageResult:
    """Train `model` in place; in several processes, each with the same arguments, in all of them.

    Args:
        name: of the stage, in the log and on the console.
        model: a causal LM or PEFT model whose trainable parameters are set already.
        window: items of the history that the valid loss and serving show.
        work: folder of the states to resume from; a state found there is resumed.
        log: JSON-lines file.

    Raises:
        InputError: the tasks make no row.
        EnvironmentProblem: the disk has no room for states to resume from.
    """
    console = quiet_beside_main(console)
    batches = build_batches(config, renderer, dataset.catalog, train_sequences(dataset))
    if not len(batches.dataset):
        raise InputError(
            f"Stage {name} has nothing to train on: its tasks {', '.join(config.tasks)} make no row of this data.",
            hint="`llmrec data preview` shows what each task makes",
        )
    for line in _describe(name, config, batches):
        console.print(line, highlight=False)
    steps = steps_of(len(batches.dataset), config.gradient_accumulation)
    training_log = TrainingLog(log, name)
    state = state_to_resume(name, model, work, steps=steps, save_steps=config.save_steps)
    progress = LogCallback(training_log, tokens=batches.tokens, console=console)
    trainer = stage_trainer(
        config,
        stage_arguments(config, steps, work, fresh=state is None),
        model=model,
        tokenizer=tokenizer,
        table=renderer.table,
        train=evened(batches.dataset, processes.count()),
        valid=valid_dataset(config, renderer, dataset, window),
        callbacks=[progress, *callbacks],
    )
    require_whole_weights(name, trainer, [FULL] if config.method == "full" else [])
    train(trainer, name, work=work, state=state, progress=progress, console=console)
    rows = evaluated_at_the_end(trainer, training_log, steps)
    make_whole(model)
    return StageResult(
        steps=steps,
        batches=batches,
        seconds=max((row["seconds"] for row in rows), default=0.0),
        valid_losses=tuple((row["step"], row["valid_loss"]) for row in rows if "valid_loss" in row),
    )


def evaluated_at_the_end(trainer: RecommenderTrainer, log: TrainingLog, steps: int) -> list[dict[str, Any]]:
    """The rows of `log`, with the valid loss after the last step."""
    if not any(row["step"] == steps and "valid_loss" in row for row in processes.from_main(log.rows)):
        trainer.evaluate()
    return processes.from_main(log.rows)


def stage_trainer(
    config: StageConfig,
    arguments: SFTConfig,
    *,
    model: Any,
    tokenizer: Any,
    table: SIDTable,
    train: Any,
    valid: Any,
    callbacks: list[TrainerCallback],
) -> RecommenderTrainer:
    """The trainer of a stage over the batches `train` and `valid`, silent but for its callbacks."""
    pad_id = tokenizer.pad_token_id or 0  # any id does: padding lies behind all that is read
    return RecommenderTrainer(
        model=model,
        args=arguments,
        train_dataset=train,
        eval_dataset=valid,
        processing_class=tokenizer,
        data_collator=lambda rows: collate(rows, pad_id),
        callbacks=callbacks,
        table=table,
        stage=config,
    )


def _evaluate_every(config: StageConfig, steps: int) -> int:
    return max(1, steps // (config.evaluations - 1))


def stage_arguments(config: StageConfig, steps: int, work: Path, *, fresh: bool, **changes: Any) -> SFTConfig:
    """TRL's settings for a stage of `steps` optimizer steps; `changes` replace some.

    Args:
        work: folder of the states to resume from.
        fresh: whether to measure the valid loss before the first step; a resumed run has that already.
    """
    on_gpu = torch.cuda.is_available()
    settings = partial(
        SFTConfig,
        output_dir=str(work),
        per_device_train_batch_size=1,  # a row of the data set is a batch
        per_device_eval_batch_size=1,
        gradient_accumulation_steps=config.gradient_accumulation,
        num_train_epochs=1,  # all epochs are laid out in the data set
        learning_rate=config.learning_rate,
        lr_scheduler_type=config.schedule,
        warmup_steps=round(config.warmup_ratio * steps),
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        train_sampling_strategy="sequential",
        logging_steps=max(1, steps // 100),
        logging_first_step=True,
        eval_strategy="steps",
        eval_steps=_evaluate_every(config, steps),
        eval_on_start=fresh,
        save_strategy="steps",
        save_steps=config.save_steps,
        save_total_limit=KEPT,
        report_to=config.trackers or "none",
        seed=config.seed,
        data_seed=config.seed,
        use_cpu=not on_gpu,
        bf16=on_gpu,
        fp16=False,
        optim="adamw_torch_fused",
        adam_beta2=0.98,
        gradient_checkpointing=False,
        max_length=None,  # rows were cut by the renderer, which never drops a target
        packing=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
        disable_tqdm=True,
    )
    return settings(**changes)


def valid_dataset(config: StageConfig, renderer: Renderer, dataset: Dataset, window: int) -> Any:
    """Valid targets of users chosen by hash, behind their train histories. Nothing is fitted on them."""
    split = dataset.split
    known = set(renderer.table.item_ids)
    targets = split.targets("valid")
    users = [user for user in range(len(split.users)) if split.items[targets[user]] in known]
    users = sorted(users, key=lambda user: hash_number(split.users[user]))[: config.valid_users]
    histories = [[split.items[index] for index in split.history(user, "valid")] for user in users]
    wanted = [split.items[targets[user]] for user in users]
    batches = valid_batches(renderer, histories, wanted, window=window, batch_tokens=config.batch_tokens)
    return evened(batches, processes.count())


def _describe(name: str, config: StageConfig, batches: Batches) -> list[str]:
    rows = ", ".join(f"{count:,} {task}" for task, count in batches.rows.items())
    lines = [
        f"{name:>4}  {config.epochs:g} epochs: {rows} rows; {batches.tokens:,} tokens, "
        f"{batches.target_items:,} items as targets, {batches.padding:.0%} padding"
    ]
    lines += shared_out(name, config.gradient_accumulation, "batches")
    return lines + [f"{name:>4}  left out: {count:,} {reason}" for reason, count in batches.dropped.items()]
