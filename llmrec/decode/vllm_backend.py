"""The vLLM back end: the same searches, driven level by level through vLLM.

Every prefix that a search wants to expand becomes one request for one token. vLLM's prefix caching shares the prompt
between the beams, a mask inside the engine (`llmrec.decode.vllm_masks`) turns logits into scores of the legal tokens,
and they come back as log-probabilities. Trie and filters stay here. vLLM's own beam search is no way to do this: it
takes the best 2K tokens *before* any mask, so that beams starve, and it ignores logits processors.

    backend = VLLMBackend.load(folder, adapters={"fashion": path, "books": other})
    searcher = Searcher(backend.with_adapter("books"), trie, table.token_ids)

Searches agree with torch in float32 (decision 0008). A process with vLLM inside is for serving: vLLM freezes torch's
number of threads and seeds the random generators, so nothing should be trained there. Not yet run on a GPU.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from llmrec.decode.result import NORMALISATIONS, Generated, Normalise
from llmrec.decode.trie import SIDTrie
from llmrec.decode.vllm_engine import Engine, EngineDType, Request
from llmrec.decode.vllm_expander import VLLMExpander
from llmrec.errors import InputError

Prompt = Sequence[int] | np.ndarray


class VLLMBackend:
    """A model inside vLLM that can be searched (a `Backend`); `VLLMBackend.load` makes one.

    Attributes:
        adapter: the adapter that answers; None for the model itself.
    """

    def __init__(self, engine: Engine, adapter: str | None = None) -> None:
        self.adapter = adapter
        self._engine = engine

    @classmethod
    def load(
        cls,
        folder: Path,
        *,
        dtype: EngineDType = "auto",
        adapters: Mapping[str, Path] | None = None,
        max_model_len: int = 2048,
        cache_gb: float | None = None,
        max_num_seqs: int = 256,
    ) -> VLLMBackend:
        """Start vLLM in this process.

        ``VLLM_ENABLE_V1_MULTIPROCESSING=0``, ``VLLM_LOGGING_LEVEL=ERROR`` and ``VLLM_NO_USAGE_STATS=1`` are set where
        the environment leaves them unset.

        Args:
            folder: a full model in safetensors, with the SID rows in its vocabulary: a merged checkpoint, or the
                extended base of `adapters`.
            dtype: "auto" is bfloat16 where the hardware computes it natively, else float32.
            adapters: PEFT folders by name, plain LoRA on that base; all are served together.
            max_model_len: tokens that a prompt and its SID (or text) may have, at most what the model can read. More
                needs more cache.
            cache_gb: memory for keys and values; None is 1 on a CPU and vLLM's own choice on a GPU.
            max_num_seqs: prefixes that go through the model together.

        Raises:
            InputError: no such model, or an adapter that vLLM cannot serve: each is named, with its reasons.
            EnvironmentProblem: vLLM is not installed.
            LLMRecError: another engine runs in this process.
        """
        return cls(
            Engine.load(
                Path(folder),
                dtype=dtype,
                adapters={name: Path(path) for name, path in (adapters or {}).items()},
                max_model_len=max_model_len,
                cache_gb=cache_gb,
                max_num_seqs=max_num_seqs,
            )
        )

    @property
    def block_size(self) -> int:
        """Tokens of a cache block; see `llmrec.decode.vllm_request.aligned_window`."""
        return self._engine.block_size

    def with_adapter(self, name: str | None) -> VLLMBackend:
        """The same engine, answering with another adapter; None is the model itself."""
        if name is not None and name not in self._engine.adapters:
            known = ", ".join(self._engine.adapters) or "none"
            raise InputError(f"There is no adapter {name!r}; known are: {known}.", hint="give it to VLLMBackend.load")
        return VLLMBackend(self._engine, name)

    def open(
        self,
        prompts: Sequence[Prompt],
        trie: SIDTrie,
        token_ids: Sequence[np.ndarray],
        normalise: Normalise,
        *,
        reserve: int = 64,
    ) -> VLLMExpander:
        """See `Backend.open`. Nothing is computed yet: vLLM reads a prompt with its first request."""
        del reserve  # vLLM allocates block by block
        if normalise not in NORMALISATIONS:
            raise InputError(f"normalise is {normalise!r}; known are {', '.join(NORMALISATIONS)}.")
        if tuple(len(ids) for ids in token_ids) != tuple(trie.codebook_sizes):
            raise InputError(
                f"The token ids cover codebooks of {[len(ids) for ids in token_ids]} codes, "
                f"the trie has {list(trie.codebook_sizes)}."
            )
        highest = max(int(ids.max()) for ids in token_ids)
        if highest >= self._engine.vocabulary:
            raise InputError(
                f"SID token {highest} lies outside of the model's vocabulary of {self._engine.vocabulary}.",
                hint="extend the model's vocabulary with the table's tokens first",
            )
        read = self._checked(prompts, trie.num_levels)
        return VLLMExpander(self._engine, self.adapter, read, trie, token_ids, normalise)

    def known_tokens(self, prompt: Prompt) -> int:
        """See `Backend.known_tokens`. vLLM pads nothing, so no order of prompts is better than another: always 0."""
        del prompt
        return 0

    def generate_text(
        self,
        prompts: Sequence[Prompt],
        *,
        max_new_tokens: int,
        stop_token_ids: Sequence[int] = (),
        temperature: float = 0.0,
        seed: int | None = None,
    ) -> list[Generated]:
        """Let the model write, unconstrained.

        Args:
            prompts: token ids.
            max_new_tokens: tokens per prompt at most.
            stop_token_ids: tokens that end a text, the end-of-text token among them if it shall.
            temperature: 0 takes the most likely token each time; at most 2.
            seed: prompt i draws with ``seed + i``; None draws differently each time.

        Raises:
            InputError: `max_new_tokens` or `temperature` cannot be used, or a prompt is empty, too long or has unknown
                tokens.
        """
        if max_new_tokens < 1 or not 0 <= temperature <= 2:
            raise InputError(
                "max_new_tokens must be at least 1 and temperature lie in 0..2; "
                f"given {max_new_tokens} and {temperature}."
            )
        params = {"max_tokens": max_new_tokens, "temperature": temperature, "stop_token_ids": list(stop_token_ids)}
        requests = [
            Request(prompt, params | {"seed": None if seed is None else seed + place}, self.adapter)
            for place, prompt in enumerate(self._checked(prompts, max_new_tokens))
        ]
        return [
            Generated(np.array(output.token_ids, dtype=np.int64), output.finish_reason)
            for output in self._engine.run(requests)
        ]

    def forget(self) -> None:
        """Drop all cached prefixes: the next prompt is read from its first token, as a measurement may want it."""
        self._engine.forget()

    def close(self) -> None:
        """Stop the engine and free its memory, for all adapters."""
        self._engine.close()

    def _checked(self, prompts: Sequence[Prompt], reserve: int) -> list[list[int]]:
        """Prompts as lists, each with room for `reserve` more tokens."""
        read = [np.asarray(prompt, dtype=np.int64) for prompt in prompts]
        longest = self._engine.max_model_len - reserve
        for place, ids in enumerate(read):
            if not 0 < len(ids) <= longest:
                raise InputError(
                    f"Prompt {place} has {len(ids)} tokens; it must have 1 to {longest}, so that {reserve} more fit.",
                    hint="cut the history, or load the back end with a larger max_model_len",
                )
            if ids.min() < 0 or ids.max() >= self._engine.vocabulary:
                raise InputError(
                    f"Prompt {place} has tokens {ids.min()}..{ids.max()}; "
                    f"the model knows 0..{self._engine.vocabulary - 1}."
                )
        return [ids.tolist() for ids in read]
