"""Aligns a finished checkpoint and judges it beside its start: preferences, rewards, or the control.

`run_align` runs a recipe (`llmrec.align.config.AlignConfig`) into a folder:

    runs/<name>/
      recipe.yaml            the resolved recipe
      align/                 the aligned checkpoint; its lineage names the start
      pairs/                 the preference rows of each iteration, where they were made here
      train.json             steps, tokens, seconds, valid losses or alarms
      eval/                  start and aligned model in one table, with paired tests
      report.html
      logs/*.jsonl           training logs; of GRPO a figure beside it
      stages/, timing.json
      work/                  states of an unfinished training, to resume from

Stages that nothing changed for are skipped (`llmrec.stages`).
"""

from __future__ import annotations

import gc
import json
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmrec import processes
from llmrec.align.config import AlignConfig
from llmrec.align.methods import METHODS, Job, Trained
from llmrec.align.start import CHECKPOINT, data_of, fitted, flow_of, last_checkpoint, require_place
from llmrec.config import dump_yaml
from llmrec.data.assets import sha256_file
from llmrec.errors import InputError
from llmrec.hub import checkpoint_folder
from llmrec.pipeline_parts import EVAL_VERSION, TRAIN_VERSION
from llmrec.stages import StageCache, StageRun, quiet_libraries, remove_others

if TYPE_CHECKING:
    from rich.console import Console

    from llmrec.checkpoint_card import BaseCard
    from llmrec.data.dataset import Dataset
    from llmrec.eval.result import EvalResult

ALIGNED, START = "aligned", "start"
"""Names in the evaluation's table; the first is tested against all others."""


@dataclass(frozen=True, eq=False)
class AlignResult:
    """What a run left.

    Attributes:
        folder: of the run.
        checkpoint: the aligned one.
        training: what ``train.json`` holds.
        evaluation: its table.
        report: the HTML page.
        stages: what ran, and how long it took.
        dataset: the data.
    """

    folder: Path
    checkpoint: Path
    training: dict[str, Any]
    evaluation: EvalResult
    report: Path
    stages: tuple[StageRun, ...]
    dataset: Dataset


def run_align(config: AlignConfig, folder: Path, console: Console) -> AlignResult:
    """Align, judge and report; what is finished is skipped, an interrupted training is resumed.

    In several processes, the same call in all of them.

    Args:
        folder: of the run, made if missing.
        console: where progress is told.

    Raises:
        InputError: no checkpoint, one that has not learnt to recommend, or settings that contradict it.
        MismatchError: other data than the checkpoint's.
    """
    return _Run(config, folder, console).result()


