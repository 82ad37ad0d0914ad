"""Base models by reference: load one with its tokenizer, and name its weights by a hash.

A reference is a local folder, a hub id (``owner/name`` or ``owner/name@revision``) or ``asset:NAME``. Weights are read
from safetensors alone (no pickle), and no code that a repository ships is run. The generation config is emptied to the
token ids: sampling settings that instruct checkpoints carry (``top_k``, ``repetition_penalty``) bend constrained search
(MiniOneRec issues 49, 50, 56).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from llmrec.data.assets import resolve_asset
from llmrec.errors import EnvironmentProblem, InputError
from llmrec.quantized import Quantize, keep_bits, missing_package_told, packing_arguments

if TYPE_CHECKING:
    import torch
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

DTypeName = Literal["auto", "float32", "bfloat16"]
"""``auto`` is bfloat16 on a GPU that has it and on a CPU that computes it natively (AMX, AVX512-BF16), else float32."""

_WEIGHTS = "*.safetensors"
_DESCRIPTION = ("*.json", "*.jinja", "tokenizer.model")


def torch_dtype(dtype: DTypeName) -> torch.dtype:
    """The torch dtype of a name; see `DTypeName` for what ``auto`` chooses.

    A CPU without native bfloat16 emulates it, several times slower than float32 (``llmrec doctor`` measures it).
    """
    import torch

    if dtype != "auto":
        return torch.float32 if dtype == "float32" else torch.bfloat16
    if torch.cuda.is_available():
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if native else torch.float32


def model_folder(reference: str | Path, *, weights: bool = True) -> Path:
    """The local folder of a base model; assets are fetched, hub models downloaded, where the caches lack them.

    Args:
        reference: a local folder, a hub id or ``asset:NAME``.
        weights: False leaves a hub model's weights where they are and brings its config and tokenizer, a few MB.

    Raises:
        InputError: a path that does not exist or holds no model in safetensors, an unknown asset or hub id.
        EnvironmentProblem: it cannot be fetched.
    """
    found = resolve_asset(str(reference), kind="model")
    files = (*_DESCRIPTION, _WEIGHTS) if weights else _DESCRIPTION
    folder = found if isinstance(found, Path) else _from_hub(found, files)
    if not (folder / "config.json").is_file() or (weights and not any(folder.glob(_WEIGHTS))):
        raise InputError(
            f"{folder} holds no language model: config.json and *.safetensors are needed",
            hint="adapters are merged first (Checkpoint.export_merged); *.bin files are pickles and are not read",
        )
    return folder


def load_base(
    reference: str | Path, *, dtype: DTypeName = "auto", quantize: Quantize | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal LM, as `load_weights` does, and its tokenizer.

    Raises:
        InputError: there is no such model, it has no safetensors, its tokenizer cannot be read, or it shall be packed
            and is already.
        EnvironmentProblem: it cannot be fetched, or the package that packs or unpacks it is missing.
    """
    from transformers import AutoTokenizer

    folder = model_folder(reference)
    return load_weights(folder, dtype=dtype, quantize=quantize), AutoTokenizer.from_pretrained(folder)


def load_weights(folder: Path, *, dtype: DTypeName = "auto", quantize: Quantize | None = None) -> PreTrainedModel:
    """The causal LM of a local folder, in evaluation mode, with a neutral generation config.

    It is on the CPU, but for packed weights, which are on the GPU where there is one.

    Args:
        folder: of the model.
        dtype: of the weights; of those that are not packed.
        quantize: pack the linear layers; None leaves them as the folder has them, which may be packed too.

    Raises:
        InputError: `quantize` for a folder of packed weights.
        EnvironmentProblem: the package that packs or unpacks them is missing.
    """
    from transformers import AutoModelForCausalLM

    chosen = torch_dtype(dtype)
    packed = {} if quantize is None else packing_arguments(folder, quantize, chosen)
    with missing_package_told(folder):
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            folder, dtype=chosen, use_safetensors=True, local_files_only=True, trust_remote_code=False, **packed
        )
    keep_bits(model)
    model.generation_config = neutral_generation_config(model)
    return model.eval()


def neutral_generation_config(model: Any) -> GenerationConfig:
    """A generation config with `model`'s token ids and nothing that changes probabilities."""
    from transformers import GenerationConfig

    config = model.config.get_text_config()
    return GenerationConfig(
        bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id
    )


def weights_sha256(source: Path | PreTrainedModel) -> str:
    """SHA-256 over the names, dtypes, shapes and bytes of all weights, in name order.

    A folder gives the same value however its weights are cut into files, and its model in the stored dtype, saved with
    transformers, gives that value too. Tied matrices count once.

    Raises:
        InputError: the folder has no safetensors.
    """
    digest = hashlib.sha256()
    for name, tensor in _tensors_of_folder(source) if isinstance(source, Path) else _tensors_of_model(source):
        import torch

        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _tensors_of_folder(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    from safetensors import safe_open

    place: dict[str, Path] = {}
    for path in sorted(folder.glob(_WEIGHTS)):
        with safe_open(path, framework="pt") as file:
            place |= dict.fromkeys(file.keys(), path)
    if not place:
        raise InputError(f"{folder} holds no weights (*.safetensors)")
    for name in sorted(place):
        with safe_open(place[name], framework="pt") as file:
            yield name, file.get_tensor(name)


def _tensors_of_model(model: PreTrainedModel) -> Iterator[tuple[str, torch.Tensor]]:
    seen: set[int] = set()
    for name, tensor in sorted(model.state_dict().items()):
        tied_head = tensor.data_ptr() in seen  # "lm_head.weight" sorts before "model...": the head is what is left out
        if not tied_head and not (name.startswith("lm_head.") and _is_tied(model)):
            seen.add(tensor.data_ptr())
            yield name, tensor


def _is_tied(model: PreTrainedModel) -> bool:
    return bool(model.get_output_embeddings().weight.data_ptr() == model.get_input_embeddings().weight.data_ptr())


def _from_hub(name: str, files: Sequence[str]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    repo, _, revision = name.partition("@")
    try:
        return Path(snapshot_download(repo, revision=revision or None, allow_patterns=list(files)))
    except RevisionNotFoundError as error:
        raise InputError(f"the hub's model {repo!r} has no revision {revision!r}", hint="see its commits") from error
    except RepositoryNotFoundError as error:
        raise InputError(
            f"the hub has no model {repo!r}, or it needs a login", hint="check the id, or run `hf auth login`"
        ) from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise EnvironmentProblem(
            f"the model {name!r} could not be downloaded: {str(error).splitlines()[0]}",
            hint="check the network, or name a local folder or asset:NAME (`llmrec assets ls`)",
        ) from error
