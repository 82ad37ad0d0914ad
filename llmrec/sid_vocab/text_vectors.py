"""Embed the texts of a catalogue: each different text once, with little padding, resumable and with progress.

Texts run in order of their length, so that a batch has little padding; the longest come first, so that memory fails at
once or not at all. With a cache, finished shards are kept: a run that was killed goes on where it stopped, and a
catalogue that grew encodes its new texts only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llmrec.errors import DataError
from llmrec.sid_vocab.text_encoder import Encoded, TextEncoder
from llmrec.sid_vocab.vector_cache import VectorCache, text_key
from llmrec.sid_vocab.vectors import require_vectors

_SHARD_TEXTS = 2048  # 3 MB at 384 numbers; what a kill costs: half a minute of a small encoder on two cores


@dataclass(frozen=True)
class TextVectors:
    """Vectors of texts, in their order."""

    vectors: np.ndarray
    """(n_items, dim) float32 unit rows; equal texts have equal vectors."""
    notes: tuple[str, ...]
    """Texts that the encoder cut, damaged files of the cache."""
    encoded: int
    """Different texts that were encoded now; the others came from the cache."""


def embed_texts(
    encoder: TextEncoder,
    item_ids: Sequence[str],
    texts: Sequence[str],
    batch_size: int = 64,
    *,
    cache: Path | None = None,
    shard_texts: int = _SHARD_TEXTS,
) -> TextVectors:
    """Unit vectors of `texts`.

    Args:
        encoder: reads the texts.
        item_ids: (n_items,) what errors call the texts.
        texts: (n_items,) none empty.
        batch_size: texts per forward pass.
        cache: folder of vectors that are kept (`llmrec.sid_vocab.vector_cache`); None keeps none.
        shard_texts: texts after which the vectors so far are kept.

    Raises:
        DataError: texts are empty or not one per item, or the encoder makes NaN or zero vectors. Such vectors are
            not kept.
        EnvironmentProblem: the cache's disk is full.
    """
    from rich.console import Console
    from rich.progress import track

    _require_texts(item_ids, texts)
    order = sorted(dict.fromkeys(texts), key=lambda text: (-len(text), text))
    place = {text: row for row, text in enumerate(order)}
    called = {text: item_id for item_id, text in zip(reversed(item_ids), reversed(texts), strict=True)}
    store = np.empty((len(order), 0), np.float32)
    cut = np.zeros(len(order), bool)

    def put(rows: np.ndarray, encoded: Encoded) -> None:
        nonlocal store
        if not store.shape[1]:
            store = np.empty((len(order), encoded.vectors.shape[1]), np.float32)
        store[rows], cut[rows] = encoded.vectors, encoded.cut

    kept = None if cache is None else VectorCache(cache, encoder.identity(), encoder.reference)
    left, damaged = np.arange(len(order)), 0
    if kept is not None:
        found = kept.read({text_key(text): row for text, row in place.items()})
        damaged = found.damaged
        left = np.setdiff1d(left, found.rows)
        if len(found.rows):
            put(found.rows, found.encoded)

    unkept: list[int] = []
    batches = [left[start : start + batch_size] for start in range(0, len(left), batch_size)]
    for rows in track(batches, "embedding item texts", console=Console(stderr=True), transient=True):
        encoded = encoder.encode([order[row] for row in rows])
        names = [called[order[row]] for row in rows]
        require_vectors(encoded.vectors, names, source=f"The vectors that {encoder.reference} made")
        put(rows, encoded)
        unkept += rows.tolist()
        if kept is not None and (len(unkept) >= shard_texts or rows is batches[-1]):
            kept.add([order[row] for row in unkept], Encoded(store[unkept], cut[unkept]))
            unkept = []

    wanted = np.array([place[text] for text in texts])
    notes = []
    if count := int(cut[wanted].sum()):
        notes.append(f"{count} texts are longer than {encoder.reference} reads and were cut")
    if damaged:
        notes.append(f"{damaged} damaged files of kept vectors were not used; their texts were encoded again")
    return TextVectors(store[wanted], tuple(notes), len(left))


def _require_texts(item_ids: Sequence[str], texts: Sequence[str]) -> None:
    problems = []
    if len(texts) != len(item_ids):
        problems.append(f"{len(texts)} texts for {len(item_ids)} items")
    if empty := [item_id for item_id, text in zip(item_ids, texts, strict=False) if not text.strip()]:
        problems.append(f"{len(empty)} items have no text, first: {', '.join(map(repr, empty[:3]))}")
    if problems or not texts:
        raise DataError("The item texts cannot be embedded:", problems or ["there are none"])
