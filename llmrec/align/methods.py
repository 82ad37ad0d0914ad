"""The three methods behind one face: each trains what `prepare` made of the start, and says what it took.

trained = METHODS[config.method](Job(config, start, dataset, renderer, work, log, console))
trained.model, trained.summary
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmrec import processes
from llmrec.align.config import AlignConfig, ContinuedMethod, MethodName
from llmrec.align.start import flow_of
from llmrec.train.config import StageConfig
from llmrec.train.log import TrainingLog

if TYPE_CHECKING:
    from rich.console import Console

    from llmrec.checkpoint import Checkpoint
    from llmrec.data.dataset import Dataset
    from llmrec.train.preference.pairs import PreferenceRow


@dataclass(frozen=True, eq=False)
class Job:
    """What a method works on.

    Attributes:
        config: the recipe, `fitted` to the start.
        work: folder of the states to resume from.
        log: JSON-lines file.
    """

    config: AlignConfig
    start: Checkpoint
    dataset: Dataset
    work: Path
    log: Path
    console: Console

    @property
    def shared(self) -> dict[str, Any]:
        """Arguments of every method's run function."""
        return {
            "tokenizer": self.start.tokenizer,
            "renderer": self.start.renderer,
            "dataset": self.dataset,
            "work": self.work,
            "log": self.log,
            "console": self.console,
        }


@dataclass(frozen=True, eq=False)
class Trained:
    """What a method left.

    Attributes:
        model: what learned, as a PEFT model or in full.
        summary: what ``train.json`` holds: steps, tokens, seconds, and what the method measured.
    """

    model: Any
    summary: dict[str, Any]


def train_preference(job: Job) -> Trained:
    """DPO, S-DPO and kin, on pairs that were made before or are made here."""
    from llmrec.train.preference import stage
    from llmrec.train.preference.files import load_preferences

    settings, start = job.config.preference, job.start
    assert settings is not None
    model = stage.prepare(start, settings, flow_of(start))
    rows: Sequence[PreferenceRow] | stage.RowsOf
    if settings.pairs is not None:
        rows = load_preferences(Path(settings.pairs), split=job.dataset.split, table=start.table).rows
    elif settings.prefer and settings.prefer.needs_model:
        rows = partial(_made_rows, job)
    else:
        rows = _made_rows(job, 0, None)
    done = stage.run_preference("preference", settings, rows, model=model, **job.shared)
    logged = [TrainingLog(path, "preference").rows() for path in done.logs]
    return Trained(
        model,
        {
            "steps": done.steps,
            "tokens": sum(max((row["tokens"] for row in rows), default=0) for rows in logged),
            "seconds": done.seconds,
            "valid_losses": done.valid_losses,
        },
    )


def train_grpo(job: Job) -> Trained:
    """GRPO and kin on rollouts of the search, watched by the monitor; its figure lies beside the log."""
    from llmrec.train.grpo import stage
    from llmrec.train.monitor.plots import save_plots

    settings, start = job.config.grpo, job.start
    assert settings is not None
    model = stage.prepare(start, settings, flow_of(start))
    serving = start.card.serving
    done = stage.run_grpo(
        "grpo", settings, model=model, window=serving.window, normalise=serving.normalise, **job.shared
    )
    rows = TrainingLog(job.log, "grpo").rows()
    if processes.is_main():
        save_plots(rows, job.log.with_suffix(".svg"))
    if done.handed_on == 0:
        job.console.print("grpo  no evaluation was better than the start: its weights are handed on", highlight=False)
    return Trained(
        model,
        {
            "steps": done.steps,
            "tokens": max((row["tokens"] for row in rows if "tokens" in row), default=0),
            "seconds": done.seconds,
            "held_out": done.held_out,
            "handed_on": done.handed_on,
            "alarms": [asdict(alarm) for alarm in done.alarms],
            "stopped_by": done.stopped_by and done.stopped_by.name,
        },
    )


