"""Benchmark ``rl``: what one forward over a shared prefix tree saves beside a forward per completion.

GRPO's side: the log-probabilities of 16 completions of 4 tokens behind a prompt of 200, by `TreeForward` and by TRL's
``GRPOTrainer._get_per_token_logps_and_entropies``, which repeats the prompt for each. "group, step" is what must hold:
forward and backward, as training pays it. "group, forward" is the forward alone, as the reference pays it. The
completions are SIDs drawn at random, which share next to no prefix: the case that suits the tree least.

Preference tuning's side: S-DPO with 8 rejected items in one tree, beside ``DPOTrainer.compute_loss`` over the 8 pairs
that the same items make; log-probabilities of the reference are precomputed on both sides.

All sides are in fp32, on a model of SmolLM2-135M's shape with random weights. Steps are measured in CPU time and leave
the optimizer out. TRL's group goes backward `CHUNK` completions at a time, which adds up to the same gradient and keeps
its activations within a few GB.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from llmrec.bench.head import random_table
from llmrec.bench.runner import Case

PROMPT = 200
GROUP = 16
REJECTED = 8
CHUNK = 4


def cases(quick: bool) -> list[Case]:
    """SmolLM2-135M's shape, or with `quick` a model of 4 layers of width 256."""

    def timed(work: Callable[[RLBench], Any]) -> Callable[[], float]:
        def run() -> float:
            made = bench(quick=quick)
            start = time.process_time()
            work(made)
            return 1000 * (time.process_time() - start)

        return run

    return [
        Case("group, step", "ms CPU", timed(RLBench.tree_step), timed(RLBench.group_step)),
        Case("group, forward", "ms CPU", timed(RLBench.tree_forward), timed(RLBench.group_forward)),
        Case("group, log-probs", "nats", lambda: bench(quick=quick).difference(), lambda: 1e-4, warm_up=False),
        Case("s_dpo, step", "ms CPU", timed(RLBench.softmax_dpo_step), timed(RLBench.pairs_step)),
    ]


@dataclass(frozen=True)
class RLBench:
    """A model with one prompt, a group of completions, and the trainers of both sides.

    Attributes:
        completions: (GROUP, 4) token ids.
        grpo: TRL's trainer of the same model.
        dpo: TRL's trainer of the same model.
        forward: our `TreeForward` of the same model.
    """

    model: Any
    prompt: np.ndarray
    completions: np.ndarray
    grpo: Any
    dpo: Any
    forward: Any

    def tree(self, count: int = GROUP) -> Any:
        """Our log-probabilities of the first `count` completions, with their graph."""
        from llmrec.train.prefix_tree import TreeRow

        return self.forward([TreeRow(self.prompt, list(self.completions[:count]))])

    def group(self, chunk: slice = slice(None)) -> Any:
        """TRL's log-probabilities of some completions, (completions, 4), with their graph."""
        import torch

        ids = torch.from_numpy(np.hstack([np.tile(self.prompt, (GROUP, 1)), self.completions]))[chunk]
        width = self.completions.shape[1]
        return self.grpo._get_per_token_logps_and_entropies(self.model, ids, torch.ones_like(ids), width)[0]

    def tree_step(self) -> None:
        """Forward and backward of the group, ours."""
        self._backward(self.tree().sums.mean())

    def group_step(self) -> None:
        """Forward and backward of the group, TRL's."""
        for start in range(0, GROUP, CHUNK):
            (self.group(slice(start, start + CHUNK)).sum() / GROUP).backward()
        self.model.zero_grad(set_to_none=True)

    def tree_forward(self) -> Any:
        """The group without gradient, ours: (completions, 4)."""
        import torch

        with torch.no_grad():
            return self.tree().tokens

    def group_forward(self) -> Any:
        """The group without gradient, TRL's: (completions, 4)."""
        import torch

        with torch.no_grad():
            return self.group()

    def difference(self) -> float:
        """The largest difference between the log-probabilities of a token."""
        return float((self.tree_forward() - self.group_forward()).abs().max())

    def softmax_dpo_step(self) -> None:
        """Forward and backward of S-DPO: the first completion against the next `REJECTED`."""
        import torch

        from llmrec.train.preference.losses import ScoredRows, softmax_dpo

        found = self.tree(1 + REJECTED)
        scored = ScoredRows(found.tokens, found.mask, found.sums.detach(), found.row, torch.ones(1 + REJECTED))
        self._backward(softmax_dpo(scored, beta=0.1).mean())

    def pairs_step(self) -> None:
        """Forward and backward of DPO over the pairs of the first completion with the next `REJECTED`."""
        half = REJECTED // 2
        for start in (0, half):
            rows = [
                {
                    "prompt_ids": self.prompt.tolist(),
                    "chosen_ids": self.completions[0].tolist(),
                    "rejected_ids": rejected.tolist(),
                    "ref_chosen_logps": -30.0,
                    "ref_rejected_logps": -30.0,
                }
                for rejected in self.completions[1 + start : 1 + start + half]
            ]
            (self.dpo.compute_loss(self.model, self.dpo.data_collator(rows)) / 2).backward()
        self.model.zero_grad(set_to_none=True)

    def _backward(self, loss: Any) -> None:
        loss.backward()
        self.model.zero_grad(set_to_none=True)


@cache
def bench(*, quick: bool) -> RLBench:
    """The model, its data and TRL's trainers; all weights learn."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from llmrec.train.tree_forward import TreeForward

    text = 4096 if quick else 49_152
    shape: dict[str, Any] = (
        {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4, "num_attention_heads": 4}
        if quick
        else {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9}
    )
    table = random_table(1000, text)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=text + table.num_tokens,
                num_key_value_heads=shape["num_attention_heads"] if quick else 3,
                tie_word_embeddings=True,
                **shape,
            )
        )
    rng = np.random.default_rng(0)
    prompt = rng.integers(5, text, PROMPT)
    completions = table.sid_token_ids()[rng.choice(table.num_items, GROUP, replace=False)]
    quiet = contextlib.redirect_stderr(io.StringIO())  # bars over the one row that TRL prepares
    with tempfile.TemporaryDirectory() as folder, quiet:
        grpo, dpo = _trainers(model, Path(folder))
    model.train()
    return RLBench(model, prompt, completions, grpo, dpo, TreeForward(model))


def _trainers(model: Any, folder: Path) -> tuple[Any, Any]:
    """TRL's trainers around `model`; their own rows are a single one that no measurement reads."""
    from datasets import Dataset

    with warnings.catch_warnings():  # GRPO imports vLLM where it is installed, with warnings of its own
        warnings.simplefilter("ignore")
        from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer

    common: dict[str, Any] = {
        "output_dir": str(folder),
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
        "disable_tqdm": True,
    }
    grpo = GRPOTrainer(
        model=model,
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=GRPOConfig(**common, num_generations=GROUP, per_device_train_batch_size=GROUP),
        train_dataset=Dataset.from_dict({"prompt": ["a"]}),
        processing_class=_tokenizer(),
    )
    dpo = DPOTrainer(
        model=model,
        args=DPOConfig(**common, precompute_ref_log_probs=True),
        train_dataset=Dataset.from_dict({"prompt": ["a "], "chosen": ["a"], "rejected": ["b"]}),
        processing_class=_tokenizer(),
    )
    return grpo, dpo


def _tokenizer() -> Any:
    """Three words: what TRL's trainers make of the row that no measurement reads."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 1, "a": 2, "b": 3}, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>")
