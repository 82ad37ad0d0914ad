"""Bases whose linear layers are packed in 4 or 8 bits (bitsandbytes), so that an adapter learns in less memory.

As in QLoRA (Dettmers et al. 2023) 4 bits are NF4 with quantised scales; 8 bits are LLM.int8 (Dettmers et al. 2022).
Embedding, head and norms keep their dtype. We depart from QLoRA in two points: what learns is float32 (see
`llmrec.train.trainer`), and AdamW's moments are not paged. Measured in ``docs/decisions/0014-4-bit-bases.md``.
"""

from __future__ import annotations

import importlib.util
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from llmrec.errors import EnvironmentProblem, InputError

if TYPE_CHECKING:
    import torch

Quantize = Literal["4bit", "8bit"]
"""How the linear layers but the head are packed while they are loaded; the folder keeps its full precision."""

EXTRA = "pip install 'llmrec[quantized]'"

# Bytes of a packed weight. In 4 bits a block of 64 has a scale of 8 bits, 256 of these a float32; in 8 bits a row has a
# float32, which the shortest rows of real models (512) make 1 % of a byte.
BYTES: dict[Quantize, float] = {"4bit": 0.5 + (1 + 4 / 256) / 64, "8bit": 1.01}


def packing_arguments(folder: Path, quantize: Quantize, dtype: torch.dtype) -> dict[str, Any]:
    """What makes ``from_pretrained`` pack a full-precision model: on the GPU where there is one, else on the CPU.

    HF's Trainer does not move packed weights, so they are made where they will be used.

    Args:
        folder: of the model.
        quantize: how to pack.
        dtype: of embedding, head and norms; on a CPU matrix products are in it too, on a GPU they are in bfloat16, as
            under autocast.

    Raises:
        InputError: the folder's weights are packed already.
        EnvironmentProblem: bitsandbytes is missing.
    """
    if method := stored_quantization(folder):
        raise InputError(
            f"{folder} is quantised already ({method}): base.quantize packs a model in full or half precision.",
            hint="leave base.quantize out, or name the model that this one was made from",
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise EnvironmentProblem(f"base.quantize: {quantize} needs bitsandbytes.", hint=EXTRA)
    import torch
    from transformers import BitsAndBytesConfig

    on_gpu = torch.cuda.is_available()
    if quantize == "4bit":
        how = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16 if on_gpu else dtype,
        )
    else:
        how = BitsAndBytesConfig(load_in_8bit=True)
        # a warning at each product outside training that its input becomes float16, which is how LLM.int8 works
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    return {"quantization_config": how, "device_map": {"": torch.cuda.current_device() if on_gpu else "cpu"}}


def stored_quantization(folder: Path) -> str | None:
    """How the weights of a local folder were packed (``bitsandbytes``, ``gptq``); None for plain ones."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    stored = config.get("quantization_config")
    return None if stored is None else str(stored.get("quant_method", "unknown"))


@contextmanager
def missing_package_told(folder: Path) -> Iterator[None]:
    """Turn transformers' ImportError for a folder of packed weights into a clear one.

    Raises:
        EnvironmentProblem: the package that reads these weights is missing.
    """
    try:
        yield
    except ImportError as error:
        method = stored_quantization(folder)
        if method is None:
            raise
        bitsandbytes = method == "bitsandbytes"
        raise EnvironmentProblem(
            f"{folder} is quantised ({method}), and what reads it is missing: {str(error).splitlines()[0]}",
            hint=EXTRA if bitsandbytes else "install what it names, or use the model in full or half precision",
        ) from error


def is_packed(model: Any) -> bool:
    """Whether linear layers of a transformers or PEFT model are packed, by us or in the folder that it came from."""
    return getattr(model, "hf_quantizer", None) is not None


def packing(model: Any) -> Quantize | None:
    """How `packing_arguments` packed a model; None where it did not, such as for a folder of packed weights."""
    if not is_packed(model) or model.hf_quantizer.pre_quantized:
        return None
    return "4bit" if model.hf_quantizer.quantization_config.load_in_4bit else "8bit"


def keep_bits(model: Any) -> None:
    """Stop bitsandbytes from packing 4-bit layers anew.

    On a CPU with AVX512-BF16 it does so at the first product outside training (``Linear4bit.forward`` of 0.50): scales
    are rounded to bfloat16, and the product of that layout passes no gradient to its input. A valid loss before the
    first step would end the training of all but the last layers.
    """
    if is_packed(model):
        for module in model.modules():
            if type(module).__name__ == "Linear4bit":
                module.support_avx512bf16_for_cpu = False


def unpacked(model: Any) -> Any:
    """`model` with plain linear layers, the values being those of the packed ones; a plain model as it is."""
    return model.dequantize() if is_packed(model) else model
