"""`SearchConformance`: what every search back end must hold. A new back end subclasses it and implements `search`.

    class TestTorchSearch(SearchConformance):
        def search(self, world, prompts, *, num_beams, top_k, excluded): ...

`search_world` makes the model, catalogue and prompts; it is also what the decode tests are built on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmrec.decode.reference import Oracle
from llmrec.decode.result import Normalise, SearchResult
from llmrec.decode.trie import SIDTrie
from llmrec.testing.worlds import Family, tiny_model, tiny_tokenizer


@dataclass(frozen=True)
class SearchWorld:
    """A model whose vocabulary ends with SID tokens, and the catalogue they spell.

    Attributes:
        model: fp32, evaluation mode, its next-token distribution far from uniform.
        codes: (n, L) SIDs; some items share one.
        token_ids: per level the ids of the codes' tokens.
        prompts: token ids of different lengths.
    """

    model: Any
    codes: np.ndarray
    codebook_sizes: tuple[int, ...]
    token_ids: tuple[np.ndarray, ...]
    prompts: tuple[tuple[int, ...], ...]

    def trie(self, alive: np.ndarray | None = None) -> SIDTrie:
        """The trie of the catalogue."""
        return SIDTrie.build(self.codes, self.codebook_sizes, alive)

    def oracle(self, normalise: Normalise = "vocab", alive: np.ndarray | None = None) -> Oracle:
        """The reference for the catalogue."""
        return Oracle(self.model, self.codes, self.token_ids, alive=alive, normalise=normalise)


def search_world(
    family: Family = "llama",
    *,
    tied: bool = True,
    codebook_sizes: Sequence[int] = (8, 6, 4),
    num_items: int = 40,
    prompt_lengths: Sequence[int] = (3, 11, 24),
    seed: int = 0,
) -> SearchWorld:
    """A tiny model with random weights (sharpened, so that scores differ) and a random catalogue."""
    import torch

    rng = np.random.default_rng(seed)
    tokenizer = tiny_tokenizer()
    names = [f"<{'abcdefgh'[level]}_{code}>" for level, size in enumerate(codebook_sizes) for code in range(size)]
    tokenizer.add_tokens(names)
    ids = np.array(tokenizer.convert_tokens_to_ids(names), dtype=np.int64)
    # Codes need not stand in the order of their tokens: a search that mixes both up must fail.
    token_ids = tuple(rng.permutation(part) for part in np.split(ids, np.cumsum(codebook_sizes)[:-1]))
    model = tiny_model(tokenizer, family, tied=tied, seed=seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(8.0)
    codes = np.stack([rng.integers(0, size, num_items) for size in codebook_sizes], axis=1)
    codes[-3:] = codes[:3]  # shared SIDs
    prompts = tuple(tuple(rng.integers(3, len(tokenizer), length).tolist()) for length in prompt_lengths)
    return SearchWorld(model, codes, tuple(codebook_sizes), token_ids, prompts)


def assert_same_ranking(found: SearchResult, expected: SearchResult, *, tolerance: float = 1e-4) -> None:
    """The same scores within `tolerance`, and the same items up to items whose scores are that close."""
    np.testing.assert_allclose(found.scores, expected.scores, atol=tolerance, rtol=0)
    for place, (ours, theirs) in enumerate(zip(found.items, expected.items, strict=True)):
        if ours != theirs:
            near = np.flatnonzero(np.abs(expected.scores - found.scores[place]) <= tolerance)
            at_the_cut = place in near and len(expected.scores) - 1 in near
            assert ours in expected.items[near] or at_the_cut, f"place {place}: {ours} instead of {theirs}"


class SearchConformance:
    """Every beam exists; the ranking equals the reference's."""

    normalise: Normalise = "vocab"

    def search(
        self,
        world: SearchWorld,
        prompts: Sequence[Sequence[int]],
        *,
        num_beams: int,
        top_k: int,
        excluded: Sequence[np.ndarray | None] | None = None,
        alive: np.ndarray | None = None,
    ) -> list[SearchResult]:
        """Run the back end's beam search, normalised as `normalise` says."""
        raise NotImplementedError

    def test_every_beam_exists(self) -> None:
        """Rows are living items of the table, distinct, none excluded, best first, and k of them."""
        world = search_world(seed=1)
        alive = np.arange(len(world.codes)) % 4 != 0
        excluded = [np.array([1, 2, 3, 38]), None, np.array([5])]
        for result, rows in zip(
            self.search(world, world.prompts, num_beams=12, top_k=12, excluded=excluded, alive=alive),
            excluded,
            strict=True,
        ):
            assert len(result.items) == 12
            assert len(set(result.items.tolist())) == 12
            assert alive[result.items].all()
            assert not np.isin(result.items, [] if rows is None else rows).any()
            assert (np.diff(result.scores) <= 0).all()
            assert result.normalise == self.normalise

    def test_equals_the_reference(self) -> None:
        """The same ranking as a beam search of the same width without trie, cache or batching."""
        world = search_world(seed=2)
        oracle = world.oracle(self.normalise)
        excluded = [None, np.arange(0, 40, 3), np.array([7])]
        for prompt, result, rows in zip(
            world.prompts,
            self.search(world, world.prompts, num_beams=6, top_k=6, excluded=excluded),
            excluded,
            strict=True,
        ):
            expected = oracle.beam(prompt, num_beams=6, top_k=6, excluded=None if rows is None else rows.tolist())
            assert_same_ranking(result, expected)

    def test_fewer_items_than_asked_for(self) -> None:
        """All living items come back, and no more."""
        world = search_world(seed=3)
        alive = np.zeros(len(world.codes), dtype=bool)
        alive[[4, 9, 11]] = True
        (result,) = self.search(world, world.prompts[:1], num_beams=10, top_k=10, excluded=[np.array([9])], alive=alive)
        assert sorted(result.items.tolist()) == [4, 11]

    def test_nothing_left(self) -> None:
        """A prompt whose items are all excluded gets an empty result, its neighbours theirs."""
        world = search_world(seed=4)
        everything = np.arange(len(world.codes))
        empty, full = self.search(world, world.prompts[:2], num_beams=5, top_k=5, excluded=[everything, None])
        assert empty.items.size == 0
        assert full.items.size == 5
