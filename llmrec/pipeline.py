"""The whole path as one recipe: data -> SIDs -> continued pretraining -> SFT -> evaluation -> report.

`run_pipeline` runs a recipe (`llmrec.pipeline_config.PipelineConfig`) into a folder:

    runs/<name>/
      recipe.yaml        the resolved recipe
      sid/               SID table, vectors' report
      cpt/, sft/         checkpoints; `final` in the result names the last one
      eval/              eval.json, per-user results, explanations.json
      report.html        what people look at
      logs/*.jsonl       training logs
      stages/, timing.json
      work/              states of an unfinished training, to resume from

Stages that nothing changed for are skipped (`llmrec.stages`).
"""

from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmrec import processes, recipes
from llmrec.checkpoint_card import BaseCard, DataCard, LineageEntry, ServingCard
from llmrec.config import dump_yaml
from llmrec.pipeline_config import PipelineConfig, load_recipe
from llmrec.pipeline_parts import EVAL_VERSION, TRAIN_VERSION, extended_base, file_stamps, sid_parts
from llmrec.sid_vocab import build
from llmrec.stages import StageCache, quiet_libraries, remove_others

if TYPE_CHECKING:
    from rich.console import Console

    from llmrec.checkpoint import Checkpoint
    from llmrec.data.dataset import Dataset
    from llmrec.eval.result import EvalResult
    from llmrec.prompts.templates import TemplateSet
    from llmrec.recommender import Recommender
    from llmrec.sid_vocab.extend import Extension

__all__ = [
    "PipelineConfig",
    "RunResult",
    "load_recipe",
    "run_folder",
    "run_pipeline",
]


@dataclass(frozen=True)
class RunResult:
    """What a run left.

    Attributes:
        folder: of the run.
        final: folder of the last checkpoint.
        evaluation: its table.
        report: the HTML page.
        explanations: what ``eval/explanations.json`` holds: user, history titles, item title, text, unknown names.
        dataset: the data.
    """

    folder: Path
    final: Path
    evaluation: EvalResult
    report: Path
    explanations: list[dict[str, Any]]
    dataset: Dataset


def run_pipeline(config: PipelineConfig, folder: Path, console: Console) -> RunResult:
    """Run every stage that has to run; in several processes, the same call in all of them.

    Args:
        folder: of the run, made if missing; an unfinished training in it is resumed.
        console: where progress is told.
    """
    return _Run(config, folder, console).result()


