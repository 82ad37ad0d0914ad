"""What a run will take, said before any of it: rows, tokens, minutes, memory and disk of every stage.

Rows and tokens are counted: examples are made as in training, behaviour rows are measured by their items, the others by
a rendered sample. Operations and bytes follow from the architecture (`llmrec.costs`). For minutes a matrix product is
timed here and now (`llmrec.machine`). Everything is an estimate, for a run that finds nothing cached on a machine that
does nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from llmrec import recipes
from llmrec.costs import FLOAT, GB, Architecture, architecture
from llmrec.machine import Machine, this_machine
from llmrec.pipeline_config import PipelineConfig
from llmrec.train.sample import StageSample, sample_stage

if TYPE_CHECKING:
    from llmrec.data.dataset import Dataset
    from llmrec.data.split import Part, Split
    from llmrec.prompts.segments import Rendered
    from llmrec.quantized import Quantize
    from llmrec.sid_vocab.build import SIDConfig
    from llmrec.sid_vocab.table import SIDTable
    from llmrec.train.config import StageConfig

RENDERED = 500
"""Rows per task that are rendered to measure their length."""

_SUFFIX_SIZE = 64  # stands for suffix_size: auto, which only finished codes decide; no figure shown depends on it
_PROCESS_BYTES = 0.7 * GB  # torch, transformers, trl and a small data set, measured
_STAGE_SECONDS = 5  # to load and to write
_ROW_SECONDS = 1e-3  # to render a training row
_USER_SECONDS = 5e-3  # of search that is no matrix product, a user
_ENCODER = (10.6e6, 384)  # layer parameters and width of all-MiniLM-L6-v2, which stands for any encoder of texts


@dataclass(frozen=True)
class StagePlan:
    """One stage."""

    name: str
    """``sid``, ``cpt``, ``sft`` or ``eval``."""
    rows: int
    """Items to embed, rows to train over all epochs, or users to judge."""
    tokens: int
    """Of these rows; in an evaluation what all its models read and search."""
    minutes: float
    """On this machine with nothing else running."""
    memory_gb: float
    """Peak of the process, or of the GPU where there is one."""


@dataclass(frozen=True)
class Plan:
    """All stages, and in words how the figures were made and whether this machine suffices."""

    stages: tuple[StagePlan, ...]
    lines: tuple[str, ...]
    disk_gb: float
    """Largest use of the disk during the run."""
    sufficient: bool
    """Whether the memory and the disk that are free now hold the estimate."""


def make_plan(config: PipelineConfig, runs: Path = Path("runs"), machine: Machine | None = None) -> Plan:
    """Estimate a run. Data are read and a base's tokenizer and config; no weights are loaded, nothing is written.

    Args:
        config: the recipe.
        runs: where runs go; its disk is looked at.
        machine: what to estimate for; by default this one, measured.

    Raises:
        DataError, InputError, EnvironmentProblem: what would stop the run at its beginning.
    """
    from llmrec.data.dataset import read_data
    from llmrec.prompts.renderer import Renderer
    from llmrec.prompts.templates import TemplateSet
    from llmrec.sid_vocab.extend import extend_tokenizer
    from llmrec.train.light_base import light_base
    from llmrec.train.stage import train_sequences

    dataset = read_data(config.data)
    base = light_base(config.base, dataset.catalog.texts())
    table = extend_tokenizer(base.tokenizer, table_shape(config.sid, dataset.catalog.item_ids))
    templates = TemplateSet.load(Path(config.prompts) if config.prompts else recipes.folder("prompts"))
    renderer = Renderer(base.tokenizer, table, templates)
    sequences = train_sequences(dataset)
    samples = {
        name: sample_stage(stage, renderer, dataset.catalog, sequences, limit=RENDERED)
        for name, stage in config.stages.items()
    }
    model = architecture(base.shape, table.num_tokens, max(base.tokenizer.get_vocab().values()) + 1)
    machine = machine or this_machine(runs)

    stages = [_plan_sids(config, dataset, machine)]
    header = len(renderer.prefix_ids)
    valid = header + table.num_levels * (1 + _mean_items(dataset.split, config.serving.window, "valid"))
    for name, stage in config.stages.items():
        stages.append(_plan_training(name, stage, samples[name], model, machine, valid, config.base.quantize))
    stages.append(_plan_evaluation(config, dataset, table, header, model, machine))
    disk = _disk_bytes(config, model, stages)
    return Plan(
        stages=tuple(stages),
        lines=(*_how(config, model, samples, table, machine), *_verdict(stages, disk, machine)),
        disk_gb=disk / GB,
        sufficient=max(stage.memory_gb for stage in stages) * GB <= machine.free_memory and disk <= machine.free_disk,
    )


def table_shape(config: SIDConfig, item_ids: tuple[str, ...]) -> SIDTable:
    """A table with the levels that the recipe's SIDs will have and code 0 throughout: right for lengths alone."""
    from llmrec.sid_vocab.index_json import read_index_json
    from llmrec.sid_vocab.table import SIDTable

    if config.index is not None:
        sizes = read_index_json(config.index, item_ids).codebook_sizes
    else:
        sizes = config.quantizer.codebook_sizes
        if config.collisions.strategy == "suffix":
            size = config.collisions.suffix_size
            sizes = (*sizes, _SUFFIX_SIZE if size == "auto" else size)
    codes = np.zeros((len(item_ids), len(sizes)), np.int32)
    return SIDTable(item_ids=item_ids, codes=codes, codebook_sizes=sizes, has_suffix=False)


