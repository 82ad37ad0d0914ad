"""A fitted quantiser on disk: its config and all its numbers in ``codebooks/quantizer.safetensors``.

It lies beside the table's codebooks and holds them again, so that one file is enough to encode new items, and a file
from another fit is noticed: `load_quantizer` compares them with the table's.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydantic import TypeAdapter, ValidationError

from llmrec.errors import InputError, MismatchError
from llmrec.sid_vocab.quantizer import FittedQuantizer
from llmrec.sid_vocab.quantizers import QuantizerConfig, make_quantizer
from llmrec.sid_vocab.table import SIDTable

FILE = "codebooks/quantizer.safetensors"
_COPY_AGAIN = "copy the folder again as a whole, or fit the table anew"


def save_quantizer(folder: Path, config: QuantizerConfig, fitted: FittedQuantizer) -> None:
    """Write ``codebooks/quantizer.safetensors`` into `folder` (made if missing)."""
    from safetensors.numpy import save_file

    path = folder / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {name: np.ascontiguousarray(array) for name, array in fitted.state().items()}
    save_file(arrays, path, metadata={"config": config.model_dump_json()})


def load_quantizer(folder: Path, table: SIDTable) -> FittedQuantizer:
    """The quantiser that `save_quantizer` wrote into `folder`.

    Raises:
        InputError: there is none, or the file is damaged.
        MismatchError: its codebooks are not those of `table`.
    """
    from safetensors import SafetensorError, safe_open

    path = folder / FILE
    if not path.is_file():
        raise InputError(f"{folder} holds no quantiser ({FILE} is missing).", hint=_COPY_AGAIN)
    try:
        with safe_open(path, framework="numpy") as file:
            config = TypeAdapter(QuantizerConfig).validate_json((file.metadata() or {}).get("config", ""))
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (OSError, SafetensorError, ValidationError) as error:
        raise InputError(f"{path} cannot be read: {error}", hint=_COPY_AGAIN) from error
    fitted = make_quantizer(config).restore(state)
    same = len(fitted.codebooks) == len(table.codebooks) and all(
        np.array_equal(ours, theirs) for ours, theirs in zip(fitted.codebooks, table.codebooks, strict=True)
    )
    if not same:
        raise MismatchError(f"The quantiser in {path} is not the one of this SID table.", hint=_COPY_AGAIN)
    return fitted
