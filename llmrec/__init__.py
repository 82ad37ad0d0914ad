"""llmrec turns an open language model into a recommender that generates the next item as a Semantic ID.

The public names below load on first use (PEP 562), so that ``import llmrec`` takes milliseconds and imports no torch.

    >>> import llmrec
    >>> recommender = llmrec.Recommender.load("runs/quickstart/sft")  # doctest: +SKIP
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llmrec.checkpoint import Checkpoint
    from llmrec.decode.trie import SIDTrie
    from llmrec.prompts.renderer import Renderer
    from llmrec.recommendation import ItemFilter
    from llmrec.recommender import Recommender
    from llmrec.sid_vocab.table import SIDTable

__version__ = "0.1.0"
__all__ = ["Checkpoint", "ItemFilter", "Recommender", "Renderer", "SIDTable", "SIDTrie", "__version__"]

_HOMES = {
    "Checkpoint": "llmrec.checkpoint",
    "ItemFilter": "llmrec.recommendation",
    "Recommender": "llmrec.recommender",
    "Renderer": "llmrec.prompts.renderer",
    "SIDTable": "llmrec.sid_vocab.table",
    "SIDTrie": "llmrec.decode.trie",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'llmrec' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
