"""The whole path as one recipe: data -> SIDs -> continued pretraining -> SFT -> evaluation -> report.

`PipelineConfig` is what a pipeline recipe (``train/pipelines/*.yaml``) holds; `run_pipeline` runs it into a folder:

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

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator

from llmrec import recipes
from llmrec.checkpoint_card import BaseCard, DataCard, LineageEntry, ServingCard
from llmrec.config import Config, dump_yaml, load_config
from llmrec.data.config import DataConfig
from llmrec.decode.result import Normalise
from llmrec.eval.config import EvalConfig
from llmrec.sid_vocab import build
from llmrec.sid_vocab.rows import Init
from llmrec.stages import StageCache
from llmrec.train.base import BaseConfig
from llmrec.train.config import Flow, StageConfig

if TYPE_CHECKING:
    from rich.console import Console

    from llmrec.checkpoint import Checkpoint
    from llmrec.data.dataset import Dataset
    from llmrec.eval.result import EvalResult
    from llmrec.prompts.templates import TemplateSet
    from llmrec.recommender import Recommender
    from llmrec.sid_vocab.extend import Extension
    from llmrec.sid_vocab.table import SIDTable

TRAIN_VERSION = 1  # raise it when the same settings train another model, so that cached stages run anew
EVAL_VERSION = 1  # likewise for evaluations


class ServingConfig(Config):
    """How the finished checkpoint is asked."""

    window: int = Field(50, ge=1)
    """Most recent history items in a prompt, in evaluation and serving."""
    num_beams: int = Field(20, ge=1)
    """Width of the beam search."""
    normalise: Normalise | None = None
    """Over what scores are normalised; None takes what the last training stage used as its head."""


class PipelineConfig(Config):
    """A pipeline recipe."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Of the run: its folder below ``runs/``."""
    data: DataConfig
    """Interactions and catalogue."""
    base: BaseConfig
    """The model that learns."""
    sid: build.SIDConfig = build.SIDConfig()
    """How items get their Semantic IDs."""
    init: Init = "title_mean"
    """How SID rows start."""
    flow: Flow = "extended_base"
    """Where SID rows live."""
    prompts: str | None = None
    """A folder of templates of one's own (`llmrec recipes cp`); None takes those that ship with llmrec."""
    cpt: StageConfig
    """Continued pretraining."""
    sft: StageConfig | None = None
    """Supervised fine-tuning; None ends with the checkpoint of cpt."""
    serving: ServingConfig = ServingConfig()
    """Defaults of the checkpoint."""
    eval: EvalConfig = EvalConfig()
    """Evaluation."""
    untrained: bool = True
    """Whether the same model with untrained SID rows stands in the evaluation's table."""
    seed: int = 0
    """Of SID rows, and of the weights of a model from scratch; stages have their own."""

    @model_validator(mode="after")
    def _consistent(self) -> PipelineConfig:
        for name, stage in (("cpt", self.cpt), ("sft", self.sft)):
            if stage is None:
                continue
            if stage.method == "full" and (self.flow == "adapter" or name == "sft"):
                raise ValueError(f'{name}.method full has no place in flow "{self.flow}": use lora')
        if self.sft is not None and self.sft.train_sid_rows and self.flow == "extended_base":
            raise ValueError('sft.train_sid_rows must be false in flow "extended_base": the rows belong to the base')
        return self

    @property
    def stages(self) -> dict[str, StageConfig]:
        """The training stages in their order."""
        return {"cpt": self.cpt, **({"sft": self.sft} if self.sft else {})}

    @property
    def normalise(self) -> Normalise:
        """Of the search: what training's head was normalised over, unless the recipe says otherwise."""
        return self.serving.normalise or next(reversed(self.stages.values())).head

    @property
    def explains(self) -> bool:
        """Whether a stage teaches explanations."""
        return any("explain" in stage.tasks for stage in self.stages.values())


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


def load_recipe(name_or_path: str | Path, overrides: Sequence[str] = ()) -> PipelineConfig:
    """Read a pipeline recipe by shipped name or path, with dotted ``key=value`` overrides.

    Raises:
        InputError: there is no such recipe, or it is not YAML.
        ConfigError: unknown keys or wrong values, all of them.
    """
    return load_config(PipelineConfig, recipes.find(name_or_path), overrides)


