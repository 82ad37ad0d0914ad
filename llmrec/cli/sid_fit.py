"""The stage ``sid`` of a run alone, left where `llmrec run` looks for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pydantic import Field

from llmrec.config import Config, apply_overrides, build_config, dump_yaml, read_yaml
from llmrec.data.config import DataConfig
from llmrec.pipeline_config import PipelineConfig
from llmrec.recipes import find
from llmrec.sid_vocab.build import SIDConfig

if TYPE_CHECKING:
    from rich.console import Console

    from llmrec.data.dataset import Dataset


class SIDRecipe(Config):
    """A recipe of SIDs alone: what `llmrec sid fit` needs of a pipeline's."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Of the run: its folder below ``runs/``."""
    data: DataConfig
    """Interactions and catalogue."""
    sid: SIDConfig = Field(default_factory=SIDConfig)
    """How items get their Semantic IDs."""


def load_sid_recipe(name_or_path: str, overrides: Sequence[str] = ()) -> PipelineConfig | SIDRecipe:
    """Read a pipeline recipe, a recipe of ``name``, ``data`` and ``sid``, or a fragment of ``sid_vocab/``.

    A fragment holds the settings of ``sid:`` alone; it takes the file's name, and its data from the override
    ``data.path=FOLDER``. Overrides of a fragment, too, start at the top: ``sid.quantizer.codebook_size=64``.

    Raises:
        InputError: there is no such recipe, or it is not YAML.
        ConfigError: unknown keys or wrong values, all of them.
    """
    path = find(name_or_path)
    values = read_yaml(path)
    given: dict[str, Any] = dict(values) if isinstance(values, Mapping) else {}
    if given and given.keys() <= SIDConfig.model_fields.keys():
        given = {"name": path.stem, "sid": given}
    given = apply_overrides(given, overrides)
    if {"base", "cpt"} & given.keys():
        return build_config(PipelineConfig, given, source=path.name)
    return build_config(SIDRecipe, given, source=path.name)


def fit_sids(config: PipelineConfig | SIDRecipe, runs: Path, console: Console, dataset: Dataset | None = None) -> Path:
    """Fit into ``runs/NAME/sid``, unless that is done; gives the folder. Read data may be handed in."""
    from transformers.utils import logging

    from llmrec.data.dataset import read_data
    from llmrec.folders import written_beside
    from llmrec.pipeline_parts import sid_parts
    from llmrec.sid_vocab.build import build_table_of
    from llmrec.stages import StageCache

    dataset = dataset or read_data(config.data)
    for line in dataset.report.lines():
        console.print(f" data  {line}", markup=False)
    folder = runs / config.name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.yaml").write_text(dump_yaml(config), encoding="utf-8")

    def work(key: str) -> None:
        logging.disable_progress_bar()
        with written_beside(folder / "sid", overwrite=True) as made:
            build_table_of(config.sid, dataset).save(made)

    parts = sid_parts(cast(PipelineConfig, config), dataset)  # reads config.sid alone
    StageCache(folder, console).run("sid", parts, [folder / "sid"], work)
    return folder / "sid"