# -- stages ------------------------------------------------------------------------------------------------------------


def _plan_sids(config: PipelineConfig, dataset: Dataset, machine: Machine) -> StagePlan:
    texts = dataset.catalog.texts()
    embeds = config.sid.index is None and config.sid.embeddings.source in ("text", "lm")
    tokens = sum(min(256, math.ceil(len(text) / 4)) for text in dict.fromkeys(texts)) if embeds else 0
    parameters, hidden = _ENCODER
    seconds = _STAGE_SECONDS + machine.seconds(2 * parameters * tokens, hidden)
    return StagePlan("sid", len(texts), tokens, seconds / 60, _PROCESS_BYTES / GB)


def _plan_training(
    name: str,
    stage: StageConfig,
    sample: StageSample,
    model: Architecture,
    machine: Machine,
    valid: float,
    quantize: Quantize | None,
) -> StagePlan:
    rows = sum(task.num_rows for task in sample.tasks)
    tokens = sum(task.num_tokens for task in sample.tasks)
    worded = {task.name: _vocabulary_share(task.rendered, stage) for task in sample.tasks}
    scored = sum(worded[task.name] * task.num_tokens for task in sample.tasks)
    operations = stage.epochs * model.training(stage, tokens, tokens / max(rows, 1), scored)
    operations += stage.evaluations * model.forward(stage.valid_users * valid, valid)
    rendering = math.ceil(stage.epochs) * rows * _ROW_SECONDS
    longest = max((len(row) for task in sample.tasks for row in task.rendered), default=0)
    memory = model.training_bytes(stage, longest, max(worded.values(), default=0.0), quantize)
    return StagePlan(
        name,
        round(stage.epochs * rows),
        round(stage.epochs * tokens),
        (_STAGE_SECONDS + rendering + machine.seconds(operations, model.hidden)) / 60,
        (memory + (0 if machine.on_gpu else _PROCESS_BYTES)) / GB,
    )


def _vocabulary_share(rows: Sequence[Rendered], stage: StageConfig) -> float:
    """Share of the rows' tokens whose loss is over the whole vocabulary."""
    scored = sum(int((row.target & (row.sid_level < 0) if stage.head == "level" else row.target).sum()) for row in rows)
    return scored / max(1, sum(map(len, rows)))


def _plan_evaluation(
    config: PipelineConfig, dataset: Dataset, table: SIDTable, header: int, model: Architecture, machine: Machine
) -> StagePlan:
    evaluation, split = config.eval, dataset.split
    users = min(evaluation.users or len(split.users), len(split.users))
    models = 1 + config.untrained
    window = evaluation.window or config.serving.window
    prompt = header + table.num_levels * _mean_items(split, window, evaluation.part)
    searched = len(evaluation.modes) * evaluation.num_beams * (table.num_levels - 1)
    tokens = users * models * (prompt + searched)
    operations = model.forward(tokens, prompt)
    if (evaluation.normalise or config.normalise) == "vocab":
        operations += 2 * model.vocabulary * model.hidden * users * models * (1 + searched)
    seconds = machine.seconds(operations, model.hidden) + users * models * _USER_SECONDS
    seconds += _STAGE_SECONDS + _baseline_seconds(config, dataset, machine)
    memory = FLOAT * models * model.parameters + model.search_bytes(evaluation.batch_size, prompt + searched)
    inverse = 3 * 8 * len(split.items) ** 2 if "ease" in evaluation.baselines else 0
    on_host = 0 if machine.on_gpu else _PROCESS_BYTES + inverse
    return StagePlan("eval", users, round(tokens), seconds / 60, (memory + on_host) / GB)


