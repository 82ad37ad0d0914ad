"""The card of a checkpoint, ``llmrec.json``: what the folder is, where it comes from, and the hash of every file in it.

The card holds no time and no machine, so that equal content gives equal cards: `fingerprint` names a checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from llmrec.config import Config
from llmrec.data.assets import sha256_file
from llmrec.decode.result import Normalise
from llmrec.errors import InputError, MismatchError
from llmrec.quantized import Quantize

FORMAT_VERSION = 1
CARD_FILE = "llmrec.json"
COPY_AGAIN = "copy the folder again as a whole, or write the checkpoint anew"

Kind = Literal["model", "adapter"]
"""A full SID-extended causal LM, or PEFT adapter files on a base that the card names."""

Flow = Literal["extended_base", "adapter"]
"""Where SID rows live. ``extended_base``: in a full model, frozen from then on under plain LoRA. ``adapter``: in one
adapter, LoRA and SID rows, on the untouched base."""

# What loaders of models, tokenizers, adapters and templates pick up: an unlisted file would change what is loaded.
_READ_BY_LOADERS = (
    "*.safetensors", "*.safetensors.index.json", "*.bin", "*.pt", "*.py", "*.jinja", "*.model", "templates/*",
    "config.json", "generation_config.json", "adapter_config.json", "tokenizer*.json", "vocab.json", "merges.txt",
    "special_tokens_map.json", "added_tokens.json", "chat_template*", "additional_chat_templates/*",
)  # fmt: skip


class BaseCard(Config):
    """The model that a checkpoint was made from; an adapter needs it at every load."""

    reference: str
    """``asset:NAME``, a hub id, an absolute path, or ``./`` and ``../`` paths relative to the checkpoint's folder."""
    weights_sha256: str
    """`llmrec.models.weights_sha256` of its folder."""
    quantize: Quantize | None = Field(default=None, exclude_if=lambda value: value is None)
    """How these weights were packed while an adapter learned on them; further training packs them again, serving does
    not."""


class DataCard(Config):
    """The data that a checkpoint was trained on."""

    name: str
    loo_sha256: str | None = None
    """Check value of the leave-one-out split (`Split.loo_sha256`); None where nothing was split."""
    fingerprint: str
    """Hash of the data as read."""


class ServingCard(Config):
    """How to ask the checkpoint; every value may be overridden at a call."""

    window: int = Field(50, ge=1)
    """Most recent items in the prompt."""
    window_step: int = Field(default=1, ge=1)
    """A full window starts at a multiple of this many items (see `Renderer.sequence`): what a prefix cache needs."""
    max_length: int = Field(1024, ge=1)
    """Tokens of the prompt; the oldest items give way."""
    normalise: Normalise = "vocab"
    """Over what scores are normalised, see `llmrec.decode.result.Normalise`."""
    num_beams: int = Field(20, ge=1)
    """Width of the beam search."""


class LineageEntry(Config):
    """One stage on the way to a checkpoint."""

    stage: str
    """Its name, such as ``cpt``."""
    config_hash: str
    """Hash of its resolved settings."""
    parent: str | None = None
    """Fingerprint of the checkpoint that it started from; None for a base model."""


class FingerprintsCard(Config):
    """Of the SID table at training time."""

    vocabulary: str
    rows: str


class CatalogCard(Config):
    """The column roles of ``catalog.parquet``."""

    text_fields: tuple[str, ...]
    attributes: tuple[str, ...]


class Card(Config):
    """The content of ``llmrec.json``."""

    format_version: int = FORMAT_VERSION
    llmrec_version: str
    kind: Kind
    flow: Flow
    lineage: tuple[LineageEntry, ...] = Field(min_length=1)
    """Oldest stage first; the last one wrote this checkpoint."""
    base: BaseCard | None
    """None for a model that was made from a config."""
    vocabulary_rows: int
    """Rows of the embedding matrix, SID tokens and padding included."""
    fingerprints: FingerprintsCard
    templates_sha256: str
    """`TemplateSet.hash`."""
    catalog: CatalogCard
    data: DataCard
    serving: ServingCard
    recipe: dict[str, Any]
    """The resolved recipe."""
    files: dict[str, str]
    """SHA-256 of every file of the folder but this one, by path with forward slashes."""

    @property
    def stage(self) -> str:
        """The stage that wrote this checkpoint."""
        return self.lineage[-1].stage

    @property
    def tasks(self) -> frozenset[str]:
        """The tasks that the stages on its way taught, by its recipe."""
        aligned = self.recipe.get("align")
        sections = {**self.recipe, **(aligned if isinstance(aligned, dict) else {})}
        stages = (sections.get(entry.stage) for entry in self.lineage)
        return frozenset(task for stage in stages if isinstance(stage, dict) for task in stage.get("tasks") or ())

    def write(self, folder: Path) -> None:
        """Write ``llmrec.json``, last of all files."""
        text = json.dumps(self.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n"
        (folder / CARD_FILE).write_text(text, encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Card:
        """Read the card of `folder`; the other files are `verify_files`' matter.

        Raises:
            InputError: no checkpoint, an unreadable card, or one of another format.
        """
        try:
            values = json.loads((folder / CARD_FILE).read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            raise InputError(
                f"{folder} is no llmrec checkpoint: {CARD_FILE} is missing",
                hint="give the folder that a training stage wrote"
                + ("" if folder.exists() else "; this path does not exist"),
            ) from None
        except ValueError as error:
            raise InputError(f"{folder / CARD_FILE} cannot be read: {error}", hint=COPY_AGAIN) from error
        if not isinstance(values, dict) or values.get("format_version") != FORMAT_VERSION:
            found = values.get("format_version") if isinstance(values, dict) else None
            raise InputError(
                f"{folder} has checkpoint format {found}; this llmrec reads format {FORMAT_VERSION}",
                hint="read it with the version of llmrec that wrote it",
            )
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            lines = [f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()]
            raise InputError(f"{folder / CARD_FILE} is damaged: {'; '.join(lines)}", hint=COPY_AGAIN) from error


def fingerprint(folder: Path) -> str:
    """SHA-256 of the card, and through its file hashes of the whole checkpoint."""
    return sha256_file(folder / CARD_FILE)


def hash_files(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below `folder` but the card, by relative path, in path order."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    names = [path.relative_to(folder).as_posix() for path in paths]
    return {name: sha256_file(folder / name) for name in names if name != CARD_FILE}


def verify_files(folder: Path, card: Card) -> None:
    """Compare every file with the card; weights too, at about a second per gigabyte.

    Files that no loader reads (a README, notes, plots) may lie beside them.

    Raises:
        MismatchError: with every file that is missing, changed or unlisted.
    """
    problems = list(_file_problems(folder, card))
    if problems:
        shown = "\n".join(f"  - {line}" for line in problems[:12])
        more = f"\n  - and {len(problems) - 12} more" if len(problems) > 12 else ""
        raise MismatchError(f"The checkpoint {folder} is not as it was written:\n{shown}{more}", hint=COPY_AGAIN)


def _file_problems(folder: Path, card: Card) -> Iterator[str]:
    for name, expected in card.files.items():
        path = folder / name
        if not path.is_file():
            yield f"{name} is missing"
        elif (found := sha256_file(path)) != expected:
            yield f"{name} has sha256 {found[:16]}…, the card says {expected[:16]}…"
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name not in card.files and any(fnmatch(name, pattern) for pattern in _READ_BY_LOADERS):
            yield f"{name} is not listed in the card and would be read"
