"""The catalogue a server recommends from, in versions: a request keeps the version it began with.

A swap makes a second recommender over the same model with a descendant SID table and exchanges one reference
(`llmrec.decode.catalog_versions`); nothing of the old one changes, and it is freed with the last request that holds it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from llmrec.checkpoint_checks import require_descendant
from llmrec.data.catalog import Catalog
from llmrec.decode.catalog_versions import CatalogVersion as Searchable
from llmrec.decode.catalog_versions import CatalogVersions
from llmrec.errors import InputError
from llmrec.recommender import Recommender
from llmrec.serve.attribute_filter import AttributeIndex
from llmrec.sid_vocab.table import ACTIVE, SIDTable


@dataclass(frozen=True, eq=False)
class CatalogVersion:
    """A recommender over one SID table, and what the server knows about its items."""

    number: int
    """1 for the table that the server started with."""
    recommender: Recommender
    since: float
    """`time.time` of its making."""

    @property
    def id(self) -> str:
        """The table's rows fingerprint: which items have which SID and may be recommended."""
        return self.recommender.checkpoint.table.rows_fingerprint

    @property
    def num_items(self) -> int:
        """Items that are not retired."""
        return int((self.recommender.checkpoint.table.status == ACTIVE).sum())

    def warm(self) -> None:
        """Make what requests need of a catalogue; of a million items it takes seconds, which no request shall wait."""
        _ = self.attributes, self.titles
        if "think" in self.recommender.checkpoint.card.tasks:
            self.recommender.facts.warm()

    @cached_property
    def titles(self) -> dict[str, str]:
        """Title by item id, of all items."""
        recommender = self.recommender
        return {item_id: recommender.titles.title(item_id) for item_id in recommender.checkpoint.table.item_ids}

    @cached_property
    def attributes(self) -> AttributeIndex:
        """For filters on attributes."""
        checkpoint = self.recommender.checkpoint
        return AttributeIndex(checkpoint.catalog, checkpoint.table.item_ids)


class ServedCatalog:
    """The current version; `prepare` and `publish` are the two halves of a swap."""

    def __init__(self, recommender: Recommender) -> None:
        self._origin = recommender
        self._versions = CatalogVersions(_searchable(CatalogVersion(1, recommender, time.time())))

    @property
    def current(self) -> CatalogVersion:
        """What new requests begin with."""
        return self._versions.current().payload

    @contextmanager
    def use(self) -> Iterator[CatalogVersion]:
        """The current version, counted as in use until the block ends: for the whole life of a request."""
        with self._versions.use() as version:
            yield version.payload

    @property
    def num_versions(self) -> int:
        """Versions that requests still use, the current one among them."""
        return len(self._versions.requests())

    def prepare(self, folder: Path) -> CatalogVersion:
        """Load and check a descendant of the first version's table; slow, and nothing is changed yet.

        It need not descend from the current one: going back to an older table is a swap like any other.

        Args:
            folder: what `SIDTable.save` wrote (a checkpoint folder has one too); a ``catalog.parquet`` in it brings the
                titles of added items.

        Raises:
            InputError: there is no readable table or catalogue.
            MismatchError: the table is of another vocabulary, or no descendant.
        """
        current = self.current
        recommender = self._origin
        own = recommender.checkpoint
        table = SIDTable.load(folder)
        require_descendant(own.table, table)
        catalog = _read_catalog(folder, own.catalog)
        checkpoint = replace(own, table=table, catalog=catalog)
        # The tokenizer is the same for every version; reading it again would take the GIL for a second.
        checkpoint.__dict__["tokenizer"] = own.tokenizer
        return CatalogVersion(current.number + 1, recommender.over(checkpoint), time.time())

    def publish(self, version: CatalogVersion) -> None:
        """Give `version` to all requests that begin from now on.

        Raises:
            InputError: it is in use already, or another swap came first.
        """
        self._versions.swap(_searchable(version))


def _searchable(version: CatalogVersion) -> Searchable[CatalogVersion]:
    serving = version.recommender.checkpoint.card.serving
    # Numbered, because a table may come back while requests of its first time still run.
    return Searchable(f"{version.number}:{version.id}", version.recommender.searcher(serving.normalise).trie, version)


def _read_catalog(folder: Path, current: Catalog) -> Catalog:
    import polars as pl

    path = folder / "catalog.parquet"
    if not path.exists():
        return current
    try:
        frame = pl.read_parquet(path)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise InputError(f"{path} cannot be read: {error}", hint="copy the folder again as a whole") from error
    return Catalog(frame, current.text_fields, current.attributes)
