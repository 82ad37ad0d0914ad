"""TRL's `GRPOTrainer`, imported without vLLM.

TRL imports vLLM with it wherever vLLM is installed, for rollouts of its own. Ours come from `llmrec.decode`; the import
is slow, warns of vLLM versions that TRL does not know and of what vLLM itself uses, and brings an engine into a process
that trains. So vLLM is said to be missing while TRL's modules are loaded.
"""

from __future__ import annotations

from typing import Any

from trl import import_utils


def _load() -> Any:
    known = import_utils.is_vllm_available
    import_utils.is_vllm_available = lambda min_version=None: False
    try:
        from trl import GRPOTrainer
    finally:
        import_utils.is_vllm_available = known
    return GRPOTrainer


GRPOTrainer: Any = _load()
