"""The base of a run: a checkpoint that exists, or a small model made from a config with a tokenizer of its own.

A model from scratch knows no language, so it recommends and does not chat. It is what shows in minutes whether data,
SIDs and settings are sound, and what studies on small machines use.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

from pydantic import Field, model_validator

from llmrec.config import Config
from llmrec.errors import ConfigError
from llmrec.models import DTypeName, load_base
from llmrec.quantized import Quantize

_CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

_OURS = {"vocab_size", "bos_token_id", "eos_token_id", "pad_token_id", "dtype"}
"""Settings of a transformers config that follow from the tokenizer and from `BaseConfig.dtype`."""


class BaseConfig(Config):
    """The model that learns."""

    model: str | None = None
    """A local folder, a hub id or ``asset:NAME``."""
    config: dict[str, Any] | None = None
    """Instead of `model`: settings of transformers' config class, with its ``model_type`` (such as ``llama``)."""
    tokenizer_size: int = Field(2000, ge=300)
    """Entries of the byte-level BPE trained on the catalogue's texts, for a model from `config`."""
    dtype: DTypeName = "float32"
    """Of the weights while training. On a GPU the matrix products run in bfloat16 all the same (autocast)."""
    quantize: Quantize | None = Field(default=None, exclude_if=lambda value: value is None)
    """Pack the linear layers of `model` while an adapter learns on them (QLoRA; extra ``quantized``). What learned is
    served on the base in full or half precision."""

    @model_validator(mode="after")
    def _one_of_two(self) -> BaseConfig:
        if (self.model is None) == (self.config is None):
            raise ValueError("give either model (a checkpoint) or config (a model from scratch)")
        if self.config is not None and "model_type" not in self.config:
            raise ValueError("config needs a model_type, such as llama or qwen3")
        if given := sorted(_OURS & (self.config or {}).keys()):
            raise ValueError(f"config may not set {', '.join(given)}: the tokenizer and base.dtype decide")
        if self.quantize and self.model is None:
            raise ValueError("quantize packs a checkpoint (model); a model from config learns all of its weights")
        return self


def make_base(config: BaseConfig, texts: Iterable[str], seed: int) -> tuple[Any, Any]:
    """The model (evaluation mode, on the CPU but for packed weights) and its tokenizer.

    Args:
        texts: of the catalogue's items, in order; only a model from scratch learns its tokenizer from them.
        seed: of the weights of a model from scratch.

    Raises:
        ConfigError: transformers does not know the config or one of its settings, or the model they give cannot run.
        InputError, EnvironmentProblem: as `load_base`.
    """
    if config.model is not None:
        return load_base(config.model, dtype=config.dtype, quantize=config.quantize)
    import torch
    import transformers

    from llmrec.models import neutral_generation_config, torch_dtype

    tokenizer = train_tokenizer(texts, config.tokenizer_size)
    shape = model_shape(config, tokenizer)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = transformers.AutoModelForCausalLM.from_config(shape, dtype=torch_dtype(config.dtype)).eval()
        with torch.no_grad():
            model(input_ids=torch.zeros((1, 2), dtype=torch.long))  # some contradictions show in the first step only
    except (ValueError, TypeError, LookupError, RuntimeError) as error:
        raise _unusable(f"no language model can be made of it: {_first_line(error)}") from error
    model.generation_config = neutral_generation_config(model)
    return model, tokenizer


def model_shape(config: BaseConfig, tokenizer: Any) -> Any:
    """The transformers config of a model from scratch.

    Raises:
        ConfigError: transformers does not know the model type or one of its settings, or refuses a value.
    """
    import transformers
    from huggingface_hub.errors import StrictDataclassError

    settings = dict(config.config or {})
    model_type = settings.pop("model_type")
    try:
        known = transformers.AutoConfig.for_model(model_type)
    except ValueError as error:
        near = difflib.get_close_matches(str(model_type), transformers.CONFIG_MAPPING, n=1)
        advice = f"; did you mean {near[0]!r}?" if near else ""
        raise _unusable(f"transformers knows no model_type {model_type!r}{advice}") from error
    names = {*known.to_dict(), *known.attribute_map}
    if unknown := sorted(name for name in settings if name not in names):
        near_misses = {name: difflib.get_close_matches(name, names, n=1) for name in unknown}
        raise _unusable(
            *(
                f"{model_type} has no setting {name!r}" + (f"; did you mean {near[0]!r}?" if near else "")
                for name, near in near_misses.items()
            )
        )
    try:
        return transformers.AutoConfig.for_model(
            model_type,
            vocab_size=len(tokenizer),
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            **settings,
        )
    except (StrictDataclassError, ValueError, TypeError, LookupError) as error:
        # transformers puts the validator on a first line, then "ValueError: " and what is wrong
        last = str(error).splitlines()[-1].strip()
        raise _unusable(last.partition("Error: ")[2] or last) from error


def train_tokenizer(texts: Iterable[str], size: int) -> Any:
    """A byte-level BPE with ChatML markers, trained on `texts`; every text can be encoded, bytes being its alphabet."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    tokenizer.chat_template = _CHAT_TEMPLATE
    return tokenizer


def _unusable(*problems: str) -> ConfigError:
    return ConfigError("base.config cannot be used:", problems, hint="it takes what transformers' config class takes")


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
