"""The loss over targets: text over the whole vocabulary, SIDs over the codes of their level where that is asked for.

In a behaviour sequence the level of every next token is known, and no token outside of it can follow. The "level" head
multiplies hidden states with the few rows of that level instead of the whole vocabulary: an LM head of 49k rows costs a
quarter of SmolLM2-135M's forward, and its gradient a pass over the embedding matrix. It is the loss of a model whose
scores are normalised over the level (``normalise="level"`` in `llmrec.decode`); the "vocab" head is the plain LM loss.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from llmrec.decode.scores import LMHead
from llmrec.sid_vocab.table import SIDTable
from llmrec.train.config import Head

_MAX_LOGITS = 1 << 25
"""Vocabulary logits made at a time (128 MB in fp32); the rest of the text targets follow in further chunks."""


@dataclass(frozen=True)
class TargetLoss:
    """Summed negative log-likelihoods of a batch, in nats, and how many tokens they are over."""

    sid: Tensor
    sid_tokens: int
    text: Tensor
    text_tokens: int

    @property
    def total(self) -> Tensor:
        """Sum over all targets."""
        return self.sid + self.text

    @property
    def tokens(self) -> int:
        """Number of all targets."""
        return self.sid_tokens + self.text_tokens


class TargetHead:
    """Turns hidden states into the loss of the targets they predict.

    Args:
        model: the causal LM or PEFT model that is trained.
        table: SIDs with token ids.
        head: normalisation of SID tokens.
    """

    def __init__(self, model: Any, table: SIDTable, head: Head) -> None:
        assert table.token_ids is not None
        self._head = LMHead(model)
        self._level_ids = [torch.from_numpy(np.array(ids)) for ids in table.token_ids]
        self._lookup = torch.full((int(max(ids.max() for ids in table.token_ids)) + 1,), -1, dtype=torch.long)
        for ids in self._level_ids:
            self._lookup[ids] = torch.arange(len(ids))
        self._by_level = head == "level"

    def __call__(self, states: Tensor, labels: Tensor, sid_level: Tensor) -> TargetLoss:
        """The loss of one batch.

        Args:
            states: (sequences, length, hidden) last hidden states; position t predicts token t + 1.
            labels: (sequences, length) token ids, `IGNORED` where there is no loss.
            sid_level: (sequences, length) level of each token, -1 for text.
        """
        states, labels, sid_level = states[:, :-1], labels[:, 1:], sid_level[:, 1:]
        wanted = labels != -100
        is_sid = wanted & (sid_level >= 0) if self._by_level else torch.zeros_like(wanted)
        sid = text = states.new_zeros((), dtype=torch.float32)
        if is_sid.any():
            rows = self._head.rows(torch.cat(self._level_ids).to(states.device))
            start = 0
            for level, ids in enumerate(self._level_ids):
                here = is_sid & (sid_level == level)
                codes = self._lookup.to(states.device)[labels[here]]
                logits = self._head.row_logits(states[here], rows.slice(start, start + len(ids)))
                sid = sid + functional.cross_entropy(logits, codes, reduction="sum")
                start += len(ids)
        plain = wanted & ~is_sid
        count = int(plain.sum())
        if count:
            chunk = max(1, _MAX_LOGITS // self._head.vocabulary)
            pairs = zip(torch.split(states[plain], chunk), torch.split(labels[plain], chunk), strict=True)
            for part, tokens in pairs:
                text = text + functional.cross_entropy(self._head.logits(part), tokens, reduction="sum")
        return TargetLoss(sid, int(is_sid.sum()), text, count)
