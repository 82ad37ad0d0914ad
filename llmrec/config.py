"""Strict typed configuration: unknown keys fail with the nearest known one, and all mistakes come together.

A recipe is a YAML mapping; overrides are dotted ``key=value`` words whose values are YAML
(``cpt.learning_rate=1e-3 data.path=my-shop``). `load_config` turns both into one pydantic object.
"""

from __future__ import annotations

import difflib
import re
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from llmrec.errors import ConfigError, InputError


class Config(BaseModel):
    """Base of every configuration: unknown keys are errors, values are frozen, docstrings describe fields."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


ConfigT = TypeVar("ConfigT", bound=Config)


class _RecipeLoader(yaml.SafeLoader):
    """YAML 1.2 floats (``1e-3`` is a number, as everybody who writes a learning rate expects), no key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Refuse a repeated key: PyYAML would silently keep the last one."""
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"{key.value!r} is given twice", problem_mark=key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_RecipeLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*)(\.\d*)?[eE][-+]?\d+$"),
    list("-+0123456789"),
)


def parse_yaml(text: str, *, source: str) -> Any:
    """Parse YAML without constructing arbitrary objects.

    Raises:
        InputError: the text is not YAML; the message gives `source`, line and column.
    """
    try:
        return yaml.load(text, Loader=_RecipeLoader)  # noqa: S506 - a SafeLoader subclass
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"{source}:{mark.line + 1}:{mark.column + 1}" if mark else source
        raise InputError(f"{place} is not valid YAML: {error.problem}", hint="check indentation and quotes") from error
    except yaml.YAMLError as error:  # characters that YAML does not allow
        raise InputError(f"{source} is not valid YAML: {error}", hint="is it a text file?") from error


def apply_overrides(recipe: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return a copy of `recipe` with dotted ``key=value`` words applied, left to right.

    Raises:
        ConfigError: a word has no ``=`` or walks through a value that is not a mapping.
    """
    result: dict[str, Any] = _copy(recipe)
    problems: list[str] = []
    for word in overrides:
        key, equals, value = word.partition("=")
        if not equals or not all(part.strip() for part in key.split(".")):
            problems.append(f"{word!r} is not of the form key=value")
            continue
        node = result
        *parents, leaf = key.strip().split(".")
        for parent in parents:
            child = node.get(parent)
            if child is None:
                child = node[parent] = {}
            if not isinstance(child, dict):
                problems.append(f"{word!r}: {parent!r} holds the value {child!r}, not a group of settings")
                break
            node = child
        else:
            node[leaf] = parse_yaml(value, source=f"override {key}")
    if problems:
        raise ConfigError("These overrides cannot be applied:", problems)
    return result


def build_config(cls: type[ConfigT], values: Mapping[str, Any], *, source: str) -> ConfigT:
    """Validate `values` against `cls`.

    Raises:
        ConfigError: every unknown key (with the nearest known one) and every wrong value, together.
    """
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        problems = [_describe(cls, dict(item)) for item in error.errors()]
        raise ConfigError(
            f"{source} has {len(problems)} problem{'s' if len(problems) > 1 else ''}:",
            problems,
            hint="`llmrec recipes cat NAME` prints a recipe that works",
        ) from error


def read_yaml(path: Path) -> Any:
    """What a YAML file holds. Raises InputError for a file that cannot be read or is not YAML in UTF-8."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text (byte {error.start})", hint="save it as UTF-8") from error
    except OSError as error:
        raise InputError(
            f"{path} cannot be read: {error.strerror}", hint="`llmrec recipes ls` lists recipes"
        ) from error
    return parse_yaml(text, source=str(path))


def load_config(cls: type[ConfigT], path: Path, overrides: Sequence[str] = ()) -> ConfigT:
    """Read a YAML file, apply `overrides` and validate; see `read_yaml` and `build_config` for what raises."""
    values = read_yaml(path)
    if not isinstance(values, dict):
        kind = {"list": "a list", "NoneType": "nothing", "str": "text"}.get(type(values).__name__, "a single value")
        raise InputError(f"{path} holds {kind}, not a mapping of settings")
    return build_config(cls, apply_overrides(values, overrides), source=path.name)


def dump_yaml(config: Config) -> str:
    """The resolved configuration as YAML, every default included."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copy(child) for key, child in value.items()}
    return [_copy(child) for child in value] if isinstance(value, list) else value


def _describe(cls: type[Config], error: dict[str, Any]) -> str:
    place = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        known = _known_keys(cls, error["loc"][:-1])
        near = difflib.get_close_matches(str(error["loc"][-1]), known, n=1, cutoff=0.5)
        advice = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(sorted(known)) or 'nothing'}"
        return f"{place}: unknown key; {advice}"
    if error["type"] == "missing":
        return f"{place}: missing, and it has no default"
    given = error.get("input")
    if error["type"] == "value_error":  # of a validator of ours, whose message says all
        told = str(error["ctx"]["error"])
        return f"{place}: {told}" if place else told
    shown = "" if isinstance(given, dict | list) and len(given) > 3 else f" (given {given!r})"
    return f"{place}: {error['msg'][0].lower()}{error['msg'][1:]}{shown}"


def _known_keys(cls: type[Config], location: Sequence[Any]) -> list[str]:
    model: type[BaseModel] | None = cls
    for part in location:
        if model is None or part not in model.model_fields:
            return []
        model = _nested_model(model.model_fields[part].annotation)
    return list(model.model_fields) if model else []


def _nested_model(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if typing.get_origin(annotation) in (typing.Union, types.UnionType, typing.Annotated):
        for argument in typing.get_args(annotation):
            if found := _nested_model(argument):
                return found
    return None
