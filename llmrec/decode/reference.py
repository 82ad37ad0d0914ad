"""Plain, slow searches to compare the fast ones with: no cache, no trie, no batching, one full forward per prefix.

They share nothing with `SIDTrie`, `PrefixSession` or `ChildScorer`: sets of tuples and the model's own logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from llmrec.decode.result import Normalise, SearchResult

Path = tuple[int, ...]


class Oracle:
    """The catalogue and the model as a search over sets sees them.

    Args:
        model: a Hugging Face causal LM in evaluation mode.
        codes: (n, L) SIDs of all items.
        token_ids: per level the token id of each code.
        alive: (n,) bool, all living if None.
        normalise: as everywhere.
    """

    def __init__(
        self,
        model: Any,
        codes: np.ndarray,
        token_ids: Sequence[np.ndarray],
        *,
        alive: np.ndarray | None = None,
        normalise: Normalise = "vocab",
    ) -> None:
        self._model, self._token_ids, self._normalise = model, token_ids, normalise
        self._paths: list[Path] = [tuple(int(code) for code in row) for row in codes]
        self._alive = np.ones(len(codes), dtype=bool) if alive is None else alive
        self._num_forwards = 0

    def beam(
        self, prompt: Sequence[int], *, num_beams: int, top_k: int, excluded: Sequence[int] | None = None
    ) -> SearchResult:
        """A beam search of the given width; ties go to the lower code path."""
        legal = self._living(excluded)
        beams: list[tuple[float, Path]] = [(0.0, ())] if legal else []
        for _ in range(len(self._token_ids)):
            grown = [
                (score + gain, (*path, code))
                for score, path in beams
                for code, gain in self._children(prompt, path, legal).items()
            ]
            beams = sorted(grown, key=lambda beam: (-beam[0], beam[1]))[:num_beams]
        return self._result(beams, legal, top_k)

    def brute_force(self, prompt: Sequence[int], *, top_k: int, excluded: Sequence[int] | None = None) -> SearchResult:
        """Score every living item and sort."""
        legal = self._living(excluded)
        scores: dict[Path, float] = {(): 0.0}
        for level in range(len(self._token_ids)):
            for path in sorted({path[:level] for path in legal}):
                for code, gain in self._children(prompt, path, legal).items():
                    scores[*path, code] = scores[path] + gain
        ranked = sorted(((scores[path], path) for path in legal), key=lambda item: (-item[0], item[1]))
        return self._result(ranked, legal, top_k)

    def _living(self, excluded: Sequence[int] | None) -> dict[Path, list[int]]:
        """Rows by SID, without dead and excluded ones."""
        out = set() if excluded is None else {int(row) for row in excluded}
        legal: dict[Path, list[int]] = {}
        for row, path in enumerate(self._paths):
            if self._alive[row] and row not in out:
                legal.setdefault(path, []).append(row)
        return legal

    @torch.no_grad()
    def _children(self, prompt: Sequence[int], path: Path, legal: dict[Path, list[int]]) -> dict[int, float]:
        level = len(path)
        codes = sorted({other[level] for other in legal if other[:level] == path})
        ids = [*map(int, prompt), *(int(self._token_ids[depth][code]) for depth, code in enumerate(path))]
        logits = self._model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].float()
        self._num_forwards += 1
        own = torch.as_tensor(self._token_ids[level])
        if self._normalise == "vocab":
            values = torch.log_softmax(logits, dim=-1)[own[codes]]
        elif self._normalise == "level":
            values = torch.log_softmax(logits[own], dim=-1)[codes]
        else:
            values = torch.log_softmax(logits[own[codes]].double(), dim=-1)
        return dict(zip(codes, values.double().tolist(), strict=True))

    def _result(self, ranked: Sequence[tuple[float, Path]], legal: dict[Path, list[int]], top_k: int) -> SearchResult:
        items: list[int] = []
        scores: list[float] = []
        buckets: list[np.ndarray] = []
        bucket_of: list[int] = []
        for score, path in ranked:
            if len(items) >= top_k:
                break
            for row in legal[path]:
                items.append(row)
                scores.append(score)
                bucket_of.append(len(buckets))
            buckets.append(np.array(legal[path], dtype=np.int64))
        return SearchResult(
            items=np.array(items[:top_k], dtype=np.int64),
            scores=np.array(scores[:top_k], dtype=np.float64),
            bucket_of=np.array(bucket_of[:top_k], dtype=np.int64),
            buckets=tuple(buckets),
            normalise=self._normalise,
            num_forwards=self._num_forwards,
        )
