"""Versions of a live catalogue: requests keep the one they began with while the next one is published.

A version is immutable, so a swap is the exchange of one reference: no request waits for it and none sees half of it.
What a request pins is freed when the last one of its version ends, by the usual counting of references; the counts
kept here say how many requests each version still serves.

    versions = CatalogVersions(CatalogVersion("monday", trie, table))
    with versions.use() as version:  # for the whole life of a request, its stream included
        search(version.trie)
    versions.swap(CatalogVersion("monday, 12 sold out", versions.current().trie.with_switched(rows, False), table))
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import Generic, TypeVar

from llmrec.decode.trie import SIDTrie
from llmrec.errors import InputError

Payload = TypeVar("Payload")
"""What belongs to a version besides its trie: the table, titles."""


@dataclass(frozen=True)
class CatalogVersion(Generic[Payload]):
    """One state of the catalogue.

    Attributes:
        name: tells it from all other versions in use, such as the fingerprint of the table's rows.
        trie: what can be searched.
        payload: what is needed to answer, of the same rows.
    """

    name: str
    trie: SIDTrie
    payload: Payload


class CatalogVersions(Generic[Payload]):
    """The current version and a count of the requests on each; all methods may be called from any thread.

    Args:
        first: what is served at the start.
    """

    def __init__(self, first: CatalogVersion[Payload]) -> None:
        self._lock = Lock()
        self._current = first
        self._requests: dict[str, int] = {first.name: 0}

    def current(self) -> CatalogVersion[Payload]:
        """The version that a request gets now, without counting one."""
        return self._current

    @contextmanager
    def use(self) -> Iterator[CatalogVersion[Payload]]:
        """The current version, counted as in use until the block ends."""
        with self._lock:
            version = self._current
            self._requests[version.name] += 1
        try:
            yield version
        finally:
            with self._lock:
                self._requests[version.name] -= 1
                self._forget(version.name)

    def swap(self, new: CatalogVersion[Payload]) -> CatalogVersion[Payload]:
        """Publish `new` for all requests that begin from now on; returns the version it follows.

        Raises:
            InputError: its name is that of a version in use, or its codebooks are others, so that the tokens of the
                model would mean other codes.
        """
        with self._lock:
            old = self._current
            if new.name in self._requests:
                raise InputError(
                    f"A catalogue version {new.name!r} is in use already.", hint="give every version a name of its own"
                )
            if new.trie.codebook_sizes != old.trie.codebook_sizes:
                raise InputError(
                    f"The new version has codebooks of {list(new.trie.codebook_sizes)} codes, the served model was "
                    f"trained on {list(old.trie.codebook_sizes)}.",
                    hint="only a catalogue with the SIDs of the same vocabulary can be swapped in",
                )
            self._current = new
            self._requests[new.name] = 0
            self._forget(old.name)
        return old

    def requests(self) -> dict[str, int]:
        """Requests that run on each version in use, the current one last; old ones vanish with their last request."""
        with self._lock:
            return dict(self._requests)

    def _forget(self, name: str) -> None:
        """Drop the count of an old version that serves nobody; the caller holds the lock."""
        if name != self._current.name and self._requests[name] == 0:
            del self._requests[name]
