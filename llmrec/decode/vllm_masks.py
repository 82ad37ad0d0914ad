"""The mask that vLLM applies to a search's requests: legal tokens get their log-probability, others minus infinity.

It keeps no state of a search. The driver (`llmrec.decode.vllm_backend`) owns trie and filters and sends with every
request the tokens that are legal after it, for each token that the request writes: one, or several where all but the
first follow without a choice. What comes back through ``logprobs_mode="processed_logits"`` are scores.
Requests without a mask (free text) pass untouched, so both kinds share a batch.

vLLM has two model runners with a processor interface each: V1 (CPUs, and GPUs without Triton) and V2.
`SIDMaskV1` ran on a CPU; `SIDMaskV2` was compared with it on tensors, and has not yet run in an engine on a GPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from vllm.v1.sample.logits_processor import LogitsProcessor as V1LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates
from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsProcessor as V2LogitsProcessor

from llmrec.decode.vllm_request import LEGAL, OVER

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.v1.sample.logits_processor.interface import BatchUpdate
    from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsContext, LogitsProcRequestState


@dataclass(frozen=True)
class Mask:
    """What a request may continue with, at one step.

    Attributes:
        legal: (m,) int64 token ids.
        over: (n,) int64 token ids that the scores are normalised over, `legal` among them; None for the vocabulary.
    """

    legal: np.ndarray
    over: np.ndarray | None


def masks_of(params: SamplingParams) -> list[Mask] | None:
    """The masks that `llmrec.decode.vllm_request.mask_args` wrote into a request, by step; None for other requests."""
    args = params.extra_args or {}
    if LEGAL not in args:
        return None
    return [
        Mask(_tokens(legal), None if over is None else _tokens(over))
        for legal, over in zip(args[LEGAL], args[OVER], strict=True)
    ]


def _tokens(packed: bytes) -> np.ndarray:
    return np.frombuffer(packed, dtype=np.int32).astype(np.int64)


def write_scores(logits: Tensor, masks: Mapping[int, Mask]) -> None:
    """Replace rows of (rows, vocabulary) `logits` by log-probabilities of their legal tokens, in place.

    Args:
        logits: float32.
        masks: by row; rows without a mask stay as they are.
    """
    if not masks:
        return

    def places(token_lists: list[np.ndarray], rows: list[int]) -> tuple[Tensor, Tensor]:
        row = np.repeat(np.array(rows, dtype=np.int64), [len(tokens) for tokens in token_lists])
        at = torch.from_numpy(np.stack([row, np.concatenate(token_lists)])).to(logits.device)
        return at[0], at[1]

    # 1. What each row is normalised by.
    whole = [row for row, mask in masks.items() if mask.over is None]
    some = {row: mask.over for row, mask in masks.items() if mask.over is not None}
    norm = logits.new_empty(logits.shape[0])
    if whole:
        chosen = torch.tensor(whole, device=logits.device)
        norm[chosen] = (logits if len(whole) == len(logits) else logits[chosen]).logsumexp(dim=-1)
    if some:
        lengths = [len(over) for over in some.values()]
        values = list(torch.split(logits[places(list(some.values()), list(some))], lengths))
        padded = pad_sequence(values, batch_first=True, padding_value=-torch.inf)
        norm[torch.tensor(list(some), device=logits.device)] = padded.logsumexp(dim=-1)
    # 2. The scores of the legal tokens, and nothing else.
    row, token = places([mask.legal for mask in masks.values()], list(masks))
    scores = logits[row, token] - norm[row]
    if len(masks) == len(logits):
        logits.fill_(-torch.inf)
    else:
        logits[torch.tensor(list(masks), device=logits.device)] = -torch.inf
    logits[row, token] = scores


class SIDMaskV1(V1LogitsProcessor):  # type: ignore[misc]
    """The mask for runner V1, whose rows are the places of requests in the persistent batch."""

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        self._requests: dict[int, tuple[list[Mask], list[int]]] = {}
        """By row: masks by step, and the tokens written so far, a list that vLLM adds to."""

    def is_argmax_invariant(self) -> bool:
        """It decides which token is the best one, so it must run for greedy requests."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow requests as they enter, leave and move."""
        process_dict_updates(self._requests, batch_update, _request)

    def apply(self, logits: Tensor) -> Tensor:
        """See `write_scores`."""
        write_scores(logits, {row: masks[len(written)] for row, (masks, written) in self._requests.items()})
        return logits


def _request(
    params: SamplingParams, prompt: list[int] | None, output: list[int]
) -> tuple[list[Mask], list[int]] | None:
    masks = masks_of(params)
    return None if masks is None else (masks, output)


class SIDMaskV2(V2LogitsProcessor):  # type: ignore[misc]
    """The mask for runner V2, whose requests keep a slot while the rows are laid out anew in each step.

    It is not told what was written, so requests of several steps are not for it (`Engine.writes_chains`).
    """

    def __init__(self, vllm_config: Any, req_states: LogitsProcRequestState) -> None:
        self._masks: dict[int, Mask | None] = {}

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> bool:
        """Take over a slot, whatever was in it."""
        masks = masks_of(sampling_params)
        self._masks[req_idx] = None if masks is None else masks[0]
        return masks is not None

    def apply(self, logits: Tensor, ctx: LogitsContext) -> Tensor:
        """See `write_scores`. Without speculative decoding a request has one row."""
        masks = ((row, self._masks.get(slot)) for row, slot in enumerate(ctx.idx_mapping_np.tolist()))
        write_scores(logits, {row: mask for row, mask in masks if mask is not None})
        return logits
