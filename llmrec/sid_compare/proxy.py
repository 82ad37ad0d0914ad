"""Train and judge the proxy of one tokenizer: a small causal LM from scratch that predicts the next item's SID.

    proxies/<key>/model.safetensors, train.json   what was trained, and how it went
    proxies/<key>/eval/                           `EvalResult`: per-user results on valid, filtered
    proxies/<key>/work/                           states of an unfinished training, to resume from

The key is made of the table's codes, the train settings and the seed: two recipes that make the same table share it.
"""

from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from llmrec import recipes
from llmrec.errors import InputError
from llmrec.eval.result import EvalResult
from llmrec.pipeline_parts import EVAL_VERSION, TRAIN_VERSION
from llmrec.sid_compare.config import ProxyConfig, content_key
from llmrec.stages import StageCache, is_done, quiet_libraries

if TYPE_CHECKING:
    from llmrec.data.dataset import Dataset
    from llmrec.prompts.renderer import Renderer
    from llmrec.sid_vocab.table import SIDTable
    from llmrec.train.config import StageConfig

NAME = "proxy"  # of the model in its evaluation


@dataclass(frozen=True)
class Training:
    """How a proxy was trained."""

    seed: int
    parameters: int
    """Of the model, SID rows included."""
    tokens: int
    """Without padding."""
    steps: int
    """Optimizer steps."""
    epochs: float
    """Passes over the train interactions that the budget bought."""
    items: int
    """Items that were a target, over all epochs."""
    padding: float
    """Share of padding in what was computed."""
    seconds: float
    valid_losses: tuple[tuple[int, float], ...]
    """``(step, nats per SID token)``; comparable within one tokenizer only."""


@dataclass(frozen=True, eq=False)
class ProxyRun:
    """A trained and judged proxy."""

    folder: Path
    training: Training
    evaluation: EvalResult


