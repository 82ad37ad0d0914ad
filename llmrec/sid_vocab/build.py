"""From items to a `SIDTable` in one call: vectors, quantiser, collisions, report; or the user's own SIDs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from pydantic import Field, model_validator

from llmrec.config import Config
from llmrec.data.dataset import Dataset
from llmrec.sid_vocab.behaviour_signal import BehaviourSignal
from llmrec.sid_vocab.collisions import CollisionConfig, resolve_collisions
from llmrec.sid_vocab.embeddings import EmbeddingConfig, embed_items
from llmrec.sid_vocab.fusion import AlignmentHead
from llmrec.sid_vocab.index_json import IndexConfig, read_index_json
from llmrec.sid_vocab.per_source import PerSourceConfig
from llmrec.sid_vocab.quantizer import FittedQuantizer
from llmrec.sid_vocab.quantizer_files import save_quantizer
from llmrec.sid_vocab.quantizers import QuantizerConfig, fit_quantizer, learns_from_behaviour
from llmrec.sid_vocab.report import HealthReport, health_report
from llmrec.sid_vocab.rq_kmeans import RQKMeansConfig
from llmrec.sid_vocab.table import SIDTable
from llmrec.sid_vocab.vector_cache import default_cache

VERSION = 3  # raise it when the same config and inputs give another table, so that cached stages run anew
HEAD_FILE = "codebooks/alignment.safetensors"  # beside the quantiser: what fusion "align" learned


class SIDConfig(Config):
    """How items get their Semantic IDs."""

    embeddings: EmbeddingConfig = Field(default_factory=EmbeddingConfig)
    """What is quantised."""
    quantizer: QuantizerConfig = Field(default_factory=RQKMeansConfig)
    """How it is quantised."""
    collisions: CollisionConfig = Field(default_factory=CollisionConfig)
    """What happens to items with equal codes."""
    index: IndexConfig | None = None
    """The user's own SIDs; the three groups above are then not used."""

    @model_validator(mode="after")
    def _both_sources(self) -> Self:
        joined = self.embeddings.fusion == "concat" and 0 < self.embeddings.behaviour_weight < 1
        if self.index is None and isinstance(self.quantizer, PerSourceConfig) and not joined:
            raise ValueError(
                "quantizer per-source reads text and behaviour side by side: set embeddings.fusion: concat and "
                "embeddings.behaviour_weight above 0 and below 1"
            )
        return self

    @property
    def needs_behaviour(self) -> bool:
        """Whether vectors or quantiser depend on train interactions."""
        return self.index is None and (self.embeddings.needs_behaviour or learns_from_behaviour(self.quantizer))


@dataclass(frozen=True)
class BuiltTable:
    """A table with what was seen while making it."""

    table: SIDTable
    report: HealthReport
    vectors: np.ndarray | None
    """(n_items, dim) float32 what was quantised, in the order of the table's rows; None for SIDs from a file."""
    config: SIDConfig
    fitted: FittedQuantizer | None = None
    """What quantised the vectors; None for SIDs from a file."""
    head: AlignmentHead | None = None
    """What ``fusion: align`` learned."""

    def save(self, folder: Path) -> None:
        """Write the table, what `llmrec sid assign` needs to encode new items, and ``report.json`` into `folder`."""
        self.table.save(folder)
        if self.fitted is not None:
            save_quantizer(folder, self.config.quantizer, self.fitted)
        if self.head is not None:
            self.head.save(folder / HEAD_FILE)
        (folder / "report.json").write_text(json.dumps(self.report.as_dict(), indent=2) + "\n", encoding="utf-8")


