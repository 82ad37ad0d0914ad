"""What ``bench serve`` serves: a small random Llama over a few thousand items, in two versions of its catalogue."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from llmrec import recipes
from llmrec.checkpoint import Checkpoint, DataCard, LineageEntry, ServingCard
from llmrec.data.catalog import Catalog
from llmrec.prompts.templates import TemplateSet
from llmrec.sid_vocab.extend import extend_vocabulary
from llmrec.sid_vocab.table import ACTIVE, RETIRED, SIDTable

NUM_ITEMS, ADDED, GONE = 3000, 100, 200
CODEBOOK_SIZE, NUM_LEVELS = 64, 4
_ADJECTIVES = ("Silent", "Golden", "Crimson", "Frozen", "Hidden", "Electric", "Lonely", "Ancient", "Broken", "Distant")
_NOUNS = ("River", "Garden", "Empire", "Harbor", "Station", "Forest", "Mirror", "Winter", "Letter", "Island")
_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
)


@dataclass(frozen=True)
class World:
    """Folders that a server can be started on and swapped to."""

    checkpoint: Path
    newer: Path
    """A descendant of the checkpoint's table, with items added and retired."""


def make_world(folder: Path) -> World:
    """Write a checkpoint of about 3 million random weights, and a newer table for it."""
    rng = np.random.default_rng(0)
    item_ids = tuple(str(number) for number in range(NUM_ITEMS + ADDED))
    paths = rng.choice(CODEBOOK_SIZE**NUM_LEVELS, NUM_ITEMS + ADDED, replace=False)
    codes = np.stack([paths // CODEBOOK_SIZE**level % CODEBOOK_SIZE for level in range(NUM_LEVELS)], axis=1)
    catalog = _catalog(item_ids)
    tokenizer = _tokenizer(catalog)
    model = _model(len(tokenizer))
    bare = SIDTable(item_ids[:NUM_ITEMS], codes[:NUM_ITEMS], (CODEBOOK_SIZE,) * NUM_LEVELS)
    table = extend_vocabulary(model, tokenizer, bare, init="random", seed=0).table
    _sharpen(model)
    Checkpoint.write(
        folder / "served",
        model=model,
        tokenizer=tokenizer,
        table=table,
        templates=TemplateSet.load(recipes.folder("prompts")),
        catalog=catalog,
        flow="extended_base",
        base=None,
        lineage=[LineageEntry(stage="random", config_hash="")],
        recipe={},
        data=DataCard(name="synthetic", fingerprint=""),
        serving=ServingCard(window=20, max_length=256, num_beams=20),
    )
    status = np.full(NUM_ITEMS + ADDED, ACTIVE, np.uint8)
    status[rng.choice(NUM_ITEMS, GONE, replace=False)] = RETIRED
    newer = replace(table, item_ids=item_ids, codes=codes, status=status, parent=table.rows_fingerprint)
    newer.save(folder / "newer")
    return World(folder / "served", folder / "newer")


def _catalog(item_ids: tuple[str, ...]) -> Catalog:
    numbers = np.arange(len(item_ids))
    titles = [f"The {_ADJECTIVES[i % 10]} {_NOUNS[i // 10 % 10]} {i // 100 + 1}" for i in numbers.tolist()]
    kinds = [["film"] if i % 3 else ["film", "short"] for i in numbers.tolist()]
    return Catalog(pl.DataFrame({"item_id": item_ids, "title": titles, "kinds": kinds}), ("title",), ("kinds",))


def _tokenizer(catalog: Catalog) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    raw.train_from_iterator(
        [*catalog.frame["title"], "user assistant system which item comes next"] * 2,
        trainers.BpeTrainer(
            vocab_size=1000,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token=special[2], pad_token=special[0], bos_token=special[1]
    )
    tokenizer.chat_template = _TEMPLATE
    return tokenizer


def _model(vocabulary: int) -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=vocabulary,
                hidden_size=192,
                intermediate_size=512,
                num_hidden_layers=4,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=1024,
                tie_word_embeddings=True,
            )
        ).eval()


def _sharpen(model: Any) -> None:
    """Scores of different items far enough apart that a sum in another order does not change their ranks."""
    import torch

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.mul_(3)