class Proxy:
    """One tokenizer's proxy with one seed.

    Args:
        config: settings.
        seed: one of its seeds.
        table: the SIDs, without token ids.
        dataset: the data.
        root: of all proxies; this one's folder is `folder`.
    """

    def __init__(self, config: ProxyConfig, seed: int, table: SIDTable, dataset: Dataset, root: Path) -> None:
        from llmrec.prompts.templates import TemplateSet

        self.config = config
        self.seed = seed
        self.table = table
        self.dataset = dataset
        self.templates = TemplateSet.load(recipes.folder("prompts"))
        self._trained_of = {
            "codes": table.rows_fingerprint,
            "codebook_sizes": list(table.codebook_sizes),
            "data": dataset.fingerprint,
            "prompts": self.templates.hash,
            "proxy": config.trained_by,
            "seed": seed,
            "train_version": TRAIN_VERSION,
        }
        self.folder = root / "proxies" / content_key(self._trained_of)

    @property
    def words(self) -> list[str]:
        """All words that the proxy ever reads: the header of a sequence. Its tokenizer is made of them, so that a row
        pays 3 tokens for its header; made of the catalogue, it took 13."""
        return [phrasing.prompt for phrasing in self.templates.tasks["behaviour"].phrasings]

    @property
    def is_trained(self) -> bool:
        """Whether an earlier comparison has left the model."""
        return is_done(self.folder, "train", self._trained_of)

    def require_positions(self) -> None:
        """Raise InputError where a full window is longer than the model's positions."""
        from llmrec.train.light_base import light_base

        base = light_base(self.config.base, self.words)
        needed = self._longest(len(base.tokenizer(self.words[0]).input_ids))
        positions = int(base.shape.max_position_embeddings)
        if needed > positions:
            raise InputError(
                f"{self.config.window} items of {self.table.num_levels} tokens each need {needed} positions, the proxy "
                f"has {positions}",
                hint="lower proxy.window, or raise proxy.base.config.max_position_embeddings",
            )

    def run(self, console: Console) -> ProxyRun:
        """Train and judge, unless that was done; an unfinished training is resumed.

        Raises:
            EnvironmentProblem: the disk has no room for states to resume from.
        """
        cache = StageCache(self.folder, console)
        trained = [self.folder / "model.safetensors", self.folder / "train.json"]
        cache.run("train", self._trained_of, trained, lambda key: self._train(console))
        gc.collect()  # a trainer hangs in reference cycles
        parts = {**self.config.judged_by, "eval_version": EVAL_VERSION}
        cache.run("eval", parts, [self.folder / "eval"], lambda key: self._judge(console))
        return ProxyRun(self.folder, self._training(), EvalResult.load(self.folder / "eval"))

    def _train(self, console: Console) -> None:
        from safetensors.torch import save_model

        from llmrec.train import cpt
        from llmrec.train.stage import run_stage

        model, tokenizer, renderer = self._untrained()
        stage = self._stage(renderer)
        model = cpt.prepare(model, renderer.table, stage, "extended_base")
        work = self.folder / "work"
        done = run_stage(
            "train",
            stage,
            model=model,
            tokenizer=tokenizer,
            renderer=renderer,
            dataset=self.dataset,
            window=self.config.window,
            work=work,
            log=self.folder / "train.jsonl",
            console=console,
        )
        training = Training(
            seed=self.seed,
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            tokens=done.batches.tokens,
            steps=done.steps,
            epochs=stage.epochs,
            items=done.batches.target_items,
            padding=done.batches.padding,
            seconds=done.seconds,
            valid_losses=done.valid_losses,
        )
        save_model(cpt.finish(model, "extended_base"), str(self.folder / "model.safetensors"))
        told = json.dumps(asdict(training), indent=2) + "\n"
        (self.folder / "train.json").write_text(told, encoding="utf-8")
        shutil.rmtree(work)

    def _judge(self, console: Console) -> None:
        from safetensors.torch import load_model

        from llmrec.decode.searcher import Searcher
        from llmrec.decode.trie import SIDTrie
        from llmrec.eval.evaluate import evaluate
        from llmrec.eval.generate import Generator
        from llmrec.eval.progress import shown

        model, _, renderer = self._untrained()
        load_model(model, str(self.folder / "model.safetensors"))
        table = renderer.table
        trie = SIDTrie.build(table.codes, table.codebook_sizes)
        searcher = Searcher(model.eval(), trie, table.token_ids or (), normalise=self.config.normalise)
        generator = Generator(searcher, renderer, window=self.config.window, label="proxy")
        with shown(console) as progress:
            result = evaluate(
                self.dataset,
                {NAME: generator},
                self.config.evaluation({}),
                seeds=[self.seed],
                selection="the last step of a schedule fixed beforehand",
                progress=progress,
            )
        result.save(self.folder / "eval")

    def _untrained(self) -> tuple[Any, Any, Renderer]:
        from llmrec.prompts.renderer import Renderer
        from llmrec.sid_vocab.extend import extend_vocabulary
        from llmrec.train.base import make_base

        quiet_libraries()
        model, tokenizer = make_base(self.config.base, self.words, self.seed)
        extension = extend_vocabulary(model, tokenizer, self.table, init="random", seed=self.seed)
        return model, extension.tokenizer, Renderer(extension.tokenizer, extension.table, self.templates)

    def _stage(self, renderer: Renderer) -> StageConfig:
        """The training stage whose epochs, a fraction as a rule, hold the budget's tokens."""
        from llmrec.train.sample import sample_stage
        from llmrec.train.stage import train_sequences

        longest = self._longest(len(renderer.prefix_ids))
        one = self.config.stage(epochs=1, max_length=longest, seed=self.seed)
        sample = sample_stage(one, renderer, self.dataset.catalog, train_sequences(self.dataset), limit=1)
        per_epoch = sum(task.num_tokens for task in sample.tasks)
        return self.config.stage(epochs=self.config.tokens / per_epoch, max_length=longest, seed=self.seed)

    def _longest(self, header: int) -> int:
        """Tokens of the longest row: a full window and the item after it."""
        return header + (self.config.window + 1) * self.table.num_levels

    def _training(self) -> Training:
        told: Mapping[str, Any] = json.loads((self.folder / "train.json").read_text(encoding="utf-8"))
        return Training(**{**told, "valid_losses": tuple(map(tuple, told["valid_losses"]))})
