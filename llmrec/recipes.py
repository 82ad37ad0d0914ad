"""Find, list and copy the shipped recipes: pipelines, templates and settings that people edit.

They live in the root folders ``prompts/ sid_vocab/ train/ eval/`` of a checkout, and below ``llmrec/_recipes/`` in an
installed wheel. A pipeline (``train/pipelines/*.yaml``) is named by its stem, any other file by its path below the
root: ``quickstart``, ``prompts/title.jinja``.
"""

from __future__ import annotations

import dataclasses
import difflib
import shutil
from pathlib import Path
from typing import Literal

from llmrec.errors import InputError

Kind = Literal["prompts", "sid_vocab", "train", "eval"]
KINDS: tuple[Kind, ...] = ("prompts", "sid_vocab", "train", "eval")
SUFFIXES = (".yaml", ".yml", ".jinja", ".j2")
_PIPELINES = "train/pipelines/"


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A shipped recipe.

    Attributes:
        name: what `find` takes.
        path: where it is.
        summary: its first comment line, or "".
    """

    name: str
    path: Path
    summary: str

    @property
    def is_pipeline(self) -> bool:
        """Whether `llmrec run` takes it."""
        return "/" not in self.name


def root() -> Path:
    """The folder above the four recipe folders."""
    package = Path(__file__).resolve().parent
    shipped_in_wheel = package / "_recipes"
    return shipped_in_wheel if shipped_in_wheel.is_dir() else package.parent


def folder(kind: Kind) -> Path:
    """One of the four recipe folders."""
    return root() / kind


def shipped() -> tuple[Recipe, ...]:
    """All shipped recipes, pipelines first, each group by name."""
    top = root()
    files = [
        path
        for kind in KINDS
        for path in sorted((top / kind).rglob("*"))
        if path.suffix in SUFFIXES and path.is_file() and "results" not in path.relative_to(top).parts
    ]
    recipes = [Recipe(_name(path.relative_to(top)), path, _summary(path)) for path in files]
    return tuple(sorted(recipes, key=lambda recipe: (not recipe.is_pipeline, recipe.name)))


def find(name_or_path: str | Path) -> Path:
    """The file of a shipped name or of a path; an existing file wins over a name.

    Raises:
        InputError: neither; the nearest shipped name is suggested.
    """
    given = Path(name_or_path).expanduser()
    if given.is_file():
        return given
    names = {recipe.name: recipe.path for recipe in shipped()}
    wanted = given.as_posix()
    if wanted in names:
        return names[wanted]
    if given.is_dir():
        raise InputError(f"{name_or_path} is a folder, not a recipe", hint="give the YAML file in it")
    near = difflib.get_close_matches(wanted, names, n=1, cutoff=0.5)
    pipelines = ", ".join(name for name in names if "/" not in name)
    raise InputError(
        f"there is no recipe {str(name_or_path)!r}: no file of that path, no shipped recipe of that name",
        hint=f"did you mean {near[0]!r}?" if near else f"shipped: {pipelines or 'none'} (`llmrec recipes ls`)",
    )


def copy(name: str | Path, destination: Path) -> Path:
    """Copy a recipe for editing and return the new file.

    Args:
        name: as for `find`.
        destination: a new file, or an existing folder to put it into under its own file name.

    Raises:
        InputError: there is no such recipe, or the new file exists already.
    """
    source = find(name)
    target = destination / source.name if destination.is_dir() else destination
    if target.exists():
        raise InputError(f"{target} exists already and is not overwritten", hint="give another name or remove it")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    return target


def _name(relative: Path) -> str:
    text = relative.as_posix()
    return relative.stem if text.startswith(_PIPELINES) and text.count("/") == 2 else text


def _summary(path: Path) -> str:
    with path.open(encoding="utf-8") as file:
        first = file.readline().strip()
        if first.startswith("# llmrec run "):  # a pipeline opens with its command, then says what it is
            first = file.readline().strip()
    if path.suffix in (".jinja", ".j2"):
        return first.removeprefix("{#").removesuffix("#}").strip(" -") if first.startswith("{#") else ""
    return first.lstrip("# ") if first.startswith("#") else ""