def _mean_items(split: Split, window: int, part: Part) -> float:
    """Mean number of history items in a prompt."""
    held = 1 if part == "test" else 2
    return float(np.mean([min(window, len(sequence) - held) for sequence in split.sequences]))


def _baseline_seconds(config: PipelineConfig, dataset: Dataset, machine: Machine) -> float:
    """EASE's inverse and SASRec's epochs, all of them; the others take seconds."""
    from llmrec.baselines.sasrec import SASRecConfig

    items, seconds = len(dataset.split.items), 0.0
    if "ease" in config.eval.baselines:
        seconds += 2 * items**3 / machine.flops
    if "sasrec" in config.eval.baselines:
        settings = SASRecConfig.model_validate(config.eval.baselines["sasrec"])
        events = settings.epochs * sum(len(sequence) - 2 for sequence in dataset.split.sequences)
        size = settings.embedding_size
        operations = 6 * events * (12 * settings.num_layers * size**2 + items * size)
        seconds += machine.seconds(operations, size)
    return seconds


def _disk_bytes(config: PipelineConfig, model: Architecture, stages: Sequence[StagePlan]) -> float:
    """Checkpoints of all stages and the states of the most demanding one: two, and a third while it is written."""
    kept = states = 0.0
    planned = {stage.name: stage for stage in stages}
    for name, stage in config.stages.items():
        kept += model.checkpoint_bytes(stage, whole=config.flow == "extended_base" and name == "cpt")
        steps = planned[name].tokens / stage.batch_tokens / stage.gradient_accumulation
        states = max(states, min(3, math.ceil(steps / stage.save_steps)) * model.state_bytes(stage))
    return kept + states


# -- words -------------------------------------------------------------------------------------------------------------


def _how(
    config: PipelineConfig, model: Architecture, samples: Mapping[str, StageSample], table: SIDTable, machine: Machine
) -> list[str]:
    base = config.base.model or f"{(config.base.config or {})['model_type']} from scratch"
    if config.base.quantize:
        base += f", linear layers in {config.base.quantize[0]} bits while it learns"
    trained = ", ".join(f"{name} trains {model.trained(stage) / 1e6:.1f}M" for name, stage in config.stages.items())
    sampled = [f"{name} {task.name}" for name, one in samples.items() for task in one.tasks if not task.exact]
    counts = f"SIDs of {table.num_levels} tokens; every row counted"
    if sampled:
        counts += f", lengths of {', '.join(sampled)} from {RENDERED} rows each"
    rule = "assumed" if machine.on_gpu else "measured on 1M and 135M parameters"
    lines = [
        "All of it is an estimate, for a run that finds nothing cached; nothing was trained or written.",
        f"base     {base}: {model.parameters / 1e6:.1f}M parameters with SID rows; {trained}",
        f"tokens   {counts}",
        f"minutes  {machine.flops / 1e9:,.0f} GFLOP/s measured now ({machine.name}); a model takes "
        f"{machine.slower(model.hidden):.1f} times as long ({rule}).",
        "         Expect a factor of 2 either way, more while other programs run.",
        "memory   weights, gradients and moments counted; activations from the same measurements",
    ]
    if "sasrec" in config.eval.baselines:
        lines.append("eval     with all epochs of SASRec, which usually stops earlier")
    return lines


def _verdict(stages: Sequence[StagePlan], disk: float, machine: Machine) -> list[str]:
    peak = max(stage.memory_gb for stage in stages)
    where = "GPU memory" if machine.on_gpu else "memory"
    needs = ((where, peak, machine.free_memory / GB), ("disk", disk / GB, machine.free_disk / GB))
    advice = {
        "disk": "free some space, or give another disk with --runs",
        where: "lower batch_tokens, choose lora or a smaller base, or close something",
    }
    lines = [f"together {_duration(sum(stage.minutes for stage in stages))}"]
    for name, needed, free in needs:
        line = f"{name:<8} {needed:.1f} GB at the peak, {free:.1f} GB free"
        lines.append(f"{line}: enough" if needed <= free else f"{line}: NOT ENOUGH; {advice[name]}")
    return lines


def _duration(minutes: float) -> str:
    if minutes < 90:
        return f"{minutes:.1f} minutes" if minutes < 10 else f"{minutes:.0f} minutes"
    return f"{minutes / 60:.1f} hours" if minutes < 72 * 60 else f"{minutes / 60 / 24:.1f} days"
