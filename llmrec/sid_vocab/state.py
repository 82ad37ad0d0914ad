"""Parts of a saved quantiser (`FittedQuantizer.state`) by name."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from llmrec.errors import InputError


def part(state: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    """The array `name`. Raises InputError where it is missing."""
    if name not in state:
        raise InputError(f"The saved quantiser lacks {name}.", hint="copy the folder again as a whole, or fit anew")
    return state[name]
