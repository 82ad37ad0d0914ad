"""Tiny checkpoints of every kind, written as training writes them; weights are random, not trained."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from llmrec import recipes
from llmrec.checkpoint import BaseCard, Checkpoint, DataCard, Flow, LineageEntry, ServingCard, describe_base
from llmrec.data.catalog import Catalog
from llmrec.prompts.templates import TemplateSet
from llmrec.sid_vocab.adapter_rows import trainable_rows_config
from llmrec.sid_vocab.extend import extend_vocabulary
from llmrec.sid_vocab.table import SIDTable
from llmrec.testing.worlds import tiny_items, tiny_model, tiny_tokenizer


@dataclass(frozen=True)
class TinyParts:
    """What `Checkpoint.write` needs, but for the card's fields."""

    model: Any
    tokenizer: Any
    table: SIDTable
    catalog: Catalog
    templates: TemplateSet

    def write(
        self, folder: Path, *, flow: Flow = "extended_base", base: BaseCard | None = None, **changes: Any
    ) -> Checkpoint:
        """`Checkpoint.write` with plain card fields; `changes` replace parts or fields."""
        fields: dict[str, Any] = {
            "model": self.model,
            "tokenizer": self.tokenizer,
            "table": self.table,
            "catalog": self.catalog,
            "templates": self.templates,
            "lineage": [LineageEntry(stage="cpt", config_hash="c0ffee")],
            "recipe": {"seed": 0},
            "data": DataCard(name="tiny", fingerprint="da7a"),
            "serving": ServingCard(window=8, max_length=64, num_beams=10),
        }
        return Checkpoint.write(folder, flow=flow, base=base, **{**fields, **changes})


def tiny_catalog(count: int = 60) -> Catalog:
    """`tiny_items` as a catalogue with the attributes genres and year."""
    frame = pl.DataFrame(tiny_items(count)).with_columns(pl.col("year").cast(pl.String))
    return Catalog(frame, ("title",), ("genres", "year"))


def tiny_table(count: int = 60, *, seed: int = 0) -> SIDTable:
    """Two quantised levels of 6 and 5 codes (genre first) and a suffix of 4, two of them spare for 60 items."""
    rng = np.random.default_rng(seed)
    codes = np.array([[i % 6, (i // 6) % 5, i // 30] for i in range(count)])
    codebooks = (rng.normal(size=(6, 3)), rng.normal(size=(5, 3)))
    ids = tuple(item["item_id"] for item in tiny_items(count))
    return SIDTable(ids, codes, (6, 5, 4), has_suffix=True, codebooks=codebooks)


def tiny_parts(*, tied: bool = True, seed: int = 0, head_dim: int = 8) -> TinyParts:
    """An extended tiny Llama with its table, catalogue and the shipped templates; vLLM wants heads of 32 on a CPU."""
    import torch

    tokenizer = tiny_tokenizer()
    model = tiny_model(tokenizer, tied=tied, seed=seed, head_dim=head_dim)
    extension = extend_vocabulary(model, tokenizer, tiny_table(), init="random", seed=seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)  # so that scores of different items are far enough apart to be compared
    templates = TemplateSet.load(recipes.folder("prompts"))
    return TinyParts(model, tokenizer, extension.table, tiny_catalog(), templates)


def tiny_base(folder: Path, *, tied: bool = True, seed: int = 0) -> Path:
    """A base model without SIDs, as it would come from a hub."""
    tokenizer = tiny_tokenizer()
    tiny_model(tokenizer, tied=tied, seed=seed).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def tiny_lora(parts: TinyParts, *, rows: bool = False, seed: int = 0) -> Any:
    """A PeftModel on a copy of `parts.model` with random LoRA weights; with `rows`, random SID rows too."""
    import copy

    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    model = copy.deepcopy(parts.model)
    trained = trainable_rows_config(model, parts.table) if rows else None
    config = LoraConfig(
        r=4,
        target_modules="all-linear",
        init_lora_weights=False,
        trainable_token_indices=trained,
        task_type="CAUSAL_LM",
    )
    wrapped = get_peft_model(model, config).eval()
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "trainable_tokens_delta" in name:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return wrapped


def tiny_adapter(folder: Path, base: Path, *, seed: int = 0) -> tuple[Checkpoint, Any]:
    """Flow B: an adapter with SID rows on the untouched `base` (from `tiny_base`); also gives the model in memory."""
    from llmrec.models import load_base

    model, tokenizer = load_base(base, dtype="float32")
    extension = extend_vocabulary(model, tokenizer, tiny_table(), init="random", seed=seed, pad_to_multiple=64)
    parts = TinyParts(model, tokenizer, extension.table, tiny_catalog(), TemplateSet.load(recipes.folder("prompts")))
    wrapped = tiny_lora(parts, rows=True, seed=seed)
    return parts.write(folder, model=wrapped, flow="adapter", base=describe_base(base)), wrapped
