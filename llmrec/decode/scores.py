"""From hidden states to the log-probabilities of a prefix's living children.

Three normalisations (`llmrec.decode.result.Normalise`): "vocab" is the softmax over the whole vocabulary and equals
Hugging Face's scores; "level" is the softmax over all codes of the level, as a head over SID rows is trained; "legal"
is the softmax over the living children and favours sparse subtrees. For the last two the LM head runs only over the
rows of the level, for "legal" only over those of the living children where they are few.
Legal children are gathered before any top-k, so that no beam is lost to illegal ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from peft.utils.other import TrainableTokensWrapper
from torch import Tensor, nn

from llmrec.decode.result import NORMALISATIONS, Normalise
from llmrec.errors import InputError, LLMRecError

# Logits of the whole vocabulary are made for at most this many elements at a time (64 MB in fp32).
_MAX_LOGITS = 1 << 24


@dataclass(frozen=True)
class HeadRows:
    """Some rows of an LM head: (tokens, hidden) weights and (tokens,) biases, if there are any."""

    weight: Tensor
    bias: Tensor | None

    def slice(self, start: int, end: int) -> HeadRows:
        """The rows from `start` up to `end`."""
        return HeadRows(self.weight[start:end], None if self.bias is None else self.bias[start:end])


class LMHead:
    """Logits from hidden states, over all tokens or a few of them, exactly as the model's own forward makes them.

    Args:
        model: the causal LM; one forward over two tokens checks that head and model agree.

    Raises:
        InputError: the model changes its logits in a way that is not known here.
    """

    def __init__(self, model: Any) -> None:
        self._head = model.get_output_embeddings()
        if self._head is None:
            raise InputError(f"{type(model).__name__} has no LM head.", hint="load it with AutoModelForCausalLM")
        settings = model.config.get_text_config().to_dict()
        # What families do to their logits: Gemma caps them, Cohere multiplies, Granite divides.
        self._cap = settings.get("final_logit_softcapping")
        self._factor = (settings.get("logit_scale") or 1.0) / (settings.get("logits_scaling") or 1.0)
        self._check(model)

    def logits(self, states: Tensor, token_ids: Tensor | None = None) -> Tensor:
        """(n, tokens) float32 logits of (n, hidden) states: of `token_ids`, or of the whole vocabulary if None.

        Gradients flow where they are enabled.
        """
        if token_ids is None:
            raw = self._head(states)
        elif type(self._head) is nn.Linear:
            bias = self._head.bias
            raw = nn.functional.linear(states, self._head.weight[token_ids], None if bias is None else bias[token_ids])
        else:  # wrapped by an adapter: only the wrapper knows its rows
            raw = self._head(states)[:, token_ids]
        return self._finished(raw)

    def rows(self, token_ids: Tensor) -> HeadRows:
        """The head's rows of some tokens, gathered once: training goes through them several times a step.

        Raises:
            InputError: the head is wrapped by an adapter other than PEFT's trainable tokens.
        """
        if type(self._head) is nn.Linear:
            bias = self._head.bias
            return HeadRows(self._head.weight[token_ids], None if bias is None else bias[token_ids])
        if isinstance(self._head, TrainableTokensWrapper):  # base rows, some of them replaced by trained ones
            layer = self._head.token_adapter
            return HeadRows(layer.get_merged_weights(layer.active_adapters)[token_ids], None)
        raise InputError(
            f"The LM head is a {type(self._head).__name__}, whose rows are not known here.",
            hint="leave the head out of target_modules",
        )

    def row_logits(self, states: Tensor, rows: HeadRows) -> Tensor:
        """(n, tokens) float32 logits of (n, hidden) states over `rows`; gradients flow where they are enabled."""
        return self._finished(nn.functional.linear(states, rows.weight, rows.bias))

    def _finished(self, raw: Tensor) -> Tensor:
        raw = raw * self._factor if self._factor != 1.0 else raw
        logits: Tensor = torch.tanh(raw / self._cap) * self._cap if self._cap is not None else raw
        return logits.float()

    @property
    def vocabulary(self) -> int:
        """Tokens that the head scores."""
        return int(self._head.weight.shape[0])

    @property
    def device(self) -> torch.device:
        """Where the head lives."""
        device: torch.device = self._head.weight.device
        return device

    @torch.no_grad()
    def _check(self, model: Any) -> None:
        probe = torch.tensor([[0, 1]], device=model.get_input_embeddings().weight.device)
        training = model.training
        model.eval()  # with dropout no two forwards agree
        theirs = model(input_ids=probe, use_cache=False).logits[0].float()
        ours = self.logits(model.get_decoder()(input_ids=probe, use_cache=False).last_hidden_state[0])
        model.train(training)
        if not torch.allclose(ours, theirs, rtol=0.02, atol=0.02 * float(theirs.abs().max())):
            raise InputError(
                f"{type(model).__name__} changes its logits after the LM head in a way the search does not know.",
                hint="use `generate` with SIDLogitsProcessor for this family",
            )


class ChildScorer:
    """Scores the children of trie nodes from the hidden states of their prefixes.

    Args:
        head: the model's head.
        codebook_sizes: codes per level.
        token_ids: per level (codebook_size,) the token id of each code.
        normalise: see the module's docstring.

    Raises:
        InputError: an unknown normalisation, or token ids that do not fit the trie or the model.
    """

    def __init__(
        self, head: LMHead, codebook_sizes: Sequence[int], token_ids: Sequence[np.ndarray], normalise: Normalise
    ) -> None:
        if normalise not in NORMALISATIONS:
            raise InputError(f"normalise is {normalise!r}; known are {', '.join(NORMALISATIONS)}.")
        if [len(ids) for ids in token_ids] != list(codebook_sizes):
            raise InputError(
                f"The token ids cover codebooks of {[len(ids) for ids in token_ids]} codes, "
                f"the trie has {list(codebook_sizes)}."
            )
        highest = max(int(ids.max()) for ids in token_ids)
        if highest >= head.vocabulary:
            raise InputError(
                f"SID token {highest} lies outside of the model's vocabulary of {head.vocabulary}.",
                hint="extend the model's vocabulary with the table's tokens first",
            )
        self.token_ids = tuple(np.asarray(ids, dtype=np.int64) for ids in token_ids)
        self.normalise = normalise
        self._head = head
        self._device_ids = tuple(torch.tensor(ids).to(head.device) for ids in self.token_ids)

    @torch.no_grad()
    def gains(self, states: Tensor, level: int, owner: np.ndarray, codes: np.ndarray) -> np.ndarray:
        """Log-probabilities of children given their parents.

        Args:
            states: (n, hidden) states of the parents, prefixes of length `level`.
            owner: (m,) the parent of each child, ascending.
            codes: (m,) the code that leads to each child. "legal" normalises over just these.

        Returns:
            (m,) float64, none above 0.

        Raises:
            LLMRecError: the model returned NaN.
        """
        if not len(owner):
            return np.zeros(0)
        parents = torch.from_numpy(owner).to(states.device)
        if self.normalise == "legal":
            union, place = np.unique(codes, return_inverse=True)
            # Rows of the head are copied when only some are asked for; above half of them that no longer pays.
            if 2 * len(union) > len(self.token_ids[level]):
                union, place = np.arange(len(self.token_ids[level])), codes
            logits = self._head.logits(states, self._device_ids[level][torch.from_numpy(union).to(states.device)])
            values = logits[parents, torch.from_numpy(place).to(states.device)].double().cpu().numpy()
            return _checked(_log_softmax_by_owner(values, owner), level)
        picked = torch.from_numpy(codes.astype(np.int64)).to(states.device)
        if self.normalise == "level":
            logits = self._head.logits(states, self._device_ids[level])
            totals = torch.logsumexp(logits, dim=-1)
            return _checked((logits[parents, picked] - totals[parents]).double().cpu().numpy(), level)
        tokens = self._device_ids[level][picked]
        rows = max(1, _MAX_LOGITS // self._head.vocabulary)
        parts = []
        for start in range(0, len(states), rows):
            logits = self._head.logits(states[start : start + rows])
            mine = slice(*np.searchsorted(owner, [start, start + rows]).tolist())
            local = parents[mine] - start
            parts.append(logits[local, tokens[mine]] - torch.logsumexp(logits, dim=-1)[local])
        return _checked(torch.cat(parts).double().cpu().numpy(), level)


def _checked(gains: np.ndarray, level: int) -> np.ndarray:
    if np.isnan(gains).any():
        raise LLMRecError(
            f"The model returned NaN at SID level {level}: nothing can be ranked.",
            hint="check the weights, or run the model in float32",
        )
    # A log-probability is never above 0, but its rounding can be; a search may rely on it as a bound.
    clipped: np.ndarray = np.minimum(gains, 0.0)
    return clipped


def _log_softmax_by_owner(values: np.ndarray, owner: np.ndarray) -> np.ndarray:
    """Log-softmax of each owner's run of values; of a single value exactly 0."""
    first = np.flatnonzero(np.diff(owner, prepend=-1))
    group = np.repeat(np.arange(len(first)), np.diff(first, append=len(values)))
    peak = np.maximum.reduceat(values, first)
    total = np.add.reduceat(np.exp(values - peak[group]), first)
    normalised: np.ndarray = values - peak[group] - np.log(total)[group]
    return normalised
