"""Turn a GGUF file into an ordinary Hugging Face folder, once, so that everything later reads safetensors.

transformers dequantises a GGUF file on load, but refuses to save the result because its config is marked as
GGUF-quantised. So the weights move into a fresh model whose config lacks the mark. They stay float32: the
dequantised values (scale times code plus minimum) have more digits than bfloat16 or float16 hold.
"""

from __future__ import annotations

import copy
from pathlib import Path


def convert_gguf(gguf: Path, folder: Path) -> None:
    """Write `gguf` as safetensors, config, neutral generation config and tokenizer (chat template included).

    The generation config holds token ids alone: sampling settings such as ``top_k`` or ``repetition_penalty``
    would bend constrained search.

    Args:
        gguf: the file; its folder is where transformers looks for it.
        folder: an existing, empty folder.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name)
    config = copy.deepcopy(loaded.config)
    del config.quantization_config
    config._name_or_path = ""
    model = AutoModelForCausalLM.from_config(config)
    model.load_state_dict(loaded.state_dict())
    model.tie_weights()
    model.generation_config = GenerationConfig(
        bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
