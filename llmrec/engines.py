"""What runs a checkpoint's model: transformers, or vLLM where that is installed."""

from __future__ import annotations

from typing import Any

from llmrec.checkpoint import Checkpoint
from llmrec.decode.expander import Backend
from llmrec.models import DTypeName

_CHAT_TOKENS = 1024
"""Room that vLLM gives a prompt and its answer, where the model can read that much."""


def as_backend(model: Any, prefix_cache_mb: int) -> Backend:
    """A back end as it is, a transformers model in one."""
    if not hasattr(model, "get_decoder"):
        made: Backend = model
        return made
    from llmrec.decode.prefix_cache import PrefixCache
    from llmrec.decode.torch_backend import TorchBackend

    return TorchBackend(model, prefix_cache=PrefixCache(prefix_cache_mb << 20) if prefix_cache_mb else None)


def in_torch(checkpoint: Checkpoint, dtype: DTypeName) -> Any:
    """The checkpoint's model, on a GPU where there is one."""
    import torch

    model: Any = checkpoint.load_model(dtype)
    return model.to("cuda") if torch.cuda.is_available() else model


def in_vllm(checkpoint: Checkpoint, dtype: DTypeName) -> Any:
    """A full model as it is; a plain adapter behind its base, which has the SID rows."""
    from transformers import AutoConfig

    from llmrec.decode.vllm_backend import VLLMBackend

    folder, base = checkpoint.folder, checkpoint.base_folder
    # Histories are cut at the card's length; the chat of an explanation has a length of its own.
    readable = AutoConfig.from_pretrained(base or folder, trust_remote_code=False).max_position_embeddings
    wanted = max(checkpoint.card.serving.max_length + checkpoint.table.num_levels, _CHAT_TOKENS)
    room = min(int(readable), wanted)
    if base is None:
        return VLLMBackend.load(folder, dtype=dtype, max_model_len=room)
    return VLLMBackend.load(base, dtype=dtype, max_model_len=room, adapters={"default": folder}).with_adapter("default")
