"""What turns texts into vectors: the seam, and sentence-transformers models behind it.

An encoder names its content by a hash, so that vectors kept on disk belong to exactly one encoder
(`llmrec.sid_vocab.vector_cache`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from llmrec.data.assets import resolve_asset, sha256_file
from llmrec.errors import InputError


@dataclass(frozen=True)
class Encoded:
    """Vectors of some texts, in their order."""

    vectors: np.ndarray
    """(n, dim) float32 unit rows."""
    cut: np.ndarray
    """(n,) bool: texts longer than the encoder reads."""


class TextEncoder(Protocol):
    """A loaded encoder."""

    reference: str
    """What people call it."""

    def identity(self) -> str:
        """SHA-256 over everything that decides a vector: weights, tokenizer, settings."""
        ...

    def encode(self, texts: Sequence[str]) -> Encoded:
        """Encode one batch; a text's vector does not depend on the others, up to rounding."""
        ...


class SentenceEncoder:
    """A sentence-transformers model.

    Args:
        reference: a local folder, a hub id or a packaged asset.

    Raises:
        InputError: the encoder cannot be loaded.
        EnvironmentProblem: it cannot be fetched.
    """

    def __init__(self, reference: str) -> None:
        self._resolved = resolve_asset(reference, kind="encoder")
        self.reference = reference
        from sentence_transformers import SentenceTransformer

        try:
            self.model: Any = SentenceTransformer(str(self._resolved), trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise InputError(
                f"The text encoder {reference!r} cannot be loaded: {error}",
                hint="give a sentence-transformers folder, a hub id (needs the network), or asset:all-minilm-l6-v2",
            ) from error

    def identity(self) -> str:
        """SHA-256 of the folder, or for a hub id of the weights and the description of the modules."""
        if isinstance(self._resolved, Path):
            content = folder_sha256(self._resolved)
        else:
            content = module_sha256(self.model, f"{self.reference} {self.model!r}")
        return hashlib.sha256(f"sentence-transformers {content}".encode()).hexdigest()

    def encode(self, texts: Sequence[str]) -> Encoded:
        """Unit vectors of one batch."""
        vectors = self.model.encode(
            list(texts),
            batch_size=len(texts),
            normalize_embeddings=True,
            convert_to_numpy=True,
            show_progress_bar=False,
        )
        return Encoded(np.asarray(vectors, dtype=np.float32), self._cut(texts))

    def _cut(self, texts: Sequence[str]) -> np.ndarray:
        from transformers import PreTrainedTokenizerBase

        tokenizer, longest = self.model.tokenizer, self.model.max_seq_length
        if not isinstance(tokenizer, PreTrainedTokenizerBase) or longest is None:
            return np.zeros(len(texts), bool)  # a static embedding reads texts of any length
        rows = tokenizer(list(texts), truncation=False, verbose=False)["input_ids"]
        return np.array([len(row) > longest for row in rows])


def folder_sha256(folder: Path) -> str:
    """SHA-256 over the names and contents of all files below `folder` that are not hidden."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and not any(part.startswith(".") for part in name.parts):
            digest.update(f"{name.as_posix()} {sha256_file(path)}\n".encode())
    return digest.hexdigest()


def module_sha256(module: Any, description: str) -> str:
    """SHA-256 over `description` and the names, shapes and bytes of a torch module's weights, in name order."""
    import torch

    digest = hashlib.sha256(description.encode())
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
