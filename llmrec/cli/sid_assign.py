"""What `llmrec sid assign` does: read new items, embed them as the fit did, write the next version of the table."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llmrec.cli.sid_source import RECORD, SIDSource, open_source
from llmrec.errors import InputError
from llmrec.folders import written_beside
from llmrec.sid_vocab.assign import Assigned, Drift, drift, next_version
from llmrec.sid_vocab.table import ACTIVE

if TYPE_CHECKING:
    import polars as pl

    from llmrec.data.catalog import Catalog
    from llmrec.sid_vocab.embeddings import EmbeddingConfig
    from llmrec.sid_vocab.quantizer import FittedQuantizer

_REFERENCE = 1000  # old items that drift is measured against: their 95th percentile is then known to a percent
_DISPLACED = 0.1  # share of new items without a place under their own codes from which a refit is due
_TEXT_ALONE = (
    "the codebooks were fitted with behaviour joined to the text; new items have none and gather under few codes "
    "(fusion align, or a lower behaviour_weight, serves new items better)"
)
_GUESSED = "new items have no behaviour: their codes on the behaviour levels are what their text predicts"


@dataclass(frozen=True)
class NewVersion:
    """A version that was written."""

    version: int
    assigned: Assigned
    drift: Drift | None
    notes: tuple[str, ...]

    @property
    def refit_due(self) -> bool:
        """Whether the codebooks fit the new items badly, or many find no place under their own codes."""
        crowded = len(self.assigned.displaced) > _DISPLACED * len(self.assigned.added)
        return crowded or (self.drift is not None and self.drift.refit_due)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        told = self.assigned
        return {
            "version": self.version,
            "parent": told.table.parent,
            "rows_fingerprint": told.table.rows_fingerprint,
            "num_items": told.table.num_items,
            "added": {item_id: told.table.text(item_id) for item_id in told.added},
            "known": list(told.known),
            "retired": list(told.retired),
            "already_retired": list(told.already_retired),
            "displaced": list(told.displaced),
            "sharing": list(told.sharing),
            "drift": None if self.drift is None else dataclasses.asdict(self.drift),
            "refit_due": self.refit_due,
            "notes": list(self.notes),
        }


def assign_version(
    folder: Path,
    output: Path,
    *,
    items: Path | None = None,
    retire: Path | None = None,
    vectors: Path | None = None,
    vector_ids: Path | None = None,
) -> NewVersion:
    """Write version n + 1 of the table of `folder` to `output`, with its catalogue and a record.

    Args:
        folder: see `open_source`.
        output: a new folder.
        items: new items; those that the table knows are counted and keep their SID.
        retire: ids, one a line.
        vectors: of the new items, where the SIDs were made of a file of vectors; by default that file.
        vector_ids: ids of the rows of a ``.npy``.

    Raises:
        InputError: settings that do not fit, files that cannot be read, items that find no place.
        DataError: items or vectors that cannot be used, with every problem.
    """
    if output.exists():
        raise InputError(f"{output} exists already and is not overwritten", hint="give another --output")
    source = open_source(folder)
    catalog = source.read_catalog()
    gone = _read_ids(retire) if retire else []
    given = read_items(items, source, catalog) if items else None
    ids = given.item_ids if given else ()
    old = set(source.table.item_ids)
    fresh = [item_id for item_id in ids if item_id not in old]
    found: Drift | None = None
    notes: tuple[str, ...] = ()
    quantizer: FittedQuantizer | None = None
    rows = np.zeros((len(ids), 1), np.float32)
    if fresh and given:
        quantizer = _quantizer(source)
        config = _with_vectors(source.sid.embeddings, vectors, vector_ids)
        made, notes = _embed(source, config, quantizer, fresh, [given.text(item_id) for item_id in fresh])
        rows = np.zeros((len(ids), made.shape[1]), np.float32)
        rows[[item_id not in old for item_id in ids]] = made
        found, more = _drift(source, catalog, quantizer, made)
        notes = (*notes, *more)
        if config.fusion == "concat" and config.needs_behaviour:
            notes = (*notes, _GUESSED if source.sid.quantizer.name == "per-source" else _TEXT_ALONE)
    share = source.sid.collisions.strategy == "share"
    assigned = next_version(source.table, quantizer, ids, rows, retire=gone, share=share)
    result = NewVersion(source.version + 1, assigned, found, notes)
    _write(output, source, result, _together(catalog, given, assigned.added))
    return result


def read_items(path: Path, source: SIDSource, catalog: Catalog) -> Catalog:
    """New items with the text fields and attributes of `catalog`.

    Raises:
        InputError: the file cannot be read, or its name ends in something else than .jsonl, .csv or .parquet.
        DataError: every problem of its rows.
    """
    from llmrec.data.problems import Problems
    from llmrec.data.tables import read_delimited, read_json_lines, read_parquet
    from llmrec.data.validate import check_items

    readers = {".jsonl": read_json_lines, ".csv": read_delimited, ".parquet": read_parquet}
    if path.suffix not in readers:
        raise InputError(f"{path} is none of {', '.join(readers)}.", hint="one item a row, columns as in the catalogue")
    problems = Problems()
    table = readers[path.suffix](path.read_bytes(), path.name, problems)
    config = source.data.model_copy(update={"text_fields": catalog.text_fields, "attributes": catalog.attributes})
    found = check_items(table, config, problems)
    problems.raise_any(f"The new items in {path}")
    assert found is not None  # else there was a problem
    return found


def _quantizer(source: SIDSource) -> FittedQuantizer:
    """The frozen quantiser: what the fit kept beside its table, or where codebooks say all, the table's."""
    from llmrec.sid_vocab.quantizer_files import FILE, load_quantizer
    from llmrec.sid_vocab.quantizers import make_quantizer

    table = source.table
    if source.sid.index is not None or not table.codebooks:
        raise InputError(
            f"The SIDs of {source.folder} were given in a file, so there are no codebooks to encode new items with.",
            hint="give the new items SIDs in the index.json and fit again; old checkpoints then load the new table",
        )
    if (source.fit / FILE).is_file():
        return load_quantizer(source.fit, table)
    state = {f"codebook_{level}": book for level, book in enumerate(table.codebooks)}
    return make_quantizer(source.sid.quantizer).restore(state)