class _Run:
    """The state of one run: what can be seen without training is refused before anything is written."""

    def __init__(self, config: AlignConfig, folder: Path, console: Console) -> None:
        from llmrec.checkpoint import Checkpoint
        from llmrec.checkpoint_card import Card

        if config.checkpoint is None:
            raise InputError(
                f"The recipe {config.name} names no checkpoint.",
                hint="add checkpoint=runs/NAME (a run or a checkpoint)",
            )
        place = last_checkpoint(checkpoint_folder(config.checkpoint))
        card = Card.read(place)
        require_place(config, folder, place)
        quiet_libraries()
        self.dataset = data_of(card, config.data)
        self.start = Checkpoint.load(place)
        self.config = fitted(config, self.start)
        self.folder, self.console = folder, console
        self.log = folder / "logs" / f"{config.method}.jsonl"
        self.cache = StageCache(folder, console)
        self.trained_of = self._train_parts()

    def result(self) -> AlignResult:
        from llmrec.eval.result import EvalResult

        self._tell()
        if processes.is_main():
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / "recipe.yaml").write_text(dump_yaml(self.config), encoding="utf-8")
        checkpoint, trained = self.folder / CHECKPOINT, self.folder / "train.json"
        self.cache.run("align", self.trained_of, [checkpoint, trained], self._train, together=True)
        gc.collect()  # a trainer hangs in reference cycles: weights and moments would weigh on the evaluation
        parts = {"eval": self.config.eval.model_dump(mode="json"), "eval_version": EVAL_VERSION}
        parts["start"] = self.start.fingerprint
        self.cache.run("eval", parts, [self.folder / "eval" / "eval.json"], self._evaluate)
        evaluation = EvalResult.load(self.folder / "eval")
        return AlignResult(
            self.folder,
            checkpoint,
            json.loads(trained.read_text(encoding="utf-8")),
            evaluation,
            processes.from_main(partial(self._report, evaluation)),
            tuple(self.cache.runs),
            self.dataset,
        )

    def _tell(self) -> None:
        evaluation, stages = self.config.eval, " > ".join(entry.stage for entry in self.start.card.lineage)
        users = "all" if evaluation.users is None else f"{evaluation.users:,}"
        for line in (
            f"start  {self.start.folder} ({stages}, {self.start.fingerprint[:12]}…)",
            f" data  {self.dataset.name}: {len(self.dataset.split.users):,} users, "
            f"{len(self.dataset.split.items):,} items",
            f" plan  {self.config.method}, then start and aligned model on the {evaluation.part} targets of {users} "
            "users",
        ):
            self.console.print(line, highlight=False, markup=False)

    def _train_parts(self) -> dict[str, Any]:
        config, settings = self.config, self.config.settings
        parts = {
            "start": self.start.fingerprint,
            "data": self.dataset.fingerprint,
            config.method: settings.model_dump(mode="json", exclude={"save_steps", "trackers"}),
            "train_version": TRAIN_VERSION,
        }
        if config.preference and config.preference.pairs:
            from llmrec.train.preference.files import ROWS_FILE, PreferenceCard

            pairs = Path(config.preference.pairs)
            PreferenceCard.read(pairs)  # a folder that is none is told as one
            parts["pairs"] = sha256_file(pairs / ROWS_FILE) if (pairs / ROWS_FILE).is_file() else None
        return parts

    def _train(self, key: str) -> None:
        work = self.folder / "work" / f"{CHECKPOINT}-{key}"
        processes.from_main(partial(remove_others, work, f"{CHECKPOINT}-*"))
        job = Job(self.config, self.start, self.dataset, work, self.log, self.console)
        trained = METHODS[self.config.method](job)
        if not processes.is_main():
            return
        self._write(trained, key)
        shutil.rmtree(self.folder / "pairs", ignore_errors=True)
        if (work / "pairs").exists():
            (work / "pairs").rename(self.folder / "pairs")
        told = json.dumps({"method": self.config.method, **trained.summary}, indent=2) + "\n"
        (self.folder / "train.json").write_text(told, encoding="utf-8")
        shutil.rmtree(self.folder / "work")

    def _write(self, trained: Trained, key: str) -> None:
        from llmrec.checkpoint import Checkpoint, LineageEntry, describe_base
        from llmrec.checkpoint_checks import from_here, is_adapter

        start, card = self.start, self.start.card
        base: BaseCard | None
        if card.kind == "model" and is_adapter(trained.model):  # a new adapter on a full model
            base = describe_base(start.folder)
        else:
            base = card.base and from_here(card.base, start.folder)
        recipe = {**card.recipe, "align": self.config.model_dump(mode="json")}
        if self.config.data is not None:
            recipe["data"] = self.config.data.model_dump(mode="json")
        entry = LineageEntry(stage=self.config.method, config_hash=key, parent=start.fingerprint)
        Checkpoint.write(
            self.folder / CHECKPOINT,
            model=trained.model.eval(),
            tokenizer=start.tokenizer,
            table=start.table,
            templates=start.templates,
            catalog=start.catalog,
            flow=flow_of(start),
            base=base,
            lineage=[*card.lineage, entry],
            recipe=recipe,
            data=card.data,
            serving=card.serving,
            overwrite=True,
        )

    def _evaluate(self, key: str) -> None:
        from llmrec.eval.evaluate import evaluate
        from llmrec.eval.generate import Generator
        from llmrec.eval.progress import shown
        from llmrec.recommender import Recommender

        folders = {ALIGNED: self.folder / CHECKPOINT, START: self.start.folder}
        models = {
            name: Generator.of_recommender(Recommender.load(place), label=name) for name, place in folders.items()
        }
        best = bool(self.config.grpo and self.config.grpo.keep_best)
        with shown(self.console) as progress:
            result = evaluate(
                self.dataset,
                models,
                self.config.eval,
                seeds=[self.config.settings.seed],
                selection="best evaluation on valid" if best else "the last step of a schedule fixed beforehand",
                warnings=self._warnings(),
                progress=progress,
            )
        result.save(self.folder / "eval")

    def _warnings(self) -> list[str]:
        grpo = self.config.grpo
        if grpo and grpo.keep_best and self.config.eval.part == "valid":
            return [
                f"grpo.keep_best chose the weights by {grpo.valid_users:,} valid users, who may be among the judged: "
                "the figures of the aligned model on valid are optimistic; look at test"
            ]
        return []

    def _report(self, evaluation: EvalResult) -> Path:
        from llmrec.eval.report import StageTime, write_report
        from llmrec.train.log import TrainingLog

        return write_report(
            self.folder / "report.html",
            evaluation,
            self.dataset,
            title=self.config.name,
            facts={
                "start": str(self.start.folder),
                "stages": " > ".join([*(entry.stage for entry in self.start.card.lineage), self.config.method]),
            },
            train_log=TrainingLog(self.log, self.config.method).rows(),
            stages=[StageTime(run.name, run.wall_s, not run.ran) for run in self.cache.runs],
        )
