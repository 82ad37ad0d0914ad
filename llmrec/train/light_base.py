"""A base without its weights: tokenizer and architecture, enough to render rows and to count what training costs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from llmrec.errors import InputError
from llmrec.models import model_folder
from llmrec.train.base import BaseConfig, model_shape, train_tokenizer


@dataclass(frozen=True)
class LightBase:
    """What a plan or a preview needs of a base."""

    tokenizer: Any
    """The base's own tokenizer, not extended yet; the caller may extend it."""
    shape: Any
    """The transformers config of the text model."""


def light_base(config: BaseConfig, texts: Iterable[str]) -> LightBase:
    """Tokenizer and architecture of the base; of a hub model a few MB are downloaded where the cache lacks them.

    Args:
        config: the ``base:`` of a recipe.
        texts: of the catalogue's items, in order; a model from scratch learns its tokenizer from them.

    Raises:
        InputError: there is no such model, or transformers cannot read it.
        ConfigError: ``base.config`` cannot be used.
        EnvironmentProblem: it cannot be fetched.
    """
    if config.model is None:
        tokenizer = train_tokenizer(texts, config.tokenizer_size)
        return LightBase(tokenizer, model_shape(config, tokenizer))
    from transformers import AutoConfig, AutoTokenizer

    folder = model_folder(config.model, weights=False)
    try:
        shape = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise InputError(
            f"The base {config.model} cannot be read: {str(error).splitlines()[0]}",
            hint="it needs a config.json of a model that transformers knows, and a tokenizer.json",
        ) from error
    return LightBase(tokenizer, shape.get_text_config())
