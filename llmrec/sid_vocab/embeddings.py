"""Item vectors to quantise: text embeddings or the user's own vectors, with behaviour mixed in on request.

What each part does is told where it is done: `text_encoder` and `pooled_lm` (text), `vector_files` (own vectors),
`behaviour_vectors` (train interactions), `fusion` (both together).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from llmrec.config import Config
from llmrec.errors import DataError, InputError
from llmrec.sid_vocab.fusion import AlignConfig, AlignmentHead, align, concat, fit_alignment
from llmrec.sid_vocab.text_encoder import SentenceEncoder, TextEncoder
from llmrec.sid_vocab.text_vectors import embed_texts
from llmrec.sid_vocab.vector_files import read_vectors

_MINILM = "asset:all-minilm-l6-v2"


class EmbeddingConfig(Config):
    """Where item vectors come from."""

    source: Literal["text", "lm", "file"] = "text"
    """``text`` embeds the items' text with a sentence-transformers model, ``lm`` with a causal language model,
    ``file`` reads the user's own vectors."""
    encoder: str = _MINILM
    """Model of the sources ``text`` and ``lm``: a local folder, a hub id or a packaged asset."""
    batch_size: int = Field(default=64, ge=1)
    """Texts per forward pass; only speed and memory depend on it."""
    pooling: Literal["mean", "last"] = "mean"
    """Source ``lm``: average of all tokens' states, or the state of the last token (for models tuned to embed)."""
    max_length: int = Field(default=256, ge=1)
    """Source ``lm``: tokens of a text that are read; texts that are cut are counted."""
    path: str | None = None
    """Source ``file``: a ``.npy`` matrix, or a ``.parquet`` with the column `id_column`."""
    ids: str | None = None
    """Item ids of a ``.npy``'s rows, in order: ``.txt`` with one id a line, or ``.json`` with a list."""
    id_column: str = "item_id"
    """Column of a ``.parquet`` that holds the item ids."""
    vector_column: str | None = None
    """Column of lists in a ``.parquet``; default: its only list column, else all its numeric columns in file order."""
    fusion: Literal["concat", "align", "none"] = "concat"
    """``concat`` weighs and joins text and behaviour; ``align`` moves text towards behaviour by a contrastive head,
    which serves new items too; ``none`` takes text (or file) alone."""
    behaviour_weight: float = Field(default=0.0, ge=0, le=1)
    """w. ``concat``: 0 is text alone, 1 behaviour alone; more behaviour ranks better, serves new items less well.
    ``align``: share of the item's own behaviour beside its aligned text; 0 places old and new items alike."""
    behaviour: Literal["cooccurrence", "sasrec"] = "cooccurrence"
    """Behaviour vectors, from the train part alone: an SVD of the user-item matrix (seconds) or SASRec's item vectors
    (minutes)."""
    behaviour_size: int = Field(default=64, ge=1)
    """Length of the behaviour vectors."""
    behaviour_epochs: int = Field(default=40, ge=1)
    """Of SASRec, all of them: to choose the best one would look at valid targets."""
    align: AlignConfig = Field(default_factory=AlignConfig)
    """Training of the head where fusion is ``align``."""

    @property
    def needs_behaviour(self) -> bool:
        """Whether vectors depend on train interactions."""
        return self.fusion == "align" or (self.fusion == "concat" and self.behaviour_weight > 0)

    @model_validator(mode="after")
    def _consistent(self) -> EmbeddingConfig:
        if self.source == "file" and self.path is None:
            raise ValueError("source 'file' needs a path")
        if self.path is not None and self.source != "file":
            raise ValueError(f"a path is given, but source is {self.source!r}; set source: file")
        if self.path is not None and self.path.endswith(".npy") and self.ids is None:
            raise ValueError("a .npy has no item ids: name a file with them in ids")
        if self.source == "lm" and self.encoder == _MINILM:
            raise ValueError(
                "source 'lm' needs a causal language model: encoder: asset:smollm2-135m-instruct, or yours"
            )
        if self.fusion == "none" and self.behaviour_weight > 0:
            raise ValueError(f"fusion 'none' has no behaviour_weight ({self.behaviour_weight}); set fusion: concat")
        if self.behaviour == "sasrec" and self.behaviour_size % 2:
            raise ValueError(f"SASRec has two heads: behaviour_size {self.behaviour_size} must be even")
        return self


@dataclass(frozen=True)
class Embeddings:
    """Vectors in the order of the item ids that were asked for."""

    vectors: np.ndarray
    """(n_items, dim) float32, finite, no zero row."""
    notes: tuple[str, ...] = ()
    """What people should know: vectors of unknown items left out, texts cut, items without behaviour."""
    head: AlignmentHead | None = None
    """What ``fusion: align`` learned; new items need it (`embed_new_items`)."""