def _with_vectors(config: EmbeddingConfig, path: Path | None, ids: Path | None) -> EmbeddingConfig:
    if path is None and ids is None:
        return config
    if config.source != "file" or path is None:
        raise InputError(
            f"--vectors and --ids are for SIDs made of a file of vectors; these were made of {config.source}."
            if config.source != "file"
            else "--ids needs --vectors.",
            hint="leave them out" if config.source != "file" else "give the .npy as --vectors",
        )
    update = {"path": str(path), "ids": str(ids) if ids else None}
    return type(config).model_validate({**config.model_dump(), **update})


def _embed(
    source: SIDSource,
    config: EmbeddingConfig,
    quantizer: FittedQuantizer,
    item_ids: Sequence[str],
    texts: Sequence[str],
) -> tuple[np.ndarray, tuple[str, ...]]:
    """(n, dim) vectors of items without behaviour in the space that was quantised, and notes."""
    from transformers.utils import logging

    from llmrec.sid_vocab.build import HEAD_FILE
    from llmrec.sid_vocab.embeddings import embed_new_items
    from llmrec.sid_vocab.fusion import AlignmentHead
    from llmrec.sid_vocab.vector_cache import default_cache

    logging.disable_progress_bar()
    head = AlignmentHead.load(source.fit / HEAD_FILE) if config.fusion == "align" else None
    dim = quantizer.reconstruct(np.zeros((1, 1), np.int32)).shape[1]  # an RQ-VAE's codebooks are of another space
    made = embed_new_items(config, item_ids, texts, dim, head, cache=default_cache())
    return made.vectors, made.notes


def _drift(
    source: SIDSource, catalog: Catalog, quantizer: FittedQuantizer, vectors: np.ndarray
) -> tuple[Drift | None, tuple[str, ...]]:
    """Drift against active items of the fit, chosen by the hash of their id and embedded as if they were new.

    Items of later versions are no measure: the codebooks were not fitted to them, and drift would creep.
    """
    config = source.sid.embeddings
    if config.source == "file" and not Path(str(config.path)).expanduser().is_file():
        return None, (f"drift was not measured: {config.path}, with the vectors of the old items, is gone",)
    fitted, status = source.table.item_ids[: source.num_fitted], source.table.status[: source.num_fitted]
    active = [item_id for item_id, one in zip(fitted, status, strict=True) if one == ACTIVE]
    chosen = sorted((item_id for item_id in active if item_id in catalog), key=_hash)[:_REFERENCE]
    if not chosen:
        return None, ("drift was not measured: the catalogue has no active item of the fit",)
    old, _ = _embed(source, config, quantizer, chosen, [catalog.text(item_id) for item_id in chosen])
    return drift(quantizer, vectors, old), ()


def _hash(item_id: str) -> bytes:
    return hashlib.sha256(item_id.encode()).digest()


def _read_ids(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text (byte {error.start})", hint="save it as UTF-8") from error
    return list(dict.fromkeys(line.strip() for line in lines if line.strip()))


def _together(catalog: Catalog, given: Catalog | None, added: Sequence[str]) -> pl.DataFrame:
    """The old catalogue with the added items below, in the old columns and types."""
    import polars as pl

    if given is None or not added:
        return catalog.frame
    old = catalog.frame.schema
    new = given.frame.filter(pl.col("item_id").is_in(list(added)) & ~pl.col("item_id").is_in(list(catalog.item_ids)))
    columns = []
    for name, kind in old.items():
        if name not in new.columns:
            columns.append(pl.lit(None, dtype=kind).alias(name))
        elif isinstance(kind, pl.List) and not isinstance(new.schema[name], pl.List):
            columns.append(pl.when(pl.col(name).is_not_null()).then(pl.concat_list(name)).cast(kind).alias(name))
        elif isinstance(new.schema[name], pl.List) and not isinstance(kind, pl.List):
            columns.append(pl.col(name).list.join(", ").cast(kind))
        else:
            columns.append(pl.col(name).cast(kind))
    return pl.concat([catalog.frame, new.select(columns)])


def _write(output: Path, source: SIDSource, result: NewVersion, catalog: pl.DataFrame) -> None:
    from llmrec.sid_vocab.build import HEAD_FILE
    from llmrec.sid_vocab.quantizer_files import FILE

    kept = source.read_catalog()
    record = {
        **result.as_dict(),
        "sid": source.sid.model_dump(mode="json"),
        "data": source.data.model_dump(mode="json"),
        "text_fields": list(kept.text_fields),
        "attributes": list(kept.attributes),
        "num_fitted": source.num_fitted,
    }
    with written_beside(output) as work:
        result.assigned.table.save(work)
        catalog.write_parquet(work / "catalog.parquet")
        for name in (FILE, HEAD_FILE):
            if (source.fit / name).is_file():
                (work / name).parent.mkdir(exist_ok=True)
                shutil.copyfile(source.fit / name, work / name)
        (work / RECORD).write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