def build_table(
    config: SIDConfig,
    item_ids: Sequence[str],
    texts: Sequence[str],
    behaviour: BehaviourSignal | None = None,
    *,
    titles: Sequence[str] | None = None,
    popularity: np.ndarray | None = None,
    cache: Path | None = None,
) -> BuiltTable:
    """Build the table of `item_ids`, in this row order; deterministic for a config and its inputs.

    Args:
        config: the ``sid`` part of a recipe.
        item_ids: (n_items,) all catalogue items.
        texts: (n_items,) what the encoder reads.
        behaviour: of the same items in the same order, from train alone (`behaviour_vectors.behaviour_signal`); needed
            where ``config.needs_behaviour``.
        titles: (n_items,) what the report calls the items; default the texts.
        popularity: (n_items,) train counts: who comes first in `resolve_collisions`; default the row order.
        cache: folder where text vectors are kept (`embed_items`).

    Raises:
        DataError: vectors, texts or SIDs that cannot be used, with every problem.
        InputError: files that cannot be read, or codebooks that do not fit the catalogue.
    """
    titles = texts if titles is None else titles
    if config.index is not None:
        given = read_index_json(config.index, item_ids)
        table = SIDTable(
            item_ids=tuple(item_ids),
            codes=given.codes,
            codebook_sizes=given.codebook_sizes,
            has_suffix=config.index.has_suffix,
        )
        report = health_report(table, titles, popularity=popularity, notes=given.notes)
        return BuiltTable(table, report, None, config)

    acts = None if behaviour is None else behaviour.vectors
    embedded = embed_items(config.embeddings, item_ids, texts, acts, cache=cache)
    fitted = fit_quantizer(config.quantizer, embedded.vectors, behaviour)
    quantised = fitted.encode_jointly(embedded.vectors)
    resolved = resolve_collisions(
        quantised,
        tuple(len(book) for book in fitted.codebooks),
        config.collisions,
        popularity,
        vectors=embedded.vectors,
        quantizer=fitted,
    )
    table = SIDTable(
        item_ids=tuple(item_ids),
        codes=resolved.codes,
        codebook_sizes=resolved.codebook_sizes,
        has_suffix=resolved.has_suffix,
        codebooks=fitted.codebooks,
    )
    where = "nearest free code" if config.collisions.strategy == "reassign" else "code that optimal transport gave them"
    moved = f"{resolved.moved} of {len(item_ids)} items were moved to the {where} of the last level"
    report = health_report(
        table,
        titles,
        quantised=quantised,
        vectors=embedded.vectors,
        quantizer=fitted,
        popularity=popularity,
        notes=(*embedded.notes, *_silent_note(config, behaviour), *((moved,) if resolved.moved else ())),
    )
    return BuiltTable(table, report, embedded.vectors, config, fitted, embedded.head)


def build_table_of(config: SIDConfig, dataset: Dataset) -> BuiltTable:
    """`build_table` for a data set: behaviour and popularity from its train part, rows in catalogue order."""
    from llmrec.sid_vocab.behaviour_vectors import behaviour_signal

    catalog, split = dataset.catalog, dataset.split
    rows = {item_id: row for row, item_id in enumerate(catalog.item_ids)}
    known = [(index, rows[item_id]) for index, item_id in enumerate(split.items) if item_id in rows]
    of_split, of_table = (np.array(side, dtype=np.int64) for side in zip(*known, strict=True))
    popularity = np.zeros(catalog.num_items, np.int64)
    popularity[of_table] = split.train_counts()[of_split]
    behaviour = None
    if config.needs_behaviour:
        embeddings = config.embeddings
        behaviour = behaviour_signal(
            split.train(),
            split.items,
            catalog.item_ids,
            source=embeddings.behaviour,
            size=embeddings.behaviour_size,
            epochs=embeddings.behaviour_epochs,
        )
    return build_table(
        config,
        catalog.item_ids,
        catalog.texts(),
        behaviour,
        titles=[catalog.title(item_id) for item_id in catalog.item_ids],
        popularity=popularity,
        cache=default_cache(),
    )


def _silent_note(config: SIDConfig, behaviour: BehaviourSignal | None) -> tuple[str, ...]:
    """Items that a quantiser had no behaviour to learn from, where the fusion does not say it already."""
    if behaviour is None or config.embeddings.needs_behaviour or not learns_from_behaviour(config.quantizer):
        return ()
    silent = int((~behaviour.known).sum())
    return (f"{silent} items without train behaviour are placed by text alone",) if silent else ()
