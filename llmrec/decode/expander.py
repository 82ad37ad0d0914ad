"""The seam between searches and models: a search asks for the living children of prefixes, an `Expander` scores them.

Beam, exact, sampling and diverse search are written against `Expander` alone, so that every back end (torch, vLLM)
has all of them, and every one of them is compared with the same oracle.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from llmrec.decode.result import Generated, Normalise
from llmrec.decode.trie import SIDTrie
from llmrec.decode.trie_filter import RowFilter

Wanted = tuple[np.ndarray, np.ndarray]
"""Prefixes of one prompt: their levels and their nodes, two (n,) arrays; level 0 is the prompt itself."""


@dataclass(frozen=True)
class Expansion:
    """Living children of the prefixes of one prompt, flat.

    Attributes:
        owner: (m,) place of the parent among the prefixes that were asked for, ascending.
        node: (m,) child node, one level below its parent.
        gain: (m,) float64 log-probability of the child given its parent, never above 0.
    """

    owner: np.ndarray
    node: np.ndarray
    gain: np.ndarray


class Expander(Protocol):
    """A batch of prompts that a model has read and whose continuations can be searched."""

    trie: SIDTrie
    normalise: Normalise

    @property
    def num_prompts(self) -> int:
        """Prompts of the batch."""

    @property
    def num_forwards(self) -> int:
        """Forwards since the prompts were read."""

    def expand(
        self, wanted: Sequence[Wanted], filters: Sequence[RowFilter | None], top: int | None = None
    ) -> list[Expansion]:
        """Score the living children of prefixes, the prompts' together in as few forwards as possible.

        Args:
            wanted: per prompt the prefixes to expand; none at all is fine.
            filters: per prompt what may be returned, None where all living items may.
            top: the best `top` children of each parent suffice; None asks for all.
        """


class Backend(Protocol):
    """A model that can be searched."""

    def open(
        self,
        prompts: Sequence[Sequence[int] | np.ndarray],
        trie: SIDTrie,
        token_ids: Sequence[np.ndarray],
        normalise: Normalise,
        *,
        reserve: int = 64,
    ) -> Expander:
        """Read prompts.

        Args:
            prompts: token ids, none empty.
            trie: the items that exist.
            token_ids: per level the token id of each code.
            normalise: what probabilities are normalised over.
            reserve: prefixes per prompt that the search is going to read, for a back end that allocates.

        Raises:
            InputError: token ids that do not fit trie or model, or prompts that the model cannot read.
        """

    def known_tokens(self, prompt: Sequence[int] | np.ndarray) -> int:
        """Tokens at the start of a prompt that need no reading: prompts with much left to read are batched together."""

    def generate_text(
        self,
        prompts: Sequence[Sequence[int] | np.ndarray],
        *,
        max_new_tokens: int,
        stop_token_ids: Sequence[int] = (),
        temperature: float = 0.0,
        seed: int | None = None,
    ) -> list[Generated]:
        """Let the model write, unconstrained.

        Args:
            prompts: token ids, none empty.
            max_new_tokens: tokens per prompt at most.
            stop_token_ids: tokens that end a text.
            temperature: 0 takes the most likely token each time.
            seed: of the draws; None draws differently each time.
        """
