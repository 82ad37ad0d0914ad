"""Where a SID table comes from: a run, a checkpoint, a stage ``sid`` or an assigned version, opened alike."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmrec.errors import InputError

if TYPE_CHECKING:
    from llmrec.data.catalog import Catalog
    from llmrec.data.config import DataConfig
    from llmrec.sid_vocab.build import SIDConfig
    from llmrec.sid_vocab.table import SIDTable

RECORD = "sid_version.json"
"""Beside the table of an assigned version: number, settings of its origin, what was added and retired."""
_HINT = "give a run (runs/NAME), its folder sid, a checkpoint, or a folder that `llmrec sid assign` wrote"


@dataclass(frozen=True)
class SIDSource:
    """A table with the settings it was made with."""

    folder: Path
    """That holds the table."""
    table: SIDTable
    sid: SIDConfig
    data: DataConfig
    catalog: Catalog | None
    """The one kept beside the table; None where only the data set has it."""
    version: int
    """1 for a table as it was fitted."""
    fit: Path
    """The folder in which the fit left what the table does not hold (report, state of the quantiser)."""
    num_fitted: int
    """Rows of the table that the fit made, which are the first ones; those behind them came in later versions."""

    def read_catalog(self) -> Catalog:
        """The catalogue beside the table, else the data set's."""
        from llmrec.data.dataset import read_data

        return self.catalog if self.catalog is not None else read_data(self.data).catalog


def open_source(folder: Path) -> SIDSource:
    """Open the table of `folder`; of a run the last checkpoint's, which has token ids, or else the stage ``sid``'s.

    Raises:
        InputError: there is no table, or no settings beside it.
        MismatchError: the table is not as it was written.
    """
    if (folder / RECORD).is_file():
        return _version(folder)
    if (folder / "llmrec.json").is_file():
        return _checkpoint(folder)
    if (folder / "recipe.yaml").is_file():
        found = sorted(folder.glob("*/llmrec.json"), key=lambda path: path.parent.name == "cpt")
        return _checkpoint(found[0].parent) if found else _fitted(folder / "sid")
    return _fitted(folder)


def _version(folder: Path) -> SIDSource:
    record = _read_json(folder / RECORD)
    sid, data = _settings(record, folder / RECORD)
    fields = tuple(record["text_fields"]), tuple(record["attributes"])
    table = _load(folder)
    fitted = int(record.get("num_fitted", table.num_items))  # older folders lack it
    return SIDSource(folder, table, sid, data, _catalog(folder, *fields), int(record["version"]), folder, fitted)


def _checkpoint(folder: Path) -> SIDSource:
    from llmrec.checkpoint_card import Card

    card = Card.read(folder)
    sid, data = _settings(card.recipe, folder / "llmrec.json")
    catalog = _catalog(folder, card.catalog.text_fields, card.catalog.attributes)
    table, fit = _load(folder), folder.absolute().parent / "sid"
    return SIDSource(folder, table, sid, data, catalog, 1, fit, table.num_items)


def _fitted(folder: Path) -> SIDSource:
    from llmrec.config import parse_yaml

    table = _load(folder)
    recipe = folder.absolute().parent / "recipe.yaml"
    if not recipe.is_file():
        raise InputError(f"{folder} has a SID table, but {recipe} with its settings is missing.", hint=_HINT)
    sid, data = _settings(parse_yaml(recipe.read_text(encoding="utf-8"), source=str(recipe)), recipe)
    return SIDSource(folder, table, sid, data, None, 1, folder, table.num_items)


def _settings(recipe: Any, where: Path) -> tuple[SIDConfig, DataConfig]:
    from llmrec.config import build_config
    from llmrec.data.config import DataConfig
    from llmrec.sid_vocab.build import SIDConfig

    if not isinstance(recipe, Mapping) or not isinstance(recipe.get("data"), Mapping):
        raise InputError(f"{where} does not say which data its SIDs were made of.", hint=_HINT)
    sid = build_config(SIDConfig, recipe.get("sid") or {}, source=f"{where}, sid")
    return sid, build_config(DataConfig, recipe["data"], source=f"{where}, data")


def _load(folder: Path) -> SIDTable:
    from llmrec.sid_vocab.table import SIDTable

    if not (folder / "sid_table.json").is_file():
        raise InputError(f"{folder} holds no SID table.", hint=_HINT)
    return SIDTable.load(folder)


def _catalog(folder: Path, text_fields: tuple[str, ...], attributes: tuple[str, ...]) -> Catalog:
    import polars as pl

    from llmrec.data.catalog import Catalog

    try:
        frame = pl.read_parquet(folder / "catalog.parquet")
    except (OSError, pl.exceptions.PolarsError) as error:
        raise InputError(
            f"{folder / 'catalog.parquet'} cannot be read: {error}", hint="copy the folder again"
        ) from error
    return Catalog(frame, text_fields, attributes)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict) or not {"version", "text_fields", "attributes"} <= values.keys():
            raise ValueError("keys are missing")
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}", hint="copy the folder again as a whole") from error
    return values
