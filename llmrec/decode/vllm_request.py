"""What the driver sends to the mask inside the engine, as plain bytes: they reach an engine in another process too."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

LEGAL, OVER = "llmrec_legal", "llmrec_over"
"""Keys in `SamplingParams.extra_args`."""


def packed(tokens: np.ndarray | Sequence[int]) -> bytes:
    """Token ids as int32, the form in which `mask_args` wants them."""
    return np.asarray(tokens, dtype=np.int32).tobytes()


Step = tuple[bytes, bytes | None]
"""The tokens that may come next, and those to normalise over (None: the whole vocabulary), both `packed`."""


def mask_args(steps: Sequence[Step]) -> dict[str, list[bytes] | list[bytes | None]]:
    """The `extra_args` of a request that writes one token per step."""
    return {LEGAL: [legal for legal, _ in steps], OVER: [over for _, over in steps]}


def aligned_window(num_items: int, *, header_length: int, num_levels: int, block_size: int) -> int:
    """How many of the most recent items to keep so that a prompt ends as near as can be after a full cache block.

    vLLM shares a prompt between beams in whole blocks; tokens after the last full one are computed again by every beam
    at every level, which about doubles the cost of a search when there are 16 of them. Leaving the oldest items out
    avoids that (padding would change the prompt in a way no training has seen). **It is another prompt all the same**:
    scores differ from those of the full history, so nothing does this unless it is asked to.

    At most half of the items are dropped, and as few as reach the smallest remainder.

    Args:
        num_items: items of the history that have a SID.
        header_length: tokens before the first item (`len(Renderer.prefix_ids)`).
        num_levels: tokens per item.
        block_size: `VLLMBackend.block_size`.

    Returns:
        A `window` for `Renderer.sequence`.
    """
    candidates = range(num_items, (num_items + 1) // 2 - 1, -1)
    return min(candidates, key=lambda kept: (header_length + kept * num_levels) % block_size)  # the first of equals
