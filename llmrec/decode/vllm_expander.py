"""`VLLMExpander`: prefixes become one-token requests, and what vLLM answers becomes scores of their children."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmrec.decode.expander import Expansion, Wanted
from llmrec.decode.result import Normalise
from llmrec.decode.trie import SIDTrie
from llmrec.decode.trie_filter import RowFilter
from llmrec.decode.vllm_engine import Engine, Request
from llmrec.decode.vllm_request import mask_args, packed
from llmrec.errors import LLMRecError


@dataclass(frozen=True)
class _Parent:
    """A prefix to expand, with its living children.

    Attributes:
        place: its place among what is wanted of its prompt.
        path: the tokens behind the prompt.
        node: (m,) children, ascending.
        token: (m,) the token of each.
    """

    place: int
    level: int
    path: list[int]
    node: np.ndarray
    token: np.ndarray


class VLLMExpander:
    """Scores children of prefixes through vLLM (an `Expander`); `VLLMBackend.open` makes one.

    Args:
        engine: where the requests go.
        adapter: the adapter that answers, None for the model itself.
        prompts: token ids.
        trie: the items that exist.
        token_ids: per level the token id of each code.
        normalise: what probabilities are normalised over.
    """

    def __init__(
        self,
        engine: Engine,
        adapter: str | None,
        prompts: Sequence[list[int]],
        trie: SIDTrie,
        token_ids: Sequence[np.ndarray],
        normalise: Normalise,
    ) -> None:
        self.trie, self.normalise = trie, normalise
        self._engine, self._adapter, self._prompts = engine, adapter, prompts
        self._token_ids = [np.asarray(ids, dtype=np.int64) for ids in token_ids]
        self._levels = [packed(ids) for ids in self._token_ids]
        self._rounds = 0

    @property
    def num_prompts(self) -> int:
        """Prompts of the batch."""
        return len(self._prompts)

    @property
    def num_forwards(self) -> int:
        """Rounds of requests, the one that reads the prompts included."""
        return self._rounds

    def expand(
        self, wanted: Sequence[Wanted], filters: Sequence[RowFilter | None], top: int | None = None
    ) -> list[Expansion]:
        """See `Expander.expand`. `top` is worth giving: it is what vLLM sends back for each prefix."""
        parents = [self._parents(*each, allowed) for each, allowed in zip(wanted, filters, strict=True)]
        # Under "legal" a lone child has probability 1, whatever the model says.
        fewest = 2 if self.normalise == "legal" else 1
        asked = [(row, parent) for row, each in enumerate(parents) for parent in each if len(parent.node) >= fewest]
        outputs = iter(self._engine.run([self._request(row, parent, top) for row, parent in asked]))
        self._rounds += bool(asked)
        return [
            _expansion(
                [(parent, _scores(parent, next(outputs)) if len(parent.node) >= fewest else None) for parent in each]
            )
            for each in parents
        ]

    def _parents(self, levels: np.ndarray, nodes: np.ndarray, allowed: RowFilter | None) -> list[_Parent]:
        """Prefixes with living children, in the order of their places."""
        parents = []
        for level in map(int, np.unique(levels)):
            places = np.flatnonzero(levels == level)
            found = self.trie.children(level, nodes[places], allowed)
            codes = self.trie.paths(level, nodes[places])
            paths = [self._token_ids[depth][codes[:, depth]] for depth in range(level)]
            cuts = np.searchsorted(found.owner, np.arange(1, len(places)))
            for parent in zip(
                places.tolist(),
                np.stack(paths, axis=1).tolist() if paths else [[]] * len(places),
                np.split(found.node, cuts),
                np.split(self._token_ids[level][found.code], cuts),
                strict=True,
            ):
                place, path, node, token = parent
                if len(node):
                    parents.append(_Parent(place, level, path, node, token))
        return sorted(parents, key=lambda parent: parent.place)

    def _request(self, row: int, parent: _Parent, top: int | None) -> Request:
        legal = packed(parent.token)
        over = {"vocab": None, "level": self._levels[parent.level], "legal": legal}[self.normalise]
        params: dict[str, Any] = {
            "max_tokens": 1,
            "temperature": 0.0,
            "logprobs": len(parent.node) if top is None else min(top, len(parent.node)),
            "flat_logprobs": True,
            "extra_args": mask_args(legal, over),
        }
        return Request(self._prompts[row] + parent.path, params, self._adapter)


def _scores(parent: _Parent, output: Any) -> tuple[np.ndarray, np.ndarray]:
    """Places of the returned children among the parent's, ascending, and their log-probabilities.

    Raises:
        LLMRecError: the model returned NaN.
    """
    # vLLM puts the chosen token first, and then the best ones, that token among them.
    token = np.array(output.logprobs.token_ids[1:], dtype=np.int64)
    gain = np.array(output.logprobs.logprobs[1:], dtype=np.float64)
    if np.isnan(gain).any():
        raise LLMRecError(
            f"The model returned NaN at SID level {parent.level}: nothing can be ranked.",
            hint="check the weights, or run the model in float32",
        )
    by_token = np.argsort(parent.token)
    child = by_token[np.searchsorted(parent.token[by_token], token)]
    order = np.argsort(child)
    return child[order], np.minimum(gain[order], 0.0)  # a rounded sum of probabilities may fall short of 1


def _expansion(scored: Sequence[tuple[_Parent, tuple[np.ndarray, np.ndarray] | None]]) -> Expansion:
    """The children of one prompt's prefixes; those without scores are lone children."""
    owners, nodes, gains = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], [np.zeros(0)]
    for parent, scores in scored:
        child, gain = (np.zeros(1, np.int64), np.zeros(1)) if scores is None else scores
        owners.append(np.full(len(child), parent.place))
        nodes.append(parent.node[child].astype(np.int64))
        gains.append(gain)
    return Expansion(np.concatenate(owners), np.concatenate(nodes), np.concatenate(gains))
