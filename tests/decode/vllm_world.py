"""A world that vLLM can serve on a CPU, and the warnings of others that its tests let pass."""

from __future__ import annotations

import dataclasses
from functools import cache

import pytest
import torch

from llmrec.testing.search_conformance import search_world

TOLERANCE = 2e-3
SHARED = tuple(range(5, 45))  # a prefix of more than one cache block

FILTERS = [
    # vLLM 0.32 on torch 2.13: its Triton dispatcher looks at every attribute of torch.distributed.
    pytest.mark.filterwarnings("ignore:`torch.distributed.reduce_op` is deprecated:FutureWarning"),
]


@cache
def servable_model():
    """`search_world` with heads of 32, the smallest that vLLM's CPU attention takes."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=search_world().model.config.vocab_size,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=256,
        tie_word_embeddings=True,
    )
    model = AutoModelForCausalLM.from_config(shape, attn_implementation="sdpa").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(6.0)
    return model


def servable_world(**settings):
    """Another catalogue and other prompts for each seed, one model: an engine is slow to start."""
    return dataclasses.replace(search_world(**settings), model=servable_model())


def mixed_world():
    """Prompts around the size of a cache block, and two with a common beginning."""
    world = servable_world(seed=5, num_items=120, prompt_lengths=(3, 11, 31, 32, 33, 64, 70))
    return dataclasses.replace(world, prompts=(*world.prompts, (*SHARED, 60, 61), (*SHARED, 70)))
