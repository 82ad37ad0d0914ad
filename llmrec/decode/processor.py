"""`SIDLogitsProcessor`: the trie as a constraint for those who stay with Hugging Face's ``generate``.

    length = inputs["input_ids"].shape[1]
    processor = SIDLogitsProcessor(trie, token_ids, prompt_length=length, num_prompts=len(prompts))
    model.generate(**inputs, logits_processor=[processor], max_new_tokens=trie.num_levels, do_sample=False,
                   num_beams=20, num_return_sequences=20, top_k=0, repetition_penalty=1.0,
                   output_scores=True, return_dict_in_generate=True)

Two limits of ``generate`` that `Searcher` does not have: an instruct checkpoint's ``generation_config`` (top_k,
repetition_penalty …) bends the scores unless it is overridden as above; and where fewer legal continuations exist
than beams, ``generate`` fills up with beams of score -inf, which must be dropped.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from transformers import LogitsProcessor

from llmrec.decode.trie import SIDTrie
from llmrec.decode.trie_filter import Exclusion
from llmrec.errors import InputError


class SIDLogitsProcessor(LogitsProcessor):  # type: ignore[misc]  # transformers is untyped
    """Sets the score of every token to -inf that does not continue a SID with a living item.

    Args:
        trie: the items that exist.
        token_ids: per level the token id of each code.
        prompt_length: columns of ``input_ids`` before the first SID token (padding included).
        num_prompts: prompts in the batch; rows of one prompt stand together, as ``generate`` lays out its beams.
        excluded: per prompt rows of the table that may not be returned, or None.
    """

    def __init__(
        self,
        trie: SIDTrie,
        token_ids: Sequence[np.ndarray],
        prompt_length: int,
        num_prompts: int = 1,
        excluded: Sequence[np.ndarray | None] | None = None,
    ) -> None:
        rows = excluded if excluded is not None else [None] * num_prompts
        if len(rows) != num_prompts:
            raise InputError(f"{num_prompts} prompts, but exclusions for {len(rows)}.")
        self._exclusions: list[Exclusion | None] = [None if one is None else trie.exclusion(one) for one in rows]
        self._trie, self._prompt_length = trie, prompt_length
        self._token_ids = tuple(np.asarray(ids, dtype=np.int64) for ids in token_ids)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Mask `scores` (rows, vocabulary) for the next token of `input_ids` (rows, length)."""
        level = input_ids.shape[1] - self._prompt_length
        if not 0 <= level < self._trie.num_levels:
            raise InputError(
                f"A SID has {self._trie.num_levels} tokens, and this would be number {level + 1}.",
                hint="give the padded prompt's length as prompt_length and max_new_tokens=trie.num_levels",
            )
        generated = input_ids[:, self._prompt_length :].cpu().numpy()
        beams = len(generated) // len(self._exclusions)
        masked = torch.full_like(scores, -torch.inf)
        for prompt, exclusion in enumerate(self._exclusions):
            rows = np.arange(prompt * beams, (prompt + 1) * beams)
            nodes = np.zeros(beams, dtype=np.int64)
            for depth in range(level):
                codes = _codes(self._token_ids[depth], generated[rows, depth])
                nodes = self._trie.step(depth, nodes, codes)
                rows, nodes = rows[nodes >= 0], nodes[nodes >= 0]  # a dead row of a starved beam stays -inf
            found = self._trie.children(level, nodes, exclusion)
            where = (
                torch.from_numpy(rows[found.owner]).to(scores.device),
                torch.from_numpy(self._token_ids[level][found.code]).to(scores.device),
            )
            masked[where] = scores[where]
        return masked


def _codes(ids: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """The code of each token at a level, -1 for tokens of something else."""
    order = np.argsort(ids)
    place = np.minimum(np.searchsorted(ids[order], tokens), len(ids) - 1)
    codes: np.ndarray = np.where(ids[order][place] == tokens, order[place], -1)
    return codes