def run_pipeline(config: PipelineConfig, folder: Path, console: Console) -> RunResult:
    """Run every stage that has to run.

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
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "recipe.yaml").write_text(dump_yaml(config), encoding="utf-8")
        self.cache = StageCache(folder, console)
        self.final = folder / next(reversed(config.stages))

    def result(self) -> RunResult:
        from llmrec.eval.result import EvalResult

        self._stage("sid", self._sid_parts(), [self.folder / "sid"], self._make_sids)
        for name in self.config.stages:
            self._stage(name, self._train_parts(name), [self.folder / name], self._train)
        told = self.folder / "eval" / "explanations.json"
        self._stage("eval", self._eval_parts(), [told, self.folder / "eval" / "eval.json"], self._evaluate)
        evaluation = EvalResult.load(self.folder / "eval")
        explanations = json.loads(told.read_text(encoding="utf-8"))
        report = self._report(evaluation, explanations)
        return RunResult(self.folder, self.final, evaluation, report, explanations, self.dataset)

    # -- what a stage's result depends on --------------------------------------------------------------------------

    def _sid_parts(self) -> dict[str, Any]:
        return sid_parts(self.config, self.dataset)

    def _train_parts(self, name: str) -> dict[str, Any]:
        before = {"cpt": self._sid_parts(), "sft": self._train_parts("cpt") if name == "sft" else {}}[name]
        config = self.config
        own = {
            name: config.stages[name].model_dump(mode="json", exclude={"save_steps", "trackers"}),
            "flow": config.flow,
            "prompts": self.templates.hash,
            "train_version": TRAIN_VERSION,
        }
        if name == "cpt":
            own |= {"base": config.base.model_dump(mode="json"), "init": config.init, "seed": config.seed}
        return {**before, **own, "serving": {**config.serving.model_dump(mode="json"), "normalise": config.normalise}}

    def _eval_parts(self) -> dict[str, Any]:
        evaluation = self.config.eval.model_dump(mode="json")
        trained = self._train_parts(next(reversed(self.config.stages)))
        return {**trained, "eval": evaluation, "untrained": self.config.untrained, "eval_version": EVAL_VERSION}

    def _stage(self, name: str, parts: dict[str, Any], outputs: list[Path], work: Any) -> None:
        self.cache.run(name, parts, outputs, lambda key: work(name, key))

    # -- stages ----------------------------------------------------------------------------------------------------

    def _make_sids(self, name: str, key: str) -> None:
        from llmrec.folders import written_beside

        made = build.build_table_of(self.config.sid, self.dataset)
        with written_beside(self.folder / "sid", overwrite=True) as work:
            made.table.save(work)
            (work / "report.json").write_text(json.dumps(made.report.as_dict(), indent=2) + "\n", encoding="utf-8")

    def _train(self, name: str, key: str) -> None:
        from llmrec.checkpoint import Checkpoint, describe_base
        from llmrec.prompts.renderer import Renderer
        from llmrec.train import cpt, sft
        from llmrec.train.stage import run_stage

        config, stage = self.config, self.config.stages[name]
        cpt_folder = self.folder / "cpt"
        start: Checkpoint | None = None
        if name == "cpt":
            model, extension = self._extended_base()
            tokenizer, table = extension.tokenizer, extension.table
            model = cpt.prepare(model, table, stage, config.flow)
        else:
            start = Checkpoint.load(cpt_folder)
            tokenizer, table = start.tokenizer, start.table
            model = sft.prepare(start, stage, config.flow)
        work = self.folder / "work" / f"{name}-{key}"
        for other in (self.folder / "work").glob(f"{name}-*"):
            if other != work:  # states of settings that are gone
                shutil.rmtree(other)
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
            serving=ServingCard(
                window=config.serving.window,
                max_length=max(each.max_length for each in config.stages.values()),
                normalise=config.normalise,
                num_beams=config.serving.num_beams,
            ),
            overwrite=True,
        )  # fmt: skip
        shutil.rmtree(work)

    def _extended_base(self) -> tuple[Any, Extension]:
        """The base with untrained SID rows."""
        from llmrec.sid_vocab.extend import extend_vocabulary
        from llmrec.sid_vocab.table import SIDTable
        from llmrec.train.base import make_base

        catalog = self.dataset.catalog
        model, tokenizer = make_base(self.config.base, catalog.texts(), self.config.seed)
        table: SIDTable = SIDTable.load(self.folder / "sid")
        titles = {item_id: catalog.title(item_id) for item_id in catalog.item_ids}
        extension = extend_vocabulary(
            model, tokenizer, table, init=self.config.init, item_texts=titles, seed=self.config.seed
        )
        return model, extension

    def _evaluate(self, name: str, key: str) -> None:
        from llmrec.checkpoint import Checkpoint
        from llmrec.decode.searcher import Searcher
        from llmrec.decode.trie import SIDTrie
        from llmrec.eval.evaluate import evaluate
        from llmrec.eval.generate import Generator
        from llmrec.eval.progress import shown
        from llmrec.prompts.renderer import Renderer
        from llmrec.recommender import Recommender

        config = self.config
        checkpoint = Checkpoint.load(self.final)
        recommender = Recommender(checkpoint)
        models = {"llmrec": Generator.of_checkpoint(checkpoint, label="llmrec")}
        if config.untrained:
            model, extension = self._extended_base()
            table = extension.table
            trie = SIDTrie.build(table.codes, table.codebook_sizes)
            models["untrained"] = Generator(
                Searcher(model, trie, table.token_ids or (), normalise=config.normalise),
                Renderer(extension.tokenizer, table, self.templates),
                window=config.serving.window,
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
        told = self._explanations(recommender, result) if config.explains else []
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
        from llmrec.train.progress import TrainingLog

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


def sid_parts(config: PipelineConfig, dataset: Dataset) -> dict[str, Any]:
    """What the SIDs of a run depend on; a run whose stage ``sid`` was made of these has the SIDs of `config`."""
    return {"sid": config.sid.model_dump(mode="json"), "data": dataset.fingerprint, "version": build.VERSION}
