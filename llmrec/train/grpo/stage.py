"""Runs a GRPO stage to its end, from the last state a killed run has left: what `llmrec.train.stage` is for SFT.

    model = prepare(start, config, flow)
    result = run_grpo("grpo", config, model=model, ..., normalise="level", work=work, log=log)

The model hands on the weights of the best valid evaluation (`keep_best`), the ones it started from among them.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from transformers import TrainerCallback
from trl import GRPOConfig

from llmrec import processes
from llmrec.checkpoint import Checkpoint
from llmrec.data.dataset import Dataset
from llmrec.decode.result import Normalise
from llmrec.decode.searcher import Searcher
from llmrec.decode.trie import SIDTrie
from llmrec.prompts.renderer import Renderer
from llmrec.sid_vocab.table import ACTIVE
from llmrec.train.config import Flow, StageConfig
from llmrec.train.grpo.config import GRPOStageConfig
from llmrec.train.grpo.losses import LOSSES
from llmrec.train.grpo.prompts import Prompts, build_prompts
from llmrec.train.grpo.thought_rollouts import make_rollouts, require_thinker, thought_knowledge, watched
from llmrec.train.grpo.trainer import ConstrainedGRPOTrainer
from llmrec.train.log import TrainingLog
from llmrec.train.monitor.alarms import Alarm
from llmrec.train.monitor.best import BestWeights
from llmrec.train.monitor.held_out import HeldOut
from llmrec.train.monitor.record import popularity_percentile
from llmrec.train.monitor.watch import MonitorCallback
from llmrec.train.rewards.build import build_context
from llmrec.train.rewards.compose import make_rewards
from llmrec.train.sharded import require_whole_weights
from llmrec.train.start import prepare_start
from llmrec.train.start_weights import StartWeights
from llmrec.train.states import KEPT
from llmrec.train.trainer_run import quiet_beside_main, shared_out, state_to_resume, train
from llmrec.train.tree_forward import TreeForward


@dataclass(frozen=True)
class GRPOResult:
    """What a stage measured.

    Attributes:
        steps: optimizer steps that were made.
        prompts: what was rolled out, and what was left out.
        seconds: training time, over all resumed parts.
        held_out: ``(step, metric)`` of every evaluation.
        alarms: what the monitor saw, by step.
        stopped_by: the alarm that ended the run; None where it came to its end.
        handed_on: step of the weights that the model has now.
    """

    steps: int
    prompts: Prompts
    seconds: float
    held_out: tuple[tuple[int, float], ...]
    alarms: tuple[Alarm, ...]
    stopped_by: Alarm | None
    handed_on: int


def prepare(start: Checkpoint, config: GRPOStageConfig, flow: Flow) -> Any:
    """The model that learns. Raises InputError for a start that lacks SFT or thoughts, or settings against it."""
    require_thinker(start, config.rollout)
    shared = {name: getattr(config, name) for name in ("method", "lora", "train_sid_rows", "seed")}
    return prepare_start("grpo", start, StageConfig(**shared), flow)


def run_grpo(
    name: str,
    config: GRPOStageConfig,
    *,
    model: Any,
    tokenizer: Any,
    renderer: Renderer,
    dataset: Dataset,
    window: int,
    normalise: Normalise,
    work: Path,
    log: Path,
    text_vectors: np.ndarray | None = None,
    console: Console | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> GRPOResult:
    """Train `model` in place; in several processes, each with the same arguments, in all of them.

    Args:
        name: of the stage, in the log and on the console.
        model: a causal LM or PEFT model whose trainable parameters are set already (`prepare`), with the weights that
            the reference has.
        window: items of the history in a prompt, as served.
        normalise: of the search that measures the held-out metric: the one that serves.
        work: folder of the states to resume from; a state found there is resumed.
        log: JSON-lines file of the monitor's rows.
        text_vectors: (table.num_items, dim), where a reward compares texts.

    Raises:
        InputError: nothing to train on, or a reward that gives nonsense.
        EnvironmentProblem: the disk has no room for states to resume from.
    """
    console = quiet_beside_main(console)
    table, split = renderer.table, dataset.split
    prompts = build_prompts(config, renderer, split, window=window)
    steps, generations = schedule(config, len(prompts.prompts))
    rows = prompts.rows(generations * prompts_together(config), config.seed)
    for line in _describe(name, config, prompts, steps):
        console.print(line, highlight=False)
    trie = SIDTrie.build(table.codes, table.codebook_sizes, alive=table.status == ACTIVE)
    assert table.token_ids is not None
    save_steps = -(-config.save_steps // config.num_iterations) * config.num_iterations
    state = state_to_resume(name, model, work, steps=steps, save_steps=save_steps)
    best = BestWeights(work)
    if state is None:
        processes.from_main(partial(shutil.rmtree, work, ignore_errors=True))
    reference = StartWeights(model)  # before a state is loaded into the model
    # "level" tells what "legal" cannot: the probability that the policy leaves to legal items.
    drawing = config.normalise if config.rollout.kind != "sample" or config.normalise != "legal" else "level"
    if config.rollout.kind == "thought":
        drawing = normalise  # thoughts are paid for what would be served
    searcher = Searcher(model, trie, table.token_ids, normalise=drawing)
    training_log = TrainingLog(log, name)
    watch = MonitorCallback(
        training_log,
        tokens=sum(len(row) for row in rows["prompt_ids"]) * config.num_iterations,
        console=console,
        held_out=HeldOut.of_split(
            watched(config.rollout, searcher.over(trie, normalise=normalise), renderer, tokenizer),
            renderer,
            split,
            users=config.valid_users,
            window=window,
            max_length=config.max_length,
            exclude_history=config.rollout.exclude_history,
        ),
        best=best,
        work=work,
        evaluate_steps=config.evaluate_steps,
    )
    knowledge = thought_knowledge(config.rollout, renderer, dataset.catalog)
    context = build_context(config.rewards, table, split, text_vectors=text_vectors, **knowledge)
    rewards = make_rewards(config.rewards, context)
    sids = table.sid_token_ids()
    trainer = ConstrainedGRPOTrainer(
        model=model,
        reward_funcs=list(rewards.rewards),
        args=grpo_arguments(config, steps, work, save_steps=save_steps, num_levels=table.num_levels),
        train_dataset=rows,
        processing_class=tokenizer,
        callbacks=[watch, *callbacks],
        settings=config,
        rollouts=make_rollouts(config.rollout, searcher, renderer, tokenizer),
        rewards=rewards,
        policy=TreeForward(
            model, normalise=config.normalise, table=table, trie=trie, temperature=config.rollout.temperature
        ),
        reference=reference,
        percentile=popularity_percentile(_train_counts(dataset, table.item_ids)),
        sid_of={item_id: sids[row] for row, item_id in enumerate(table.item_ids)},
    )
    require_whole_weights(name, trainer, ["rollouts and the held-out metric search with the model as it learns"])
    train(trainer, name, work=work, state=state, progress=watch, console=console)
    done = trainer.state.global_step
    handed_on = best.restore(model) if config.keep_best or watch.stopped_by else done
    found = processes.from_main(training_log.rows)
    return GRPOResult(
        steps=done,
        prompts=prompts,
        seconds=max((row["seconds"] for row in found), default=0.0),
        held_out=tuple((row["step"], row["held_out"]) for row in found if "held_out" in row),
        alarms=tuple(watch.monitor.alarms),
        stopped_by=watch.stopped_by,
        handed_on=handed_on,
    )


def schedule(config: GRPOStageConfig, num_prompts: int) -> tuple[int, int]:
    """Optimizer steps and rollouts of a stage; the last rollout is filled up with prompts of a next epoch."""
    together = prompts_together(config)
    if config.max_steps is not None:
        return config.max_steps, -(-config.max_steps // config.num_iterations)
    generations = max(1, int(np.ceil(config.epochs * num_prompts / together)))
    return generations * config.num_iterations, generations


def prompts_together(config: GRPOStageConfig) -> int:
    """Prompts of a rollout and of an optimizer step, over all processes."""
    return config.prompts_per_step * config.gradient_accumulation * processes.count()


def grpo_arguments(config: GRPOStageConfig, steps: int, work: Path, *, save_steps: int, num_levels: int) -> GRPOConfig:
    """TRL's settings for a stage.

    Args:
        steps: optimizer steps.
        work: folder of the states to resume from.
        save_steps: steps between two states, whole rollouts.
        num_levels: tokens of a SID.
    """
    on_gpu, form = torch.cuda.is_available(), LOSSES[config.loss]
    high = config.epsilon_high or (5.0 if config.loss == "cispo" else config.epsilon)
    return GRPOConfig(
        output_dir=str(work),
        per_device_train_batch_size=config.prompts_per_step * config.rollout.group_size,
        num_generations=config.rollout.group_size,
        gradient_accumulation_steps=config.gradient_accumulation,
        num_iterations=config.num_iterations,
        max_completion_length=config.rollout.learned_tokens(num_levels),
        shuffle_dataset=False,  # all epochs are laid out, each in an order of its own
        max_steps=steps,
        loss_type=form.trl,
        importance_sampling_level=config.ratio,
        epsilon=config.epsilon if form.clipped else float("inf"),
        epsilon_high=high if form.clipped else float("inf"),
        temperature=config.rollout.temperature,
        beta=0.0,  # the divergence is ours: TRL would copy LoRA without SID rows, and weigh all items equally
        disable_dropout=True,
        learning_rate=config.learning_rate,
        lr_scheduler_type=config.schedule,
        warmup_steps=round(config.warmup_ratio * steps),
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=save_steps,
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
        remove_unused_columns=False,
        disable_tqdm=True,
    )


def _train_counts(dataset: Dataset, item_ids: Sequence[str]) -> np.ndarray:
    """(table rows,) train events of each item."""
    counts = dict(zip(dataset.split.items, dataset.split.train_counts().tolist(), strict=True))
    return np.array([counts.get(item_id, 0) for item_id in item_ids])


def _describe(name: str, config: GRPOStageConfig, prompts: Prompts, steps: int) -> list[str]:
    rollout = config.rollout
    kind = {
        "sample": f"{rollout.group_size} items drawn without replacement, {rollout.estimator} weights",
        "beam": f"{rollout.group_size} beams as hard negatives{', the target added' if rollout.add_target else ''}",
        "thought": f"{rollout.group_size} thoughts of up to {rollout.max_thought_tokens} tokens, "
        f"{rollout.num_beams} beams behind each",
    }[rollout.kind]
    lines = [
        f"{name:>4}  {steps:,} steps over {len(prompts.prompts):,} prompts: {kind}; loss {config.loss}, "
        f"log-probabilities over {config.normalise}, beta {config.beta:g}, anchor {config.anchor:g}; "
        f"rewards {', '.join(config.rewards.parts)}"
    ]
    lines += shared_out(name, config.gradient_accumulation, f"batches of {config.prompts_per_step} prompts")
    return lines + [f"{name:>4}  left out: {count:,} {reason}" for reason, count in prompts.dropped.items()]
