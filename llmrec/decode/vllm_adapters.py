"""Which LoRA adapters vLLM can serve, read from their files before vLLM sees them.

vLLM refuses an adapter with trained token rows, `modules_to_save` or DoRA when it loads it, and the refusal can leave
the next ``generate`` waiting forever. So every adapter is read here first: plain LoRA on linear layers of this base
passes, and anything else is refused by name. A setting that is not known here counts as unservable: a PEFT of next year
may change what an adapter means.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmrec.errors import InputError, ProblemsError

# LoRAConfig fields of PEFT 0.21 that do not change what a saved adapter computes, or that vLLM 0.32 follows
# (vllm/lora/peft_helper.py).
_HARMLESS = frozenset(
    {
        *("task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"),
        *("inference_mode", "r", "lora_alpha", "lora_dropout", "use_rslora", "rank_pattern", "alpha_pattern"),
        *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
        *("megatron_config", "megatron_core", "loftq_config", "eva_config", "qalora_group_size"),
    }
)
# What these fields hold in a plain adapter, apart from nothing at all.
_PLAIN = {"bias": ("none",), "init_lora_weights": (True, "gaussian", "eva", "orthogonal")}
_WHY = {
    "trainable_token_indices": "it trains rows of the vocabulary",
    "modules_to_save": "it replaces whole modules",
    "use_dora": "it is DoRA",
    "init_lora_weights": "its initialisation changed the base's weights",
}
_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks that vLLM makes room for (`LoRAConfig.max_lora_rank`)."""
_MERGE = "merge such an adapter into its base (Checkpoint.export_merged) and serve the merged model"


def check_adapters(base: Path, adapters: Mapping[str, Path]) -> int:
    """Make sure that vLLM can serve adapters.

    Args:
        base: folder of the full model in safetensors.
        adapters: PEFT folders by name.

    Returns:
        The rank to give vLLM as `max_lora_rank`.

    Raises:
        ProblemsError: some of them cannot be served; each is named with all its reasons.
    """
    problems: list[str] = []
    shapes = _shapes(base.glob("*.safetensors")) if adapters else {}
    rank = 0
    for name, folder in adapters.items():
        try:
            config = read_config(folder)
        except InputError as error:
            problems.append(f"{name}: {error.message}")
            continue
        reasons = _settings(config) or _weights(folder, shapes)
        problems += [f"{name} ({folder}): {reason}" for reason in reasons]
        if not reasons:
            rank = max(rank, int(config["r"]), *map(int, (config.get("rank_pattern") or {}).values()))
    if problems:
        raise ProblemsError("vLLM cannot serve these adapters:", problems, hint=_MERGE)
    return next(size for size in _RANKS if size >= rank)


def read_config(folder: Path) -> dict[str, Any]:
    """``adapter_config.json`` of a folder. Raises InputError where there is none that can be read."""
    path = folder / "adapter_config.json"
    if not path.is_file():
        raise InputError(f"{folder} holds no adapter: adapter_config.json is missing")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is no JSON: {error}") from error
    if not isinstance(config, dict):
        raise InputError(f"{path} holds no settings")
    return config


def _settings(config: Mapping[str, Any]) -> list[str]:
    """Why the settings of an adapter rule it out."""
    if config.get("peft_type") != "LORA":
        return [f"peft_type is {config.get('peft_type')!r}; vLLM serves LORA alone"]
    reasons = []
    for key, value in config.items():
        if key in _HARMLESS or not value or value in _PLAIN.get(key, ()):
            continue
        shown = json.dumps(value)
        shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
        reasons.append(f"{key}={shown}" + (f": {_WHY[key]}" if key in _WHY else ""))
    ranks = [config.get("r"), *(config.get("rank_pattern") or {}).values()]
    if not all(isinstance(rank, int) and 0 < rank <= _RANKS[-1] for rank in ranks):
        reasons.append(f"its ranks are {ranks}; vLLM takes 1 to {_RANKS[-1]}")
    return reasons


def _weights(folder: Path, base: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Why the weights of an adapter do not fit the base."""
    path = folder / "adapter_model.safetensors"
    if not path.is_file():
        return ["adapter_model.safetensors is missing (files of another kind are pickles and are not read)"]
    unknown, vocabulary, other = [], [], []
    for key, shape in _shapes([path]).items():
        module, _, part = key.removeprefix("base_model.model.").rpartition(".lora_")
        expected = base.get(f"{module}.weight", ())
        if not module or part not in ("A.weight", "B.weight"):
            vocabulary.append(key)
        elif module.endswith(("lm_head", "embed_tokens")):
            vocabulary.append(module)
        elif not expected:
            unknown.append(module)
        elif (shape[1] if part == "A.weight" else shape[0]) != expected[1 if part == "A.weight" else 0]:
            other.append(module)
    return [
        f"{text}: {found[0]}" + (f" and {len(found) - 1} more" if len(found) > 1 else "")
        for text, found in (
            ("it has weights that are no LoRA of a linear layer", vocabulary),
            ("it belongs to another base; this one lacks", unknown),
            ("it belongs to another base; shapes differ in", other),
        )
        if found
    ]


def _shapes(paths: Any) -> dict[str, tuple[int, ...]]:
    """Shapes of all tensors in safetensors files, from their headers alone."""
    from safetensors import safe_open

    shapes: dict[str, tuple[int, ...]] = {}
    for path in paths:
        with safe_open(path, framework="numpy") as file:
            shapes |= {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118 - no mapping
    return shapes
