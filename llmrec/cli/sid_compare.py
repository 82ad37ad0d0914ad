"""What `llmrec sid compare` reads from its words: tokenizers, overrides that hold for all of them, proxy settings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import Field

from llmrec.cli.sid_fit import load_sid_recipe
from llmrec.config import Config, apply_overrides, build_config, read_yaml
from llmrec.errors import ConfigError, InputError
from llmrec.recipes import find
from llmrec.sid_compare.config import Arm, ProxyConfig

_PROXY = "proxy."


class Variant(Config):
    """A file that names a recipe and what it changes in it, so that two arms show what they differ in."""

    recipe: str
    """As on the command line."""
    overrides: tuple[str, ...] = Field(min_length=1)
    """``key=value`` words, such as ``sid.quantizer.codebook_size=64``."""


def read_arms(words: Sequence[str]) -> tuple[list[Arm], list[str]]:
    """The tokenizers that `words` name, and the words that begin with ``proxy.``, that prefix taken off.

    Every other ``key=value`` holds for all recipes and comes after a variant's own. An arm is called like its file.

    Raises:
        InputError: no recipe, one that is not there, or two files of the same name.
        ConfigError: unknown keys or wrong values, those of all recipes together.
    """
    overrides = [word for word in words if "=" in word and not Path(word).exists()]
    recipes = [word for word in words if word not in overrides]
    if not recipes:
        raise InputError("No recipe is named.", hint="llmrec sid compare sid_vocab/text.yaml sid_vocab/behaviour.yaml")
    names = [find(recipe).stem for recipe in recipes]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise InputError(
            f"Two recipes are called {twice[0]!r}: {', '.join(map(str, recipes))}", hint="give each file its own name"
        )
    shared = [word for word in overrides if not word.startswith(_PROXY)]
    arms, problems = [], []
    for name, recipe in zip(names, recipes, strict=True):
        try:
            arms.append(_read_arm(name, recipe, shared))
        except ConfigError as error:
            problems += [f"{name}: {problem}" for problem in error.problems]
    if problems:
        hint = "`llmrec recipes cat NAME` prints a recipe that works; a fragment of sid_vocab/ needs data.path=FOLDER"
        raise ConfigError("These recipes cannot be used:", problems, hint=hint)
    return arms, [word.removeprefix(_PROXY) for word in overrides if word.startswith(_PROXY)]


def proxy_config(words: Sequence[str], flags: Mapping[str, object]) -> ProxyConfig:
    """The proxy's settings: defaults, then `words`, then the `flags` that are given.

    Raises:
        ConfigError: unknown keys or wrong values, all of them.
    """
    values = apply_overrides(ProxyConfig().model_dump(mode="json"), words)
    return build_config(
        ProxyConfig, {**values, **{name: value for name, value in flags.items() if value}}, source="proxy"
    )


def parse_seeds(text: str | None) -> tuple[int, ...]:
    """``0,1,2``. Raises InputError for anything else."""
    if text is None:
        return ()
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise InputError(f"--seeds {text!r} is no list of whole numbers.", hint="write --seeds 0,1,2") from error


def _read_arm(name: str, recipe: str, shared: Sequence[str]) -> Arm:
    path = find(recipe)
    values = read_yaml(path)
    own: tuple[str, ...] = ()
    if isinstance(values, Mapping) and "recipe" in values:
        variant = build_config(Variant, values, source=path.name)
        recipe, own = variant.recipe, variant.overrides
    config = load_sid_recipe(recipe, [*own, *shared])
    return Arm(name, config.data, config.sid)
