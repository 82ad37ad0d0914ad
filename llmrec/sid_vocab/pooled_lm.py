"""Text vectors from any causal language model: its last hidden states, pooled over the tokens of a text.

``last`` takes the state of the last token, the only one that has read the whole text (E5-Mistral, Wang et al. 2024,
which tunes the model for it); ``mean`` takes the average, the safer choice for models that were not tuned to embed
(LLM2Vec, BehnamGhader et al. 2024, compares both). Departures from E5-Mistral: no prompt around the text, no end
token behind it.

Hidden states of plain LLMs share a large common part, so that all texts look alike. k-means does not mind; in a
concatenation such text counts less than its weight says.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from llmrec.data.assets import resolve_asset
from llmrec.errors import InputError
from llmrec.sid_vocab.text_encoder import Encoded, folder_sha256, module_sha256
from llmrec.sid_vocab.vectors import normalise

Pooling = Literal["mean", "last"]


class PooledLM:
    """A causal LM as a text encoder (`llmrec.sid_vocab.text_encoder.TextEncoder`), in float32.

    Args:
        reference: a local folder, a hub id or a packaged asset.
        pooling: see the module.
        max_length: tokens of a text that are read; what lies beyond is cut and counted.

    Raises:
        InputError: there is no such model, or it cannot be loaded from safetensors.
        EnvironmentProblem: it cannot be fetched.
    """

    def __init__(self, reference: str, pooling: Pooling = "mean", max_length: int = 256) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self._resolved = resolve_asset(reference, kind="model")
        self.reference, self.pooling = reference, pooling
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(self._resolved, trust_remote_code=False)
            model: Any = AutoModelForCausalLM.from_pretrained(
                self._resolved, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
            )
        except (OSError, ValueError) as error:
            raise InputError(
                f"The language model {reference!r} cannot be loaded: {error}",
                hint="give a folder with config.json, tokenizer and *.safetensors, a hub id, or an asset",
            ) from error
        self.model = model.base_model.eval().to("cuda" if torch.cuda.is_available() else "cpu")
        self.max_length = min(max_length, self.tokenizer.model_max_length)

    def identity(self) -> str:
        """SHA-256 of weights, tokenizer and settings."""
        if isinstance(self._resolved, Path):
            content = folder_sha256(self._resolved)
        else:
            words = json.dumps(self.tokenizer.get_vocab(), sort_keys=True)
            content = module_sha256(self.model, words)
        return hashlib.sha256(f"pooled-lm {self.pooling} {self.max_length} {content}".encode()).hexdigest()

    def encode(self, texts: Sequence[str]) -> Encoded:
        """Unit vectors of one batch of texts; padding stands right of the text and is not pooled."""
        import torch

        rows = self.tokenizer(list(texts), verbose=False)["input_ids"]
        cut = np.array([len(row) > self.max_length for row in rows])
        width = max(1, *(min(len(row), self.max_length) for row in rows), 1)
        ids = torch.zeros((len(rows), width), dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for place, row in enumerate(rows):
            kept = row[: self.max_length]
            ids[place, : len(kept)] = torch.tensor(kept, dtype=torch.int64)
            mask[place, : len(kept)] = 1
        ids, mask = ids.to(self.model.device), mask.to(self.model.device)
        with torch.no_grad():
            states = self.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        lengths = mask.sum(dim=1)
        if self.pooling == "mean":
            pooled = (states * mask[:, :, None]).sum(dim=1) / lengths.clamp(min=1)[:, None]
        else:
            pooled = states[torch.arange(len(rows)), (lengths - 1).clamp(min=0)]
        return Encoded(normalise(pooled.cpu().numpy()), cut)
