"""What a language model costs: floating-point operations, memory and disk, from its architecture alone.

Operations follow the usual count (Kaplan et al. 2020, section 2.1): 2 a parameter and token forward, as many again for
the gradient of the activations and for that of the weights. Adapters need no weight gradient of their base. Attention
adds ``2 * length * hidden`` a layer and token (causal), the LM head ``2 * vocabulary * hidden`` a target that is scored
over the whole vocabulary. A mixture of experts is counted with all its experts: too much for its time.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from llmrec.quantized import BYTES, Quantize
from llmrec.train.config import LoRASettings, StageConfig

GB = 2**30
FLOAT = 4  # bytes; training is in float32 (under autocast on a GPU), AdamW's moments always

# Floats kept for the backward pass per output of a linear layer, from peak memory: SmolLM2-135M with LoRA of rank 16 on
# batches of 512 tokens (2.5 GB), a Llama of 1.1M parameters trained in full on batches of 1,600 (0.86 GB).
_KEPT = {"lora": 3.8, "full": 2.3}
_LOGITS = 3  # copies of text logits at a time: themselves, their log-softmax, its gradient


@dataclass(frozen=True)
class Architecture:
    """A causal LM with SID rows, without weights."""

    parameters: int
    """All of them, SID rows included; a tied matrix counts once."""
    layer_parameters: int
    """Without embedding and head: what every token is multiplied with."""
    row_parameters: int
    """SID rows of embedding and, where it is not tied, head."""
    vocabulary: int
    """Rows of the head."""
    hidden: int
    """Width of the residual stream."""
    layers: int
    """Number of blocks."""
    linear: tuple[tuple[str, int, int], ...]
    """Name, inputs and outputs of every linear layer but the head."""

    def adapter_parameters(self, lora: LoRASettings) -> int:
        """Weights of the adapters: rank times inputs and outputs of every layer that gets one."""
        chosen = [size for name, *size in self.linear if _is_target(name, lora.target_modules)]
        return lora.rank * sum(map(sum, chosen))

    def trained(self, stage: StageConfig) -> int:
        """Parameters that have a gradient. In full training the whole embedding has one, of which SID rows are used."""
        if stage.method == "full":
            return self.parameters
        return self.adapter_parameters(stage.lora) + (self.row_parameters if stage.train_sid_rows else 0)

    # -- operations ------------------------------------------------------------------------------------------------

    def forward(self, tokens: float, length: float) -> float:
        """Operations of reading `tokens` in rows of about `length`, the head apart."""
        return tokens * (2 * self.layer_parameters + self._attention(length))

    def training(self, stage: StageConfig, tokens: float, length: float, vocabulary_targets: float) -> float:
        """Operations of learning from `tokens`, `vocabulary_targets` of which are scored over the whole vocabulary."""
        full = stage.method == "full"
        layers = 6 * self.layer_parameters if full else 4 * self.layer_parameters
        adapters = 0 if full else 6 * self.adapter_parameters(stage.lora)
        head = (6 if full or stage.train_sid_rows else 4) * self.vocabulary * self.hidden
        return tokens * (layers + adapters + 3 * self._attention(length)) + vocabulary_targets * head

    def _attention(self, length: float) -> float:
        return 2 * length * self.hidden * self.layers

    # -- bytes -----------------------------------------------------------------------------------------------------

    def weight_bytes(self, quantize: Quantize | None = None) -> float:
        """All weights; with `quantize` all linear layers but the head are packed."""
        if quantize is None:
            return FLOAT * self.parameters
        packed = sum(inputs * outputs for _, inputs, outputs in self.linear)
        return BYTES[quantize] * packed + FLOAT * (self.parameters - packed)

    def training_bytes(
        self, stage: StageConfig, longest: int, vocabulary_share: float, quantize: Quantize | None = None
    ) -> float:
        """Weights, gradients, AdamW's moments, activations and logits of a step.

        Args:
            longest: tokens of the longest row, which is a batch by itself where it exceeds ``batch_tokens``.
            vocabulary_share: of a batch's tokens, those that are scored over the whole vocabulary; of the worst batch.
            quantize: how the base is packed.
        """
        tokens = max(stage.batch_tokens, longest)
        kept = _KEPT[stage.method] * sum(outputs for _, _, outputs in self.linear)
        logits = _LOGITS * vocabulary_share * self.vocabulary
        return self.weight_bytes(quantize) + FLOAT * (3 * self.trained(stage) + tokens * (kept + logits))

    def search_bytes(self, prompts: int, length: float) -> float:
        """Keys and values of `prompts` of `length` tokens searched together; an upper bound with grouped queries."""
        return FLOAT * prompts * length * 2 * self.hidden * self.layers

    def state_bytes(self, stage: StageConfig) -> float:
        """One state to resume from. PEFT writes embedding and head beside an adapter whose vocabulary has grown."""
        saved = self.parameters if stage.method == "full" else self.trained(stage) + 2 * self.vocabulary * self.hidden
        return FLOAT * (saved + 2 * self.trained(stage))

    def checkpoint_bytes(self, stage: StageConfig, *, whole: bool) -> float:
        """What a stage hands on: the `whole` model, or its adapter."""
        return FLOAT * (self.parameters if whole else self.trained(stage))


def architecture(shape: Any, num_tokens: int, new_vocabulary: int) -> Architecture:
    """Measure a model on the meta device, where tensors have shapes and no memory.

    Args:
        shape: the transformers config of the base.
        num_tokens: SID tokens.
        new_vocabulary: size of the extended tokenizer; rows that the base has to spare are used first.
    """
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.pytorch_utils import Conv1D

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(shape)
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    rows, hidden = embedding.weight.shape
    matrices = 1 if head.weight is embedding.weight else 2
    layers = sum(parameter.numel() for parameter in model.parameters()) - matrices * rows * hidden
    linear = []
    for name, module in model.named_modules():
        if module is head or not isinstance(module, torch.nn.Linear | Conv1D):
            continue
        inputs, outputs = module.weight.shape if isinstance(module, Conv1D) else reversed(module.weight.shape)
        linear.append((name, inputs, outputs))
    vocabulary = max(rows, new_vocabulary)
    return Architecture(
        parameters=layers + matrices * vocabulary * hidden,
        layer_parameters=layers,
        row_parameters=matrices * num_tokens * hidden,
        vocabulary=vocabulary,
        hidden=hidden,
        layers=shape.num_hidden_layers,
        linear=tuple(linear),
    )


def _is_target(name: str, targets: str | list[str]) -> bool:
    """PEFT's rule: every linear layer, a regular expression for the whole name, or ends of names."""
    if targets == "all-linear":
        return True
    if isinstance(targets, str):
        return re.fullmatch(targets, name) is not None
    return any(name == target or name.endswith(f".{target}") for target in targets)
