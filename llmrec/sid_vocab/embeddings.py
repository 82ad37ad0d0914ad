"""Item vectors to quantise: text embeddings or the user's own vectors, with behaviour mixed in on request.

Text alone puts items close that *read* alike; who uses them is in the train matrix. LETTER and EAGER (both Wang et al.
2024) bring the two together by training losses; `fuse` only concatenates unit vectors, ``[sqrt(1-w) text, sqrt(w)
behaviour]``, so that a squared distance is ``(1-w)`` times the text's plus ``w`` times the behaviour's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator

from llmrec.config import Config
from llmrec.data.assets import resolve_asset
from llmrec.errors import DataError, InputError
from llmrec.sid_vocab.vector_files import read_vectors
from llmrec.sid_vocab.vectors import normalise, require_vectors


class EmbeddingConfig(Config):
    """Where item vectors come from."""

    source: Literal["text", "file"] = "text"
    """``text`` embeds the items' text, ``file`` reads the user's own vectors."""
    encoder: str = "asset:all-minilm-l6-v2"
    """sentence-transformers model (source ``text``): a local folder, a hub id or a packaged asset."""
    batch_size: int = Field(default=64, ge=1)
    """Texts per forward pass; only speed and memory depend on it."""
    path: str | None = None
    """Source ``file``: a ``.npy`` matrix, or a ``.parquet`` with the column `id_column`."""
    ids: str | None = None
    """Item ids of a ``.npy``'s rows, in order: ``.txt`` with one id a line, or ``.json`` with a list."""
    id_column: str = "item_id"
    """Column of a ``.parquet`` that holds the item ids."""
    vector_column: str | None = None
    """Column of lists in a ``.parquet``; default: its only list column, else all its numeric columns in file order."""
    behaviour_weight: float = Field(default=0.0, ge=0, le=1)
    """w: 0 is text (or file) alone, 1 behaviour alone. More behaviour ranks better, less serves new items better."""
    behaviour_size: int = Field(default=64, ge=1)
    """Length of the behaviour vectors (co-occurrence of the train part)."""

    @model_validator(mode="after")
    def _path_where_needed(self) -> EmbeddingConfig:
        if self.source == "file" and self.path is None:
            raise ValueError("source 'file' needs a path")
        if self.path is not None and self.source == "text":
            raise ValueError("a path is given, but source is 'text'; set source: file")
        if self.path is not None and self.path.endswith(".npy") and self.ids is None:
            raise ValueError("a .npy has no item ids: name a file with them in ids")
        return self


@dataclass(frozen=True)
class Embeddings:
    """Vectors in the order of the item ids that were asked for."""

    vectors: np.ndarray
    """(n_items, dim) float32, finite, no zero row."""
    notes: tuple[str, ...] = ()
    """What people should know: vectors of unknown items left out, items without behaviour."""


def embed_items(
    config: EmbeddingConfig, item_ids: Sequence[str], texts: Sequence[str], behaviour: np.ndarray | None = None
) -> Embeddings:
    """Vectors for `item_ids` as `config` says.

    Args:
        config: source and fusion.
        item_ids: (n_items,) row order of the result.
        texts: (n_items,) what the encoder reads; unused for source ``file``.
        behaviour: (n_items, any size) rows in the order of `item_ids`, zero for items without train events; needed
            where ``behaviour_weight`` is above 0, unused otherwise.

    Raises:
        DataError: vectors or texts that cannot be used, with every problem.
        InputError: an encoder or a file that cannot be read, or behaviour that is missing.
    """
    if config.behaviour_weight > 0 and behaviour is None:
        raise InputError(
            f"behaviour_weight is {config.behaviour_weight}, but there are no behaviour vectors.",
            hint="set behaviour_weight=0, or build the table together with interactions",
        )
    if config.source == "file":
        found = read_vectors(str(config.path), item_ids, config.ids, config.id_column, config.vector_column)
        vectors, notes = found.vectors, found.notes
    else:
        vectors, notes = embed_texts(config.encoder, item_ids, texts, config.batch_size), ()
    if config.behaviour_weight > 0 and behaviour is not None:
        fused = fuse(vectors, behaviour, config.behaviour_weight)
        return Embeddings(fused.vectors, (*notes, *fused.notes))
    return Embeddings(vectors, notes)


