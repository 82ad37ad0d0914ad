"""Text vectors on disk: kept by content, so never stale, and written in shards, so that a kill costs little.

A vector is found by two hashes: of the encoder (weights, tokenizer, settings) and of the text itself. Item ids and
their order play no part: an item list that changed finds the texts that stayed and encodes those that are new, and a
text that changed is a new text. A shard is written beside its place and renamed; one that is damaged all the same is
noticed by its checksum, counted, and its texts are encoded again.

    embeddings/<encoder>/about.json              for people
    embeddings/<encoder>/<keys>.safetensors      keys (n, 32), vectors (n, dim), cut (n,)
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llmrec.data.assets import cache_folder
from llmrec.errors import EnvironmentProblem, InputError
from llmrec.sid_vocab.text_encoder import Encoded

_KEY_BYTES = 32


def default_cache() -> Path:
    """``$LLMREC_CACHE/embeddings``, by default ``~/.cache/llmrec/embeddings``."""
    return cache_folder().parent / "embeddings"


def text_key(text: str) -> bytes:
    """SHA-256 of a text."""
    return hashlib.sha256(text.encode()).digest()


@dataclass(frozen=True)
class Found:
    """What a cache has of the texts that were asked for."""

    rows: np.ndarray
    """(k,) int64 places of the texts, each once."""
    encoded: Encoded
    """Their k vectors."""
    damaged: int
    """Shards that could not be used."""


class VectorCache:
    """Vectors of one encoder.

    Args:
        folder: where the vectors of all encoders are, such as `default_cache`.
        identity: of the encoder; hexadecimal.
        reference: what people call the encoder.
    """

    def __init__(self, folder: Path, identity: str, reference: str) -> None:
        self.folder = folder / identity[:32]
        self._about = {"encoder": reference, "identity": identity}

    def read(self, wanted: Mapping[bytes, int]) -> Found:
        """The vectors of the texts in `wanted`, a mapping of `text_key` to place."""
        rows, vectors, cut = [np.empty(0, np.int64)], [], [np.empty(0, bool)]
        seen: set[int] = set()
        damaged = 0
        for path in sorted(self.folder.glob("*.safetensors")):
            shard = _read_shard(path)
            if shard is None:
                damaged += 1
                continue
            keys = shard["keys"].tobytes()
            places = [wanted.get(keys[at : at + _KEY_BYTES], -1) for at in range(0, len(keys), _KEY_BYTES)]
            here = [at for at, place in enumerate(places) if place >= 0 and place not in seen]
            seen.update(places[at] for at in here)
            rows.append(np.array([places[at] for at in here], dtype=np.int64))
            vectors.append(shard["vectors"][here])
            cut.append(shard["cut"][here].astype(bool))
        found = np.concatenate(vectors) if vectors else np.empty((0, 0), np.float32)
        return Found(np.concatenate(rows), Encoded(found, np.concatenate(cut)), damaged)

    def add(self, texts: Sequence[str], encoded: Encoded) -> None:
        """Keep the vectors of `texts` as one shard.

        Raises:
            EnvironmentProblem: the disk is full.
            InputError: the folder cannot be written.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import save_file

        keys = b"".join(text_key(text) for text in texts)
        tensors: dict[str, np.ndarray] = {
            "keys": np.frombuffer(keys, np.uint8).reshape(-1, _KEY_BYTES),
            "vectors": np.ascontiguousarray(encoded.vectors, np.float32),
            "cut": encoded.cut.astype(np.uint8),
        }
        target = self.folder / f"{hashlib.sha256(keys).hexdigest()[:32]}.safetensors"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".writing-", dir=self.folder) as work:
                made = Path(work) / "shard"
                save_file(tensors, made, metadata={"sha256": _checksum(tensors)})
                os.replace(made, target)
            about = self.folder / "about.json"
            if not about.exists():
                about.write_text(json.dumps(self._about, indent=2) + "\n", encoding="utf-8")
        except (OSError, SafetensorError) as error:
            full = "os error 28" in str(error) or (isinstance(error, OSError) and error.errno == errno.ENOSPC)
            if full:
                raise EnvironmentProblem(
                    f"the disk has no room for item vectors in {self.folder}",
                    hint="free some space or point LLMREC_CACHE to a larger disk; what was encoded so far is kept",
                ) from error
            raise InputError(
                f"Item vectors cannot be kept in {self.folder}: {error}", hint="point LLMREC_CACHE to another folder"
            ) from error


def _read_shard(path: Path) -> dict[str, np.ndarray] | None:
    """The tensors of a shard; None where it is cut short, was changed, or is no shard."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            if set(file.keys()) != {"keys", "vectors", "cut"}:
                return None
            tensors: dict[str, np.ndarray] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            expected = (file.metadata() or {}).get("sha256")
    except SafetensorError:
        return None
    return tensors if _checksum(tensors) == expected else None


def _checksum(tensors: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in ("keys", "vectors", "cut"):
        digest.update(f"{tensors[name].dtype} {tensors[name].shape}".encode())
        digest.update(np.ascontiguousarray(tensors[name]).data)
    return digest.hexdigest()