class _Run:
    """The state of one run: settings, data and templates are read at once, the rest when a stage needs it."""

    def __init__(self, config: PipelineConfig, folder: Path, console: Console) -> None:
        from llmrec.data.dataset import read_data
        from llmrec.prompts.templates import TemplateSet

        self.config = config
        self.folder = folder
        self.console = console
        self.templates: TemplateSet = TemplateSet.load(
            Path(config.prompts) if config.prompts else recipes.folder("prompts")
        )
        self.dataset: Dataset = read_data(config.data)
        for line in self.dataset.report.lines():
            console.print(f" data  {line}", highlight=False, markup=False)
        if processes.is_main():
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "recipe.yaml").write_text(dump_yaml(config), encoding="utf-8")
        self.cache = StageCache(folder, console)
        self.final = folder / next(reversed(config.stages))

    def result(self) -> RunResult:
        from llmrec.eval.result import EvalResult

        self._stage("sid", sid_parts(self.config, self.dataset), [self.folder / "sid"], self._make_sids)
        for name in self.config.stages:
            self._stage(name, self._train_parts(name), [self.folder / name], self._train, together=True)
        if processes.is_main():
            self._serve_as_asked()
        with suppress(OSError):  # states of a recipe with other stages may be in there
            (self.folder / "work").rmdir()
        told = self.folder / "eval" / "explanations.json"
        self._stage("eval", self._eval_parts(), [told, self.folder / "eval" / "eval.json"], self._evaluate)
        evaluation = EvalResult.load(self.folder / "eval")
        explanations = json.loads(told.read_text(encoding="utf-8"))
        report = processes.from_main(partial(self._report, evaluation, explanations))
        return RunResult(self.folder, self.final, evaluation, report, explanations, self.dataset)

    # -- what a stage's result depends on --------------------------------------------------------------------------

    def _train_parts(self, name: str) -> dict[str, Any]:
        config = self.config
        before = sid_parts(config, self.dataset) if name == "cpt" else self._train_parts("cpt")
        own = {
            name: config.stages[name].model_dump(mode="json", exclude={"save_steps", "trackers"}),
            "flow": config.flow,
            "prompts": self.templates.hash,
            "train_version": TRAIN_VERSION,
        }
        if name == "cpt":
            own |= {"base": config.base.model_dump(mode="json"), "init": config.init, "seed": config.seed}
            own |= config.model_dump(include={"pad_to_multiple", "spare_rows_only"}, exclude_defaults=True)
            own["base_files"] = file_stamps(Path(config.base.model or "").expanduser()) if config.base.model else {}
        return {**before, **own}

    def _eval_parts(self) -> dict[str, Any]:
        evaluation = self.config.eval.model_dump(mode="json")
        trained = self._train_parts(next(reversed(self.config.stages)))
        return {
            **trained,
            "serving": self._serving.model_dump(mode="json"),
            "eval": evaluation,
            "untrained": self.config.untrained,
            "eval_version": EVAL_VERSION,
        }

    @property
    def _serving(self) -> ServingCard:
        """How the last checkpoint is asked. It decides no weight, so it trains nothing anew."""
        from llmrec.checkpoint_card import ServingCard

        config = self.config
        return ServingCard(
            window=config.serving.window,
            window_step=config.serving.window_step,
            max_length=config.max_length,
            normalise=config.normalise,
            num_beams=config.serving.num_beams,
        )

    def _serve_as_asked(self) -> None:
        """Write into the last checkpoint's card how it is served, where the recipe has changed in that alone."""
        from llmrec.checkpoint_card import Card

        card = Card.read(self.final)
        if card.serving != self._serving:
            recipe = self.config.model_dump(mode="json")
            card.model_copy(update={"serving": self._serving, "recipe": recipe}).write(self.final)

    def _stage(
        self, name: str, parts: dict[str, Any], outputs: list[Path], work: Any, *, together: bool = False
    ) -> None:
        def run(key: str) -> None:
            work(name, key)
            gc.collect()  # a trainer hangs in reference cycles: weights and moments would weigh on the next stage

        self.cache.run(name, parts, outputs, run, together=together)

    # -- stages ----------------------------------------------------------------------------------------------------

    def _make_sids(self, name: str, key: str) -> None:
        from llmrec.folders import written_beside
        from llmrec.models import model_folder

        quiet_libraries()
        if self.config.base.model:
            model_folder(self.config.base.model)  # a base that is not there shall not come out after minutes of work
        made = build.build_table_of(self.config.sid, self.dataset)
        with written_beside(self.folder / "sid", overwrite=True) as work:
            made.save(work)

    def _train(self, name: str, key: str) -> None:
        from llmrec.checkpoint import Checkpoint, describe_base
        from llmrec.prompts.renderer import Renderer
        from llmrec.train import cpt, sft
        from llmrec.train.stage import run_stage

        quiet_libraries()
        config, stage = self.config, self.config.stages[name]
        cpt_folder = self.folder / "cpt"
        start: Checkpoint | None = None
        if name == "cpt":
            model, extension = self._extended_base(config)
            tokenizer, table = extension.tokenizer, extension.table
            model = cpt.prepare(model, table, stage, config.flow)
        else:
            start = Checkpoint.load(cpt_folder)
            tokenizer, table = start.tokenizer, start.table
            model = sft.prepare(start, stage, config.flow)
        work = self.folder / "work" / f"{name}-{key}"
        processes.from_main(partial(remove_others, work, f"{name}-*"))
        run_stage(
            name,
            stage,
            model=model,
            tokenizer=tokenizer,
            renderer=Renderer(tokenizer, table, self.templates),
            dataset=self.dataset,
            window=config.serving.window,
            work=work,
            log=self.folder / "logs" / f"{name}.jsonl",
            console=self.console,
        )
        if not processes.is_main():
            return
        base: BaseCard | None
        if config.flow == "adapter" or name == "cpt":
            base = describe_base(config.base.model) if config.base.model else None
        else:
            base = describe_base(cpt_folder)
        lineage = [] if start is None else list(start.card.lineage)
        Checkpoint.write(
            self.folder / name,
            model=cpt.finish(model, config.flow) if name == "cpt" else model.eval(),
            tokenizer=tokenizer,
            table=table,
            templates=self.templates,
            catalog=self.dataset.catalog,
            flow=config.flow,
            base=base,
            lineage=[
                *lineage, LineageEntry(stage=name, config_hash=key, parent=start.fingerprint if start else None)
            ],
            recipe=config.model_dump(mode="json"),
            data=DataCard(
                name=self.dataset.name,
                loo_sha256=self.dataset.split.loo_sha256,
                fingerprint=self.dataset.fingerprint,
            ),
            serving=self._serving,
            overwrite=True,
        )  # fmt: skip
        shutil.rmtree(work)

    def _extended_base(self, config: PipelineConfig) -> tuple[Any, Extension]:
        """The base of `config` with untrained rows for the run's SIDs."""
        from llmrec.sid_vocab.table import SIDTable

        return extended_base(config, self.dataset, SIDTable.load(self.folder / "sid"))

    def _evaluate(self, name: str, key: str) -> None:
        from llmrec.decode.searcher import Searcher
        from llmrec.decode.trie import SIDTrie
        from llmrec.eval.evaluate import evaluate
        from llmrec.eval.generate import Generator
        from llmrec.eval.progress import shown
        from llmrec.prompts.renderer import Renderer
        from llmrec.recommender import Recommender

        quiet_libraries()
        config = self.config
        recommender = Recommender.load(self.final)
        models = {"llmrec": Generator.of_recommender(recommender, label="llmrec")}
        if config.untrained:
            # In full, as the checkpoint beside it is served.
            whole = config.model_copy(update={"base": config.base.model_copy(update={"quantize": None})})
            model, extension = self._extended_base(whole)
            table = extension.table
            trie = SIDTrie.build(table.codes, table.codebook_sizes)
            models["untrained"] = Generator(
                Searcher(model, trie, table.token_ids or (), normalise=config.normalise),
                Renderer(extension.tokenizer, table, self.templates),
                window=config.serving.window,
                window_step=config.serving.window_step,
                max_length=config.max_length,
                label="untrained",
            )
        with shown(self.console) as progress:
            result = evaluate(
                self.dataset,
                models,
                config.eval,
                seeds=[stage.seed for stage in config.stages.values()],
                selection="the last step of a schedule fixed beforehand",
                progress=progress,
            )
        result.save(self.folder / "eval")
        told = self._explanations(recommender, result) if config.explains and self.dataset.catalog.attributes else []
        (self.folder / "eval" / "explanations.json").write_text(
            json.dumps(told, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )

    def _explanations(self, recommender: Recommender, result: EvalResult) -> list[dict[str, Any]]:
        """Why the first example user gets the first recommendation."""
        from llmrec.eval.examples import example_users

        split, titles = self.dataset.split, self.dataset.catalog
        told = []
        for user in example_users(result, self.dataset, count=1):
            if not user.recommended:
                continue
            indices = split.history(split.users.index(user.user_id), self.config.eval.part)
            history = [split.items[index] for index in indices]
            explanation = recommender.explain(history, user.recommended[0].item_id)
            told.append(
                {
                    "user_id": user.user_id,
                    "history": [titles.title(item_id) for item_id in history[-5:] if item_id in titles],
                    "item": titles.title(explanation.item_id),
                    "text": explanation.text,
                    "unknown": [*explanation.named_titles_unknown, *explanation.unknown_sids],
                }
            )
        return told

    def _report(self, evaluation: EvalResult, explanations: Sequence[dict[str, Any]]) -> Path:
        from llmrec.eval.report import ShownExplanation, StageTime, write_report
        from llmrec.train.log import TrainingLog

        return write_report(
            self.folder / "report.html",
            evaluation,
            self.dataset,
            title=self.config.name,
            facts=self._facts(),
            train_log=[row for name in self.config.stages for row in TrainingLog(self._log(name), name).rows()],
            sid_report=json.loads((self.folder / "sid" / "report.json").read_text(encoding="utf-8")),
            stages=[StageTime(run.name, run.wall_s, not run.ran) for run in self.cache.runs],
            explanations=[
                ShownExplanation(tuple(one["history"]), one["item"], one["text"], tuple(one["unknown"]))
                for one in explanations
            ],
        )

    def _facts(self) -> dict[str, str]:
        base = self.config.base
        made = f"{(base.config or {}).get('model_type')} from scratch" if base.model is None else base.model
        return {"base model": made, "flow": self.config.flow, "stages": " > ".join(self.config.stages)}

    def _log(self, name: str) -> Path:
        return self.folder / "logs" / f"{name}.jsonl"


def run_folder(config: PipelineConfig, root: Path) -> Path:
    """Where a run of `config` belongs below `root`."""
    return root / config.name