def embed_texts(encoder: str, item_ids: Sequence[str], texts: Sequence[str], batch_size: int = 64) -> np.ndarray:
    """(n_items, dim) float32 unit vectors of `texts`; equal texts are encoded once and get equal vectors.

    Texts run in order of their length, so that a batch has little padding; the longest come first, so that memory
    fails at once or not at all. Text beyond the encoder's maximal length is cut by the encoder.

    Raises:
        DataError: texts are empty, or not one per item.
        InputError: the encoder cannot be loaded.
    """
    from rich.console import Console
    from rich.progress import track

    _require_texts(item_ids, texts)
    model = _load_encoder(encoder)
    order = sorted(dict.fromkeys(texts), key=lambda text: (-len(text), text))
    starts = range(0, len(order), batch_size)
    batches = [
        model.encode(
            order[start : start + batch_size],
            batch_size=batch_size,
            normalize_embeddings=True,
            convert_to_numpy=True,
            show_progress_bar=False,
        )
        for start in track(starts, "embedding item texts", console=Console(stderr=True), transient=True)
    ]
    place = {text: row for row, text in enumerate(order)}
    encoded: np.ndarray = np.concatenate(batches).astype(np.float32)
    vectors = encoded[[place[text] for text in texts]]
    require_vectors(vectors, item_ids, source=f"The vectors that {encoder} made")
    return vectors


def fuse(vectors: np.ndarray, behaviour: np.ndarray, weight: float) -> Embeddings:
    """(n_items, dim + size) float32 unit vectors ``[sqrt(1-w) vector, sqrt(w) behaviour]`` of normalised parts.

    An item without behaviour (a zero row) keeps its text alone at full length, ``[vector, 0]``: its place among the
    others is then decided by text, and the result still has no row near zero, even at weight 1.

    Raises:
        DataError: the numbers of rows differ, or behaviour holds NaN or infinity.
    """
    problems = []
    if behaviour.ndim != 2 or len(behaviour) != len(vectors):
        problems.append(f"shape {behaviour.shape} for {len(vectors)} items")
    if not np.isfinite(behaviour).all():
        problems.append("NaN or infinity")
    if problems:
        raise DataError("The behaviour vectors cannot be used:", problems)
    text, acts = normalise(vectors), normalise(behaviour)
    silent = ~acts.any(axis=1, keepdims=True)
    text_share = np.where(silent, 1.0, np.sqrt(1 - weight))
    fused = np.concatenate([text * text_share, acts * np.sqrt(weight)], axis=1).astype(np.float32)
    count = int(silent.sum())
    return Embeddings(fused, (f"{count} items without train behaviour are placed by text alone",) if count else ())


def _require_texts(item_ids: Sequence[str], texts: Sequence[str]) -> None:
    problems = []
    if len(texts) != len(item_ids):
        problems.append(f"{len(texts)} texts for {len(item_ids)} items")
    if empty := [item_id for item_id, text in zip(item_ids, texts, strict=False) if not text.strip()]:
        problems.append(f"{len(empty)} items have no text, first: {', '.join(map(repr, empty[:3]))}")
    if problems or not texts:
        raise DataError("The item texts cannot be embedded:", problems or ["there are none"])


def _load_encoder(reference: str) -> Any:
    resolved = resolve_asset(reference, kind="encoder")
    from sentence_transformers import SentenceTransformer

    try:
        return SentenceTransformer(str(resolved), trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise InputError(
            f"The text encoder {reference!r} cannot be loaded: {error}",
            hint="give a sentence-transformers folder, a hub id (needs the network), or asset:all-minilm-l6-v2",
        ) from error