def train_continued(job: Job) -> Trained:
    """The control: more SFT, for as long as the other method took."""
    from llmrec.train.stage import run_stage
    from llmrec.train.start import prepare_start

    settings, start = job.config.continued, job.start
    assert settings is not None
    model = prepare_start("continued", start, settings, flow_of(start))
    stage = budgeted(settings, job)
    done = run_stage("continued", stage, model=model, window=start.card.serving.window, **job.shared)
    return Trained(
        model,
        {
            "steps": done.steps,
            "tokens": done.batches.tokens,
            "seconds": done.seconds,
            "epochs": stage.epochs,
            "valid_losses": done.valid_losses,
        },
    )


def budgeted(settings: ContinuedMethod, job: Job) -> StageConfig:
    """The stage whose epochs, a fraction as a rule, hold the steps or tokens that were asked for.

    Tokens are counted without rendering where the tasks allow it. Steps need the batches of an epoch; beyond one epoch
    they are counted again, since epochs differ by a few batches.
    """
    from llmrec.train.batches import build_batches
    from llmrec.train.sample import sample_stage
    from llmrec.train.stage import train_sequences

    renderer, catalog, sequences = job.start.renderer, job.dataset.catalog, train_sequences(job.dataset)
    values = settings.model_dump(exclude={"steps", "tokens"})
    one = StageConfig.model_validate({**values, "epochs": 1.0})
    if settings.tokens is not None:
        sample = sample_stage(one, renderer, catalog, sequences, limit=1000)
        epochs = settings.tokens / max(1, sum(task.num_tokens for task in sample.tasks))
        return one.model_copy(update={"epochs": epochs})
    if settings.steps is not None:
        wanted = settings.steps * settings.gradient_accumulation
        per_epoch = len(build_batches(one, renderer, catalog, sequences).dataset)
        stage = one.model_copy(update={"epochs": wanted / max(1, per_epoch)})
        for _ in range(3):
            if stage.epochs <= 1:
                break
            found = len(build_batches(stage, renderer, catalog, sequences).dataset)
            if found == wanted:
                break
            stage = stage.model_copy(update={"epochs": stage.epochs + (wanted - found) / per_epoch})
        return stage
    return StageConfig.model_validate(values)


METHODS: Mapping[MethodName, Callable[[Job], Trained]] = {
    "preference": train_preference,
    "grpo": train_grpo,
    "continued": train_continued,
}


def _made_rows(job: Job, iteration: int, current: Any) -> Sequence[PreferenceRow]:
    """The rows of an iteration, kept beside the states: a run that goes on after a kill trains on the same ones."""
    from llmrec.train.preference.files import read_rows

    path = job.work / "pairs" / f"iteration-{iteration + 1}.parquet"
    processes.from_main(partial(_make_rows, job, iteration, current, path))
    return read_rows(path)


def _make_rows(job: Job, iteration: int, current: Any, path: Path) -> None:
    from llmrec.eval.progress import shown
    from llmrec.train.preference.build import make_preferences
    from llmrec.train.preference.files import to_frame

    if path.exists():
        return
    preference = job.config.preference
    assert preference is not None
    assert preference.prefer is not None
    config = preference.prefer
    if config.negatives and config.negatives.self_play:
        play = config.negatives.self_play
        play = play.model_copy(update={"iteration": play.iteration + iteration})
        config = config.model_copy(update={"negatives": config.negatives.model_copy(update={"self_play": play})})
    recommender = None if current is None else _asked(job.start, current)
    with shown(job.console) as progress:
        made = make_preferences(config, job.dataset, job.start, recommender=recommender, progress=progress)
    if current is not None:
        current.train()
    left_out = made.drops.rows + made.drops.items
    for reason, count in left_out.items():
        job.console.print(f"pairs  left out: {count:,} {reason}", highlight=False, markup=False)
    sources = ", ".join(f"{count:,} {source}" for source, count in made.pairs_by_source.items())
    job.console.print(f"pairs  {len(made.rows):,} rows; rejected: {sources}", highlight=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    waiting = path.with_suffix(".part")
    to_frame(made.rows).write_parquet(waiting)
    waiting.rename(path)


def _asked(start: Checkpoint, current: Any) -> Any:
    """The model that learns, as a recommender: nothing is merged or copied."""
    import torch

    from llmrec.recommender import Recommender

    if torch.cuda.is_available():
        current.to("cuda")
    return Recommender(start, current.eval())
