"""What an alignment starts from: the last checkpoint of a run, the data it knows, and settings that fit the two."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from llmrec.align.config import AlignConfig
from llmrec.config import build_config, read_yaml
from llmrec.data.config import DataConfig
from llmrec.errors import InputError, MismatchError
from llmrec.pipeline_config import load_recipe
from llmrec.train.grpo.config import GRPOStageConfig

if TYPE_CHECKING:
    from llmrec.checkpoint import Checkpoint
    from llmrec.checkpoint_card import Card, Flow
    from llmrec.data.dataset import Dataset

CHECKPOINT = "align"
"""Folder of the aligned checkpoint in a run."""


def last_checkpoint(given: Path) -> Path:
    """A checkpoint itself, or the last one of a run of ``llmrec run`` or ``llmrec align``.

    Raises:
        InputError: a run that has not come to its last checkpoint, or of an unreadable recipe.
    """
    if (given / "llmrec.json").is_file() or not (given / "recipe.yaml").is_file():
        return given
    if is_alignment(given):
        last, command = given / CHECKPOINT, "llmrec align"
    else:
        last, command = given / next(reversed(load_recipe(given / "recipe.yaml").stages)), "llmrec run"
    if not (last / "llmrec.json").is_file():
        raise InputError(f"The run {given} has no checkpoint {last.name} yet.", hint=f"finish it with {command}")
    return last


def is_alignment(run: Path) -> bool:
    """Whether the recipe of a run is one of ``llmrec align``."""
    values = read_yaml(run / "recipe.yaml")
    return isinstance(values, dict) and "cpt" not in values and {"preference", "grpo", "continued"} <= values.keys()


def data_of(card: Card, settings: DataConfig | None) -> Dataset:
    """The data of `settings`, else the checkpoint's.

    Raises:
        InputError: neither names data.
        MismatchError: another split than the checkpoint's, which may have learnt targets of it.
    """
    from llmrec.data.dataset import read_data

    if settings is None:
        if not isinstance(card.recipe.get("data"), dict):
            raise InputError("The checkpoint's recipe names no data.", hint="set data.path in the recipe")
        settings = build_config(DataConfig, card.recipe["data"], source="the checkpoint's recipe, data")
    dataset = read_data(settings)
    if card.data.loo_sha256 != dataset.split.loo_sha256:
        raise MismatchError(
            f"The checkpoint was trained on {card.data.name} with check value {card.data.loo_sha256}, the data is "
            f"{dataset.name} with {dataset.split.loo_sha256}: it may have learnt targets of this data.",
            hint="take the data that it was trained on, or train on this data first",
        )
    return dataset


def require_place(config: AlignConfig, folder: Path, start: Path) -> None:
    """Check that the run's folder is free for it.

    Raises:
        InputError: another kind of run lies there, or the start is what the run would write.
    """
    if start.absolute() == (folder / CHECKPOINT).absolute():
        raise InputError(
            f"{start} is what this run itself writes, and cannot be its start.",
            hint=f"give the next run another name: name={config.name}-2",
        )
    if (folder / "recipe.yaml").is_file() and not is_alignment(folder):
        raise InputError(f"{folder} holds a run of llmrec run, which is kept.", hint="give this one another name=")


def fitted(config: AlignConfig, start: Checkpoint) -> AlignConfig:
    """The recipe with what it leaves to the checkpoint.

    A preference stage shows as many items as serving does, unless it says otherwise.

    Raises:
        InputError: the method normalises over what serving never looks at.
    """
    serving, settings = start.card.serving, config.settings
    if isinstance(settings, GRPOStageConfig):
        field, trained = "grpo.normalise", settings.normalise
    else:
        field, trained = f"{config.method}.head", settings.head
    if {trained, serving.normalise} == {"level", "vocab"}:
        raise InputError(
            f"{field} is {trained}, but {start.folder} is served with {serving.normalise}: what is learnt would not be "
            "what is asked.",
            hint=f"set {field}: {serving.normalise}",
        )
    if config.preference and "window" not in config.preference.model_fields_set:
        shown = config.preference.model_copy(update={"window": serving.window})
        return config.model_copy(update={"preference": shown})
    return config


def flow_of(start: Checkpoint) -> Flow:
    """Where SID rows live from here on: in a full model they are the base's, however they came there."""
    return start.card.flow if start.card.kind == "adapter" else "extended_base"