def embed_items(
    config: EmbeddingConfig,
    item_ids: Sequence[str],
    texts: Sequence[str],
    behaviour: np.ndarray | None = None,
    *,
    cache: Path | None = None,
) -> Embeddings:
    """Vectors for `item_ids` as `config` says.

    Args:
        config: source and fusion.
        item_ids: (n_items,) row order of the result.
        texts: (n_items,) what the encoder reads; unused for source ``file``.
        behaviour: (n_items, any size) rows in the order of `item_ids`, zero for items without train events
            (`llmrec.sid_vocab.behaviour_vectors`); needed where ``config.needs_behaviour``, unused otherwise.
        cache: folder where text vectors are kept, such as `llmrec.sid_vocab.vector_cache.default_cache`; a text is
            encoded once per encoder, and a run that was killed goes on where it stopped.

    Raises:
        DataError: vectors or texts that cannot be used, with every problem.
        InputError: an encoder or a file that cannot be read, or behaviour that is missing.
    """
    if config.needs_behaviour and behaviour is None:
        raise InputError(
            f"fusion is {config.fusion!r} with behaviour_weight {config.behaviour_weight}, but there are no behaviour "
            "vectors.",
            hint="set fusion=none behaviour_weight=0, or build the table together with interactions",
        )
    content = _content(config, item_ids, texts, cache)
    require_columns(content.vectors)
    if not config.needs_behaviour or behaviour is None:
        return content
    if config.fusion == "concat":
        fused = concat(content.vectors, behaviour, config.behaviour_weight)
        return Embeddings(fused.vectors, (*content.notes, *fused.notes))
    fitted = fit_alignment(content.vectors, behaviour, config.align)
    fused = align(fitted.head, content.vectors, behaviour, config.behaviour_weight)
    return Embeddings(fused.vectors, (*content.notes, fitted.note, *fused.notes), fitted.head)


def embed_new_items(
    config: EmbeddingConfig,
    item_ids: Sequence[str],
    texts: Sequence[str],
    dim: int,
    head: AlignmentHead | None = None,
    *,
    cache: Path | None = None,
) -> Embeddings:
    """Vectors of items that came after the fit and have no train behaviour, in the space of the old ones.

    Args:
        config: what the old items were embedded with.
        item_ids: (n_items,) row order of the result.
        texts: (n_items,) what the encoder reads.
        dim: width of the codebooks; what the text leaves of it belonged to behaviour and is zero.
        head: of the fit (`Embeddings.head`), where fusion is ``align``.
        cache: as in `embed_items`.

    Raises:
        DataError: vectors or texts that cannot be used, with every problem.
        InputError: the head is missing, or the vectors are wider than the codebooks.
    """
    content = _content(config, item_ids, texts, cache)
    vectors = content.vectors
    if config.fusion == "align":
        if head is None:
            raise InputError(
                "These SIDs were fitted with fusion 'align', but the alignment head is missing.",
                hint="keep the head with the table, or fit the SIDs again",
            )
        return Embeddings(head.text(vectors), content.notes, head)
    width = vectors.shape[1]
    if width > dim or (width < dim and not config.needs_behaviour):
        raise InputError(
            f"The codebooks were fitted to vectors of {dim} numbers, these have {width}.",
            hint="embed with the same encoder and behaviour settings as at the fit",
        )
    if config.needs_behaviour:
        vectors = concat(vectors, np.zeros((len(vectors), dim - width), np.float32), config.behaviour_weight).vectors
    return Embeddings(vectors, content.notes)


def make_encoder(config: EmbeddingConfig) -> TextEncoder:
    """The loaded encoder of the sources ``text`` and ``lm``. Raises InputError where it cannot be loaded."""
    if config.source == "lm":
        from llmrec.sid_vocab.pooled_lm import PooledLM

        return PooledLM(config.encoder, config.pooling, config.max_length)
    return SentenceEncoder(config.encoder)


def require_columns(vectors: np.ndarray) -> None:
    """Raise DataError where some columns of (n, dim) vectors are the same in all rows while others differ.

    Such a column tells no two items apart and shrinks the others when rows are scaled to one length; it is usually a
    count, a year or a flag that was not meant to be part of the vector.
    """
    constant = (vectors == vectors[:1]).all(axis=0)
    if constant.any() and not constant.all():
        first = ", ".join(map(str, np.flatnonzero(constant)[:3]))
        raise DataError(
            "The vectors cannot be used:",
            [f"{int(constant.sum())} of {len(constant)} columns are the same for all {len(vectors)} items: {first}"],
            hint="leave these columns out (columns count from 0)",
        )


def _content(config: EmbeddingConfig, item_ids: Sequence[str], texts: Sequence[str], cache: Path | None) -> Embeddings:
    if config.source == "file":
        read = read_vectors(str(config.path), item_ids, config.ids, config.id_column, config.vector_column)
        return Embeddings(read.vectors, read.notes)
    made = embed_texts(make_encoder(config), item_ids, texts, config.batch_size, cache=cache)
    return Embeddings(made.vectors, made.notes)
