"""Rows of a recipe's training stage as the model will see them, before anything is trained.

The SIDs are the run's own where it has made them already; else they are built as the run would build them, and not
kept. Of the base only the tokenizer is read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmrec import recipes
from llmrec.errors import InputError
from llmrec.pipeline import run_folder
from llmrec.pipeline_config import PipelineConfig
from llmrec.pipeline_parts import sid_parts
from llmrec.stages import is_done
from llmrec.train.sample import StageSample, sample_stage

if TYPE_CHECKING:
    from llmrec.data.catalog import Catalog
    from llmrec.data.dataset import Dataset
    from llmrec.sid_vocab.table import SIDTable

MEASURED = 1000
"""Rows per task that are rendered; lengths and truncation are counted over them."""


@dataclass(frozen=True)
class StagePreview:
    """What `preview_stage` found."""

    stage: str
    """``cpt`` or ``sft``."""
    sample: StageSample
    """Up to `MEASURED` rows of every task."""
    tokenizer: Any
    """The base's tokenizer, extended by the SID tokens."""
    table: SIDTable
    """Items, SIDs, token ids."""
    catalog: Catalog
    """Titles of the items."""


def preview_stage(config: PipelineConfig, stage: str, runs: Path, say: Callable[[str], None]) -> StagePreview:
    """Render the first epoch of a stage.

    Args:
        config: the recipe.
        stage: ``cpt`` or ``sft``.
        runs: folder of all runs; the recipe's own is looked up there.
        say: takes a line that tells where the SIDs come from.

    Raises:
        InputError: the recipe has no such stage, or what stops a run at its beginning.
    """
    from llmrec.data.dataset import read_data
    from llmrec.prompts.renderer import Renderer
    from llmrec.prompts.templates import TemplateSet
    from llmrec.sid_vocab.extend import extend_tokenizer
    from llmrec.train.light_base import light_base
    from llmrec.train.stage import train_sequences

    if stage not in config.stages:
        raise InputError(f"The recipe has no stage {stage!r}.", hint=f"its stages are {', '.join(config.stages)}")
    templates = TemplateSet.load(Path(config.prompts) if config.prompts else recipes.folder("prompts"))
    dataset = read_data(config.data)
    base = light_base(config.base, dataset.catalog.texts())
    table = extend_tokenizer(base.tokenizer, _table(config, dataset, runs, say))
    renderer = Renderer(base.tokenizer, table, templates)
    sample = sample_stage(config.stages[stage], renderer, dataset.catalog, train_sequences(dataset), limit=MEASURED)
    return StagePreview(stage, sample, base.tokenizer, table, dataset.catalog)


def _table(config: PipelineConfig, dataset: Dataset, runs: Path, say: Callable[[str], None]) -> SIDTable:
    from llmrec.sid_vocab.build import build_table_of
    from llmrec.sid_vocab.table import SIDTable

    folder = run_folder(config, runs)
    if (folder / "sid").is_dir() and is_done(folder, "sid", sid_parts(config, dataset)):
        say(f"SIDs of {folder / 'sid'}")
        return SIDTable.load(folder / "sid")
    say("building the SIDs first, as the run would; they are not kept")
    return build_table_of(config.sid, dataset).table
