"""What free text and thoughts are written with: a chain of tokens behind a prompt, and the choice of the next one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from llmrec.decode.scores import ChildScorer
from llmrec.decode.searcher import Searcher
from llmrec.decode.session import PrefixSession
from llmrec.decode.torch_backend import TorchBackend, TorchExpander
from llmrec.errors import InputError, LLMRecError

# Columns that are allocated at first: most answers are short, and a longer one costs a few copies.
_RESERVE = 128


class TokenChooser:
    """Chooses tokens from logits; the same seed and logits give the same tokens.

    Args:
        temperature: 0 takes the most probable token.
        top_p: draw from the smallest set of tokens that holds this much probability (nucleus sampling, Holtzman et
            al., ICLR 2020).
        seed: of the draws.

    Raises:
        InputError: a setting out of range.
    """

    def __init__(self, temperature: float, top_p: float, seed: int) -> None:
        if not (0 <= temperature < np.inf and 0 < top_p <= 1 and seed >= 0):
            raise InputError(
                f"Writing needs a temperature of at least 0, top_p in (0, 1] and a seed of at least 0; given "
                f"temperature={temperature}, top_p={top_p}, seed={seed}."
            )
        self._temperature, self._top_p = temperature, top_p
        self._rng = np.random.default_rng(seed)

    def choose(self, logits: np.ndarray, forbidden: np.ndarray) -> int:
        """A token.

        Args:
            logits: (vocabulary,) float32.
            forbidden: ids that may not be chosen.

        Raises:
            LLMRecError: the model returned NaN, or all tokens are forbidden.
        """
        logits[forbidden] = -np.inf
        best = int(logits.argmax())  # of NaNs the first
        if not np.isfinite(logits[best]):
            raise LLMRecError("The model gave no token a finite score.", hint="check the weights, or use float32")
        if self._temperature == 0:
            return best
        odds = np.exp((logits.astype(np.float64) - logits[best]) / self._temperature)
        order = np.argsort(-odds, kind="stable")[: int((odds > 0).sum())]
        mass = np.cumsum(odds[order]) / odds.sum()
        kept = order[: int(np.searchsorted(mass, self._top_p)) + 1]
        share = np.cumsum(odds[kept])
        place = np.searchsorted(share, self._rng.random() * share[-1], side="right")
        return int(kept[min(int(place), len(kept) - 1)])  # the product may round up to the whole


class TextChain:
    """One prompt and the tokens written behind it: a chain of columns, from whose end a search can branch off.

    Args:
        searcher: a torch back end, and the items that exist.
        prompt: token ids.
        max_new_tokens: how many tokens will be written at most; some are allocated at once.

    Attributes:
        session: the prompt and its columns.
        scorer: head and normalisation of searches.
        ids: all tokens written so far.
        unread: those of them that the model has not read yet.

    Raises:
        InputError: an empty prompt, or a searcher whose back end is not torch.
    """

    def __init__(self, searcher: Searcher, prompt: Sequence[int] | np.ndarray, *, max_new_tokens: int) -> None:
        backend = searcher.backend
        if not isinstance(backend, TorchBackend):
            raise InputError(
                f"Text with items is written by the torch back end; this one is a {type(backend).__name__}.",
                hint='open the checkpoint with engine="torch"',
            )
        self._head = backend.head
        self._trie = searcher.trie
        self.scorer = ChildScorer(backend.head, searcher.trie.codebook_sizes, searcher.token_ids, searcher.normalise)
        self.session = PrefixSession(
            backend.model, [prompt], reserve=min(_RESERVE, max_new_tokens), prefix_cache=backend.prefix_cache
        )
        self._state: Tensor = self.session.prompt_states  # (1, hidden), of the last token that was read
        self.unread: list[int] = []
        self.ids: list[int] = []

    def write(self, ids: Sequence[int]) -> None:
        """Add tokens; they are read when the next ones are asked for."""
        self.ids += ids
        self.unread += ids

    def read(self) -> Tensor:
        """(1, hidden) state behind the last token; one forward if there is something to read."""
        if self.unread:
            first = self.session.num_slots
            parents = np.arange(first - 1, first - 1 + len(self.unread))[None]
            self.accept(self.session.extend(parents, np.array([self.unread]))[:, -1])
        return self._state

    def accept(self, state: Tensor) -> None:
        """Take (1, hidden), the state of the last token: the session holds all that was unread."""
        self._state, self.unread = state, []

    @torch.no_grad()
    def logits(self) -> np.ndarray:
        """(vocabulary,) float32 logits of the next token."""
        logits: np.ndarray = self._head.logits(self.read())[0].cpu().numpy().copy()
        return logits

    def branch(self) -> TorchExpander:
        """An expander whose SIDs follow the last token; drop its columns with ``session.truncate`` afterwards."""
        state = self.read()
        root = np.array([self.session.num_slots - 1])
        return TorchExpander(self.session, self._trie, self.scorer, root=root, root_states=state)
