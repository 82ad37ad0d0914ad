"""The catalogue a server recommends from, in versions: a request keeps the version it began with.

A swap makes a second recommender over the same model with a descendant SID table; nothing of the old one changes, and
it is freed with the last request that holds it.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from llmrec.checkpoint_checks import require_descendant
from llmrec.data.catalog import Catalog
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

    @cached_property
    def attributes(self) -> AttributeIndex:
        """For filters on attributes."""
        checkpoint = self.recommender.checkpoint
        return AttributeIndex(checkpoint.catalog, checkpoint.table.item_ids)


class ServedCatalog:
    """The current version; `prepare` and `publish` are the two halves of a swap."""

    def __init__(self, recommender: Recommender) -> None:
        self._lock = threading.Lock()
        self._origin = recommender
        self._current = CatalogVersion(1, recommender, time.time())

    @property
    def current(self) -> CatalogVersion:
        """What new requests begin with."""
        return self._current

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
        current = self._current
        recommender = self._origin
        own = recommender.checkpoint
        table = SIDTable.load(folder)
        require_descendant(own.table, table)
        catalog = _read_catalog(folder, own.catalog)
        checkpoint = replace(own, table=table, catalog=catalog)
        # The tokenizer is the same for every version; reading it again would take the GIL for a second.
        checkpoint.__dict__["tokenizer"] = own.tokenizer
        new = Recommender(checkpoint, recommender.model, batch_size=recommender.batch_size)
        return CatalogVersion(current.number + 1, new, time.time())

    def publish(self, version: CatalogVersion) -> None:
        """Give `version` to all requests that begin from now on.

        Raises:
            InputError: another swap came first.
        """
        with self._lock:
            if version.number != self._current.number + 1:
                raise InputError(
                    "Another swap was published while this one was prepared.",
                    hint="ask again",
                )
            self._current = version


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
