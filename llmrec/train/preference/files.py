"""A preference data set on disk: ``preferences.parquet`` and its card ``preferences.json``.

The card says what made the rows (recipe, seed, data, model, SIDs) and what was left out. It holds no time and no
machine: equal content gives equal files. Reading verifies all of it against the card, the data and the SIDs at hand.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import polars as pl
from pydantic import ValidationError

from llmrec import __version__
from llmrec.checkpoint import Checkpoint
from llmrec.checkpoint_card import DataCard, FingerprintsCard
from llmrec.config import Config
from llmrec.data.assets import sha256_file
from llmrec.data.dataset import Dataset
from llmrec.data.problems import Problems, listed
from llmrec.data.split import Split
from llmrec.errors import DataError, InputError, MismatchError
from llmrec.folders import written_beside
from llmrec.sid_vocab.table import SIDTable
from llmrec.train.preference.build import Preferences
from llmrec.train.preference.config import PreferConfig
from llmrec.train.preference.leaks import check_leaks
from llmrec.train.preference.pairs import PreferenceRow, check_rows

FORMAT_VERSION = 1
ROWS_FILE, CARD_FILE = "preferences.parquet", "preferences.json"
_AGAIN = "make it anew with llmrec prefer"
_SCHEMA: dict[str, Any] = {
    "row_id": pl.String,
    "user_id": pl.String,
    "position": pl.Int64,
    "history": pl.List(pl.String),
    "chosen": pl.String,
    "rejected": pl.List(pl.String),
    "chosen_source": pl.String,
    "source": pl.List(pl.String),
    "weights": pl.List(pl.Float64),
    "scores": pl.List(pl.Float64),
    "chosen_score": pl.Float64,
    "iteration": pl.Int64,
}


class ModelCard(Config):
    """The checkpoint that had the SIDs, and whose model was asked."""

    fingerprint: str
    """`Checkpoint.fingerprint`."""
    stage: str
    """That wrote it."""
    sids: FingerprintsCard
    """Of its SID table."""
    engine: str | None
    """What ran the model; None where it was not asked."""


class PreferenceCard(Config):
    """The content of ``preferences.json``."""

    format_version: int = FORMAT_VERSION
    llmrec_version: str
    name: str
    recipe: dict[str, Any]
    """The resolved recipe."""
    seed: int
    iteration: int
    """Of self-play; 0 elsewhere."""
    rows: int
    pairs: int
    users: int
    pairs_by_source: dict[str, int]
    rows_dropped: dict[str, int]
    """Train events that gave no row, by reason."""
    items_dropped: dict[str, int]
    """Candidates that were not rejected, ``source: reason``."""
    items_missing: dict[str, int]
    """By source, rejected items that the recipe asks for and that it could not give."""
    scorer: str | None
    """What judged candidates; None where nothing did."""
    data: DataCard
    model: ModelCard
    rows_sha256: str
    """SHA-256 of ``preferences.parquet``."""

    @classmethod
    def read(cls, folder: Path) -> PreferenceCard:
        """Read the card of `folder`.

        Raises:
            InputError: there is none, or it cannot be read.
        """
        path = folder / CARD_FILE
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            raise InputError(
                f"{folder} is no preference data set: {CARD_FILE} is missing", hint="give what llmrec prefer wrote"
            ) from None
        except ValueError as error:
            raise InputError(f"{path} cannot be read: {error}", hint=_AGAIN) from error
        found = values.get("format_version") if isinstance(values, dict) else None
        if found != FORMAT_VERSION:
            raise InputError(f"{path} has format {found}; this llmrec reads format {FORMAT_VERSION}", hint=_AGAIN)
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            lines = [f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()]
            raise InputError(f"{path} is damaged: {'; '.join(lines)}", hint=_AGAIN) from error


@dataclass(frozen=True)
class PreferenceData:
    """A data set as it was read and verified."""

    folder: Path
    card: PreferenceCard
    rows: tuple[PreferenceRow, ...]


def save_preferences(
    folder: Path,
    config: PreferConfig,
    made: Preferences,
    dataset: Dataset,
    checkpoint: Checkpoint,
    *,
    engine: str | None,
) -> PreferenceCard:
    """Write rows and card into a new folder, whole or not at all.

    Raises:
        InputError: `folder` exists.
        EnvironmentProblem: the disk is full.
    """
    rows = made.rows
    with written_beside(folder) as work:
        to_frame(rows).write_parquet(work / ROWS_FILE)
        card = PreferenceCard(
            llmrec_version=__version__,
            name=config.name,
            recipe=config.model_dump(mode="json", exclude_none=True),
            seed=config.seed,
            iteration=max(row.iteration for row in rows),
            rows=len(rows),
            pairs=sum(len(row.rejected) for row in rows),
            users=len({row.user_id for row in rows}),
            pairs_by_source=made.pairs_by_source,
            rows_dropped=dict(made.drops.rows.most_common()),
            items_dropped=dict(made.drops.items.most_common()),
            items_missing=dict(made.drops.missing.most_common()),
            scorer=made.scorer,
            data=DataCard(name=dataset.name, loo_sha256=dataset.split.loo_sha256, fingerprint=dataset.fingerprint),
            model=ModelCard(
                fingerprint=checkpoint.fingerprint,
                stage=checkpoint.card.stage,
                sids=FingerprintsCard(
                    vocabulary=checkpoint.table.vocabulary_fingerprint, rows=checkpoint.table.rows_fingerprint
                ),
                engine=engine,
            ),
            rows_sha256=sha256_file(work / ROWS_FILE),
        )
        text = json.dumps(card.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n"
        (work / CARD_FILE).write_text(text, encoding="utf-8")
    return card


def load_preferences(folder: Path, *, split: Split, table: SIDTable) -> PreferenceData:
    """Read a data set and verify it.

    Args:
        folder: what `save_preferences` wrote.
        split: of the data to train on; the rows must be of it, and know no target of it.
        table: SIDs of the model to train. Another model than the one that was asked is fine: the card names it.

    Raises:
        InputError: no data set, or a damaged card.
        MismatchError: the rows are not those of the card, or the split is another.
        DataError: rows that cannot be trained on, that know a target, or whose items have no SID.
    """
    card = PreferenceCard.read(folder)
    path = folder / ROWS_FILE
    if not path.is_file() or sha256_file(path) != card.rows_sha256:
        raise MismatchError(f"{path} is not the file that {CARD_FILE} describes.", hint=_AGAIN)
    if card.data.loo_sha256 != split.loo_sha256:
        raise MismatchError(
            f"{folder} was made from {card.data.name} with check value {card.data.loo_sha256}; the data at hand has "
            f"{split.loo_sha256}.",
            hint="targets of one split are train events of another: " + _AGAIN,
        )
    rows = read_rows(path)
    check_rows(rows, what=str(path))
    check_leaks(rows, split, what=str(path))
    known = set(table.item_ids)
    if missing := sorted({item for row in rows for item in (row.chosen, *row.rejected)} - known):
        raise DataError(
            f"The preference data {path} cannot be rendered:",
            [f"{len(missing):,} items have no SID: {listed(missing)}"],
            hint="take a checkpoint whose SIDs cover the catalogue, or " + _AGAIN,
        )
    return PreferenceData(folder, card, rows)


def to_frame(rows: Sequence[PreferenceRow]) -> pl.DataFrame:
    """One line a row, with the fields of `PreferenceRow` as columns."""
    return pl.DataFrame([asdict(row) for row in rows], schema=_SCHEMA)


def read_rows(path: Path) -> tuple[PreferenceRow, ...]:
    """Rows of a Parquet file, not checked.

    Raises:
        DataError: it is no Parquet file, or columns are missing, of another type, or with empty cells.
    """
    problems = Problems()
    try:
        frame = pl.read_parquet(path)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise DataError(f"{path} cannot be read:", [str(error).splitlines()[0]], hint=_AGAIN) from error
    for name, kind in _SCHEMA.items():
        if name not in frame.columns:
            problems.add("missing column", f"{path}: no column {name!r}; there are {listed(frame.columns)}")
        elif frame.schema[name] != kind:
            problems.add("wrong type", f"{path}: column {name!r} is {frame.schema[name]}, not {kind}")
        elif name != "chosen_score" and (empty := frame[name].null_count()):
            problems.add("empty cells", f"{path}: column {name!r} is empty in {empty:,} rows")
    problems.raise_any("The preference data", hint=_AGAIN)
    lists = [name for name, kind in _SCHEMA.items() if isinstance(kind, pl.List)]
    rows = []
    for values in frame.select([one.name for one in fields(PreferenceRow)]).iter_rows(named=True):
        rows.append(PreferenceRow(**{**values, **{name: tuple(values[name]) for name in lists}}))
    return tuple(rows)
