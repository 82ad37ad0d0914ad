"""`VLLMExpander`: prefixes become one-token requests, and what vLLM answers becomes scores of their children.

A prefix that leads to one item only has nothing left to choose. Its request writes the rest of the SID token by token,
and the deeper levels find their scores there. As vLLM keeps whole cache blocks, a request of the next level would
compute the beam's own tokens again; in the lower half of a sparse trie, where most prefixes are of this kind, that was
a third of a search's columns.
"""

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
from llmrec.decode.vllm_request import Step, mask_args, packed
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


@dataclass(frozen=True)
class _Link:
    """An only child: `token` leads from its parent to `node`, which stands on `level`."""

    level: int
    node: int
    token: int


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
        self._known: list[dict[tuple[int, int], float]] = [{} for _ in prompts]
        """Per prompt, by level and node: log-probabilities of only children that came with those of their parents."""

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
        only = [[self._only_gain(row, parent) for parent in each] for row, each in enumerate(parents)]
        asked = [
            (row, parent, chain)
            for row, (each, allowed) in enumerate(zip(parents, filters, strict=True))
            for parent, chain, gain in zip(each, self._chains(each, allowed), only[row], strict=True)
            if gain is None
        ]
        outputs = iter(self._engine.run([self._request(*one, top) for one in asked]))
        self._rounds += bool(asked)
        chains = (chain for _, _, chain in asked)
        expansions = []
        for row, each in enumerate(parents):
            scored = []
            for parent, gain in zip(each, only[row], strict=True):
                if gain is None:
                    logprobs = next(outputs).logprobs
                    self._remember(row, next(chains), logprobs)
                    scored.append((parent, *_scores(parent, logprobs)))
                else:
                    scored.append((parent, np.zeros(1, np.int64), np.array([gain])))
            expansions.append(_expansion(scored))
        return expansions

    def _only_gain(self, row: int, parent: _Parent) -> float | None:
        """The score of an only child that needs no request: under "legal" 0 whatever the model says, or known."""
        if len(parent.node) > 1:
            return None
        return 0.0 if self.normalise == "legal" else self._known[row].get((parent.level + 1, int(parent.node[0])))

    def _chains(self, parents: Sequence[_Parent], allowed: RowFilter | None) -> list[list[_Link]]:
        """For parents with an only child: that child's only child, and so on; nothing for the others."""
        chains: list[list[_Link]] = [[] for _ in parents]
        if self.normalise == "legal" or not self._engine.writes_chains:
            return chains
        for level in {parent.level + 1 for parent in parents if len(parent.node) == 1}:
            places = np.array([i for i, one in enumerate(parents) if len(one.node) == 1 and one.level + 1 == level])
            nodes = np.array([parents[place].node[0] for place in places])
            for depth in range(level, self.trie.num_levels):
                found = self.trie.children(depth, nodes, allowed)
                only = np.flatnonzero(np.bincount(found.owner, minlength=len(places)) == 1)
                at = np.searchsorted(found.owner, only)
                places, nodes = places[only], found.node[at]
                tokens = self._token_ids[depth][found.code[at]]
                for place, node, token in zip(places.tolist(), nodes.tolist(), tokens.tolist(), strict=True):
                    chains[place].append(_Link(depth + 1, node, token))
        return chains

    def _remember(self, row: int, chain: Sequence[_Link], logprobs: Any) -> None:
        """Keep the scores of a chain, which stand behind that of the request's first token."""
        for step, link in enumerate(chain, start=1):
            place = logprobs.start_indices[step] + 1  # behind the chosen token, which is the same one
            gain = _numbers(logprobs.logprobs[place : place + 1], link.level - 1)
            self._known[row][link.level, link.node] = float(gain[0])

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

    def _request(self, row: int, parent: _Parent, chain: Sequence[_Link], top: int | None) -> Request:
        steps = [self._step(parent.level, parent.token)]
        steps += [self._step(link.level - 1, np.array([link.token])) for link in chain]
        params: dict[str, Any] = {
            "max_tokens": len(steps),
            "temperature": 0.0,
            "logprobs": len(parent.node) if top is None else min(top, len(parent.node)),
            "flat_logprobs": True,
            "extra_args": mask_args(steps),
        }
        return Request(self._prompts[row] + parent.path, params, self._adapter)

    def _step(self, level: int, tokens: np.ndarray) -> Step:
        legal = packed(tokens)
        return legal, {"vocab": None, "level": self._levels[level], "legal": legal}[self.normalise]


def _scores(parent: _Parent, logprobs: Any) -> tuple[np.ndarray, np.ndarray]:
    """Places of the returned children among the parent's, ascending, and their log-probabilities."""
    # vLLM puts the chosen token first, and then the best ones, that token among them.
    end = logprobs.end_indices[0]
    token = np.array(logprobs.token_ids[1:end], dtype=np.int64)
    gain = _numbers(logprobs.logprobs[1:end], parent.level)
    by_token = np.argsort(parent.token)
    child = by_token[np.searchsorted(parent.token[by_token], token)]
    order = np.argsort(child)
    return child[order], gain[order]


def _numbers(gains: Sequence[float], level: int) -> np.ndarray:
    """Log-probabilities of one level. Raises LLMRecError where the model returned NaN."""
    gain = np.array(gains, dtype=np.float64)
    if np.isnan(gain).any():
        raise LLMRecError(
            f"The model returned NaN at SID level {level}: nothing can be ranked.",
            hint="check the weights, or run the model in float32",
        )
    return np.minimum(gain, 0.0)  # a rounded sum of probabilities may fall short of 1


def _expansion(scored: Sequence[tuple[_Parent, np.ndarray, np.ndarray]]) -> Expansion:
    """The children of one prompt's prefixes."""
    owners, nodes, gains = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], [np.zeros(0)]
    for parent, child, gain in scored:
        owners.append(np.full(len(child), parent.place))
        nodes.append(parent.node[child].astype(np.int64))
        gains.append(gain)
    return Expansion(np.concatenate(owners), np.concatenate(nodes), np.concatenate(gains))
