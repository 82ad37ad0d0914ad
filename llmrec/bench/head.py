"""Benchmark ``head``: what it saves to normalise a SID over its level instead of the whole vocabulary, while training.

A step is forward, loss and backward over one batch of behaviour sequences, every SID a target. "level" and "vocab" are
the two heads of `llmrec.train.loss`; the third side is TRL's own loss, ``SFTTrainer.compute_loss`` with its fused head,
on the same model and batch. The two normalisations are different losses; that "vocab" equals TRL's is tested.

The optimizer is left out, being the same on all sides. Steps are measured in CPU time, which a busy neighbour on the
core moves less than wall time; peak memory counts the tensors that a step makes, gradients included, kernels' scratch
and weights not.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from llmrec.bench.memory import peak_bytes
from llmrec.bench.runner import Case
from llmrec.data.assets import cached, find_asset
from llmrec.sid_vocab.table import SIDTable

BASE = "smollm2-135m-instruct"
VOCABULARY = 49_152
"""Text tokens of the random Llama: as many as SmolLM2 has."""
NUM_LEVELS = 4
CODEBOOK_SIZE = 256
SEQUENCES = 4
PREFIX = 3
ITEMS = 25
"""Items of a sequence: with a prefix of 3 tokens that is 103 tokens."""


def cases(quick: bool) -> list[Case]:
    """A random Llama of 16 million parameters that learns in full, and SmolLM2-135M with LoRA and SID rows."""
    skip = "--quick leaves it out" if quick else ""
    if not skip and cached(find_asset(BASE)) is None:
        skip = f"asset:{BASE} is not in the cache: llmrec assets fetch {BASE}"
    return [
        Case("step", "ms CPU", _step(small_bench, "level"), _step(small_bench, "vocab")),
        Case("step, trl", "ms CPU", _step(small_bench, "level"), _step(small_bench, "trl")),
        Case("peak memory", "MB", _peak(small_bench, "level"), _peak(small_bench, "vocab")),
        Case("peak memory, trl", "MB", _peak(small_bench, "level"), _peak(small_bench, "trl")),
        Case("135m step", "ms CPU", _step(smollm_bench, "level"), _step(smollm_bench, "vocab"), skip),
        Case("135m step, trl", "ms CPU", _step(smollm_bench, "level"), _step(smollm_bench, "trl"), skip),
        Case("135m peak memory, trl", "MB", _peak(smollm_bench, "level"), _peak(smollm_bench, "trl"), skip),
    ]


@dataclass(frozen=True)
class HeadBench:
    """A model and the sides that are compared on it.

    Attributes:
        losses: by side, the mean loss of the batch with its graph.
    """

    model: Any
    losses: dict[str, Callable[[], Any]]

    def step(self, side: str) -> float:
        """Forward, loss and backward; returns the loss. No gradient is left behind."""
        loss = self.losses[side]()
        loss.backward()
        self.model.zero_grad(set_to_none=True)
        return float(loss.detach())


def make_bench(model: Any, table: SIDTable) -> HeadBench:
    """The three sides on `model`, which is extended by the tokens of `table` and set to learn."""
    import torch
    from datasets import Dataset
    from transformers import PreTrainedTokenizerFast
    from trl import SFTConfig, SFTTrainer

    from llmrec.train.loss import TargetHead

    assert table.token_ids is not None
    model.train()
    items = np.random.default_rng(0).integers(0, table.num_items, (SEQUENCES, ITEMS))
    sids = table.sid_token_ids()[items].reshape(SEQUENCES, -1)
    ids = torch.from_numpy(np.hstack([np.arange(5, 5 + PREFIX)[None].repeat(SEQUENCES, 0), sids]))
    labels = ids.clone()
    labels[:, :PREFIX] = -100
    levels = torch.full_like(ids, -1)
    levels[:, PREFIX:] = torch.arange(table.num_levels).repeat(ITEMS)

    def ours(head: TargetHead) -> Any:
        states = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
        parts = head(states, labels, levels)
        return parts.total / parts.tokens

    level, vocab = TargetHead(model, table, "level"), TargetHead(model, table, "vocab")
    with tempfile.TemporaryDirectory() as folder:
        trainer = SFTTrainer(
            model=model,
            args=SFTConfig(
                output_dir=folder,
                use_cpu=True,
                bf16=False,
                gradient_checkpointing=False,
                max_length=None,
                report_to="none",
                dataset_kwargs={"skip_prepare_dataset": True},
            ),
            train_dataset=Dataset.from_dict({"input_ids": ids.tolist(), "labels": labels.tolist()}),
            processing_class=PreTrainedTokenizerFast(tokenizer_object=_empty_tokenizer(), pad_token="<pad>"),
        )

    def theirs() -> Any:
        batch = {"input_ids": ids, "labels": labels, "attention_mask": torch.ones_like(ids)}
        return trainer.compute_loss(model, batch, num_items_in_batch=(labels != -100).sum())

    return HeadBench(model, {"level": lambda: ours(level), "vocab": lambda: ours(vocab), "trl": theirs})


def random_table(num_items: int, first_token: int) -> SIDTable:
    """Random SIDs of 4 levels, whose tokens follow each other from `first_token` on."""
    codes = np.random.default_rng(0).integers(0, CODEBOOK_SIZE, (num_items, NUM_LEVELS), dtype=np.int32)
    ids = first_token + np.arange(NUM_LEVELS * CODEBOOK_SIZE, dtype=np.int64)
    table = SIDTable(tuple(map(str, range(num_items))), codes, (CODEBOOK_SIZE,) * NUM_LEVELS)
    return table.with_token_ids(tuple(np.split(ids, NUM_LEVELS)))


@cache
def small_bench(vocabulary: int = VOCABULARY) -> HeadBench:
    """A random Llama of 4 layers and hidden size 256 with tied embeddings; all of it learns."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    table = random_table(1000, vocabulary)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=vocabulary + table.num_tokens,
                hidden_size=256,
                intermediate_size=768,
                num_hidden_layers=4,
                num_attention_heads=4,
                num_key_value_heads=4,
                tie_word_embeddings=True,
            )
        )
    return make_bench(model, table)


@cache
def smollm_bench() -> HeadBench:
    """SmolLM2-135M in float32 with LoRA on all linear layers and SID rows in the adapter."""
    from llmrec.models import load_base
    from llmrec.train.config import StageConfig
    from llmrec.train.cpt import add_adapter

    model: Any
    model, _ = load_base(f"asset:{BASE}", dtype="float32")
    table = random_table(1000, model.get_input_embeddings().weight.shape[0])
    model.resize_token_embeddings(len(model.get_input_embeddings().weight) + table.num_tokens, mean_resizing=False)
    return make_bench(add_adapter(model, table, StageConfig()), table)


def _empty_tokenizer() -> Any:
    """SFTTrainer asks for a tokenizer, to find the ids of padding and end; the rows here are ready."""
    from tokenizers import Tokenizer, models

    return Tokenizer(models.WordLevel({"<pad>": 0}, unk_token="<pad>"))


def _step(bench: Callable[[], HeadBench], side: str) -> Callable[[], float]:
    def run() -> float:
        made = bench()
        start = time.process_time()
        made.step(side)
        return 1000 * (time.process_time() - start)

    return run


def _peak(bench: Callable[[], HeadBench], side: str) -> Callable[[], float]:
    return lambda: peak_bytes(bench().model, lambda: bench().step(side)) / 1e6
