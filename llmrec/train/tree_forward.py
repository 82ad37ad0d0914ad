"""`TreeForward`: log-probabilities of many completions of a prompt from one differentiable forward.

Losses over groups of completions (GRPO, a DPO with several negatives) usually repeat the prompt once per completion.
Semantic IDs are a few tokens behind a prompt of hundreds, and they share prefixes. Here a prompt is one row: its tokens
once, then every distinct proper prefix of its completions once, as columns that see the prompt and their own ancestors
(`llmrec.decode.ancestor_mask`, the search's mask, here without a cache and with gradients). The last token of a
completion is no column: nothing is read from its state (`llmrec.train.prefix_tree`). Log-probabilities and gradients
equal those of a plain forward per completion; ``llmrec bench rl`` measures what it saves.

SID tokens are normalised as the search normalises them (`llmrec.decode.result.Normalise`): over the whole vocabulary,
over the codes of their level, or over the legal children of the trie. All other tokens are text, over the vocabulary,
and so are SID tokens in a thought (`TreeRow.text`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from llmrec.decode.ancestor_mask import layer_masks, read_attention
from llmrec.decode.result import NORMALISATIONS, Normalise
from llmrec.decode.scores import HeadRows, LMHead
from llmrec.decode.trie import Children, SIDTrie
from llmrec.errors import InputError, LLMRecError
from llmrec.sid_vocab.table import SIDTable
from llmrec.train.prefix_tree import PackedTrees, TreeRow, pack

_MAX_LOGITS = 1 << 25
"""Vocabulary logits kept for the backward (128 MB in fp32); beyond that, chunks are made again in the backward."""


@dataclass(frozen=True)
class TreeLogProbs:
    """What `TreeForward` returns; completions of all rows stand one after the other.

    Attributes:
        tokens: (completions, longest) float32 log-probability of each token, 0 where there is none.
        mask: (completions, longest) bool, where there is a token.
        row: (completions,) int64, the row of each completion.
        entropy: (completions, longest) entropy in nats of what each token was drawn from, without gradient; None where
            it was not asked for.
    """

    tokens: Tensor
    mask: Tensor
    row: Tensor
    entropy: Tensor | None = None

    @property
    def sums(self) -> Tensor:
        """(completions,) log-probability of each completion."""
        return self.tokens.sum(dim=1)


class TreeForward:
    """Scores completions by the model given at construction; see the module's docstring.

    Args:
        model: a causal LM or PEFT model with "sdpa" or "eager" attention, in whatever mode it is.
        normalise: of SID tokens.
        table: the SIDs, with token ids; needed by "level" and "legal".
        trie: the catalogue as the search sees it, in rows of `table`; needed by "legal".
        temperature: logits are divided by it, as `llmrec.decode.sample` does: with "legal" the log-probabilities are
            then those of the draws.

    Raises:
        InputError: a setting that lacks its table or trie, or a model whose attention takes no ancestor mask.
    """

    def __init__(
        self,
        model: Any,
        *,
        normalise: Normalise = "vocab",
        table: SIDTable | None = None,
        trie: SIDTrie | None = None,
        temperature: float = 1.0,
    ) -> None:
        if normalise not in NORMALISATIONS:
            raise InputError(f"normalise is {normalise!r}; known are {', '.join(NORMALISATIONS)}.")
        if not 0 < temperature < np.inf:
            raise InputError(f"temperature must be a positive number; given {temperature}.")
        self._model = model
        self._attention = read_attention(model)
        self._head = LMHead(model)
        self._temperature = temperature
        self._trie: SIDTrie | None = None
        self._level_ids: list[np.ndarray] = []
        if normalise != "vocab":
            if table is None or table.token_ids is None:
                raise InputError(f'normalise "{normalise}" needs a SID table with token ids.')
            self._level_ids = [np.asarray(ids, dtype=np.int64) for ids in table.token_ids]
        if normalise == "legal":
            if trie is None:
                raise InputError('normalise "legal" needs the trie of the catalogue.')
            self._trie = trie
        self._bounds = np.cumsum([0, *map(len, self._level_ids)])
        highest = max((int(ids.max()) for ids in self._level_ids), default=-1)
        self._level = np.full(highest + 2, -1, dtype=np.int64)  # the last place stands for all other tokens
        self._code = np.zeros(highest + 2, dtype=np.int64)
        for level, ids in enumerate(self._level_ids):
            self._level[ids], self._code[ids] = level, np.arange(len(ids))

    def __call__(self, rows: Sequence[TreeRow], *, entropy: bool = False) -> TreeLogProbs:
        """Log-probabilities of all completions of `rows`, from one forward.

        Raises:
            InputError: an empty prompt or completion, or with "legal" a SID that the search could not have returned.
            LLMRecError: the model returned NaN.
        """
        packed = pack(rows)
        device = self._head.device
        decoder = self._model.get_decoder()
        states = decoder(
            input_ids=torch.from_numpy(packed.ids).to(device),
            position_ids=torch.from_numpy(packed.positions).to(device),
            attention_mask=layer_masks(
                self._attention,
                torch.from_numpy(packed.visible).to(device),
                packed.positions,
                packed.positions,
                decoder.dtype,
            ),
            use_cache=False,
        ).last_hidden_state
        there = packed.tokens >= 0
        place = packed.row[:, None] * packed.ids.shape[1] + packed.column  # of the state, rows one after the other
        legal = None if self._trie is None else self._legal_codes(rows, packed)
        kinds = self._kinds(packed)
        values, entropies = self._scores(
            states.flatten(0, 1), packed.tokens[there], kinds[there], place[there], legal, entropy
        )
        if torch.isnan(values).any():
            raise LLMRecError(
                "The model returned NaN: no completion can be scored.",
                hint="check the weights, or run the model in float32",
            )
        mask = torch.from_numpy(there).to(device)
        grid = values.new_zeros(mask.shape)
        return TreeLogProbs(
            tokens=grid.masked_scatter(mask, values),
            mask=mask,
            row=torch.from_numpy(packed.row).to(device),
            entropy=grid.masked_scatter(mask, entropies) if entropy else None,
        )

    def _kinds(self, packed: PackedTrees) -> np.ndarray:
        """(completions, longest) the level over whose codes each token is normalised, -1 for text."""
        levels: np.ndarray = self._level[np.minimum(packed.tokens, len(self._level) - 1)]
        return np.where(packed.text, -1, levels)

    def _scores(
        self,
        states: Tensor,
        tokens: np.ndarray,
        kinds: np.ndarray,
        places: np.ndarray,
        legal: dict[int, np.ndarray] | None,
        entropy: bool,
    ) -> tuple[Tensor, Tensor]:
        """(m,) log-probabilities of `tokens` of `kinds` behind ``states[places]``, and the entropies.

        Text comes first, then one level after the other; each state is read once, however many tokens follow it.
        """
        found: list[tuple[Tensor, Tensor]] = []
        order = np.argsort(kinds, kind="stable")
        head: HeadRows | None = None
        for level in np.unique(kinds).tolist():
            mine = order[kinds[order] == level]
            parents, owner = np.unique(places[mine], return_inverse=True)
            read = states[torch.from_numpy(parents).to(states.device)]
            if level < 0:
                found.append(self._over_vocabulary(read, owner, tokens[mine], entropy=entropy))
                continue
            if head is None:
                head = self._head.rows(torch.from_numpy(np.concatenate(self._level_ids)).to(states.device))
            start, end = self._bounds[level : level + 2].tolist()
            logits = self._head.row_logits(read, head.slice(start, end)) / self._temperature
            if legal is not None:
                banned = np.ones((len(parents), end - start), dtype=bool)
                for row, parent in zip(banned, parents.tolist(), strict=True):
                    row[legal[parent]] = False
                logits = logits.masked_fill(torch.from_numpy(banned).to(states.device), -torch.inf)
            found.append(_picked(logits, owner, self._code[tokens[mine]], entropy=entropy))
        back = torch.from_numpy(np.argsort(order)).to(states.device)
        return torch.cat([each[0] for each in found])[back], torch.cat([each[1] for each in found])[back]

    def _over_vocabulary(
        self, states: Tensor, owner: np.ndarray, tokens: np.ndarray, *, entropy: bool
    ) -> tuple[Tensor, Tensor]:
        """Log-probabilities of `tokens` (m,) behind ``states[owner]``, and the entropies."""
        chunk = max(1, _MAX_LOGITS // self._head.vocabulary)
        order = np.argsort(owner, kind="stable")
        pieces: list[tuple[Tensor, Tensor]] = []
        for start in range(0, len(states), chunk):
            mine = order[slice(*np.searchsorted(owner[order], [start, start + chunk]).tolist())]

            def score(part: Tensor, local: np.ndarray = owner[mine] - start, of: np.ndarray = tokens[mine]) -> Any:
                return _picked(self._head.logits(part) / self._temperature, local, of, entropy=entropy)

            part = states[start : start + chunk]
            pieces.append(score(part) if len(states) <= chunk else checkpoint(score, part, use_reentrant=False))
        back = torch.from_numpy(np.argsort(order)).to(states.device)
        return torch.cat([each[0] for each in pieces])[back], torch.cat([each[1] for each in pieces])[back]

    def _legal_codes(self, rows: Sequence[TreeRow], packed: PackedTrees) -> dict[int, np.ndarray]:
        """The legal codes behind every state that predicts a SID token, by the state's place."""
        assert self._trie is not None
        found: dict[int, Children] = {}
        width = packed.ids.shape[1]
        kinds = self._kinds(packed)
        for number, (row, tokens, columns) in enumerate(zip(packed.row, packed.tokens, packed.column, strict=True)):
            node = 0
            for token, level, column in zip(
                tokens[tokens >= 0].tolist(), kinds[number].tolist(), columns.tolist(), strict=False
            ):
                if level < 0:
                    continue
                place = int(row) * width + column
                if place not in found:
                    parent = np.array([node if level else 0])
                    found[place] = self._trie.children(level, parent, rows[int(row)].allowed)
                next_node = found[place].node[found[place].code == self._code[token]]
                if not len(next_node):
                    raise InputError(
                        f"Completion {number} has a SID that the search could not have returned: code "
                        f"{self._code[token]} at level {level} leads to no living item that its row allows.",
                        hint='score such completions with normalise "level" or "vocab"',
                    )
                node = int(next_node[0])
        return {place: children.code for place, children in found.items()}


def _picked(logits: Tensor, owner: np.ndarray, which: np.ndarray, *, entropy: bool) -> tuple[Tensor, Tensor]:
    """(m,) log-softmax of ``logits[owner, which]``, and the entropies behind them, zeros if not asked for."""
    rows, picked = (torch.from_numpy(each).to(logits.device) for each in (owner, which))
    values = logits[rows, picked] - torch.logsumexp(logits, dim=-1)[rows]
    if not entropy:
        return values, torch.zeros_like(values)
    with torch.no_grad():
        return values, torch.special.entr(torch.softmax(logits, dim=-1)).sum(dim=-1)[rows]
