"""vLLM's own ``LLM.beam_search``, in a process of its own: one process holds one vLLM engine well, ours is another.

    python -m llmrec.bench.vllm_beam_peer MODEL_FOLDER

Reads requests from stdin and answers on stdout, a JSON object a line: ``{"prompts", "width", "tokens"}`` gives
``{"cpu_s", "sequences"}``, the sequences of every prompt without the prompt.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time


def main(folder: str) -> None:
    """Answer until stdin ends."""
    answers = sys.stdout
    # One process, one thread, nothing compiled: as our side runs.
    os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_NO_USAGE_STATS="1", TORCHDYNAMO_DISABLE="1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    with contextlib.redirect_stdout(sys.stderr):
        import torch
        from vllm import LLM
        from vllm.sampling_params import BeamSearchParams

        torch.set_num_threads(1)
        llm = LLM(
            model=folder,
            dtype="bfloat16",
            max_model_len=256,
            block_size=32,
            enforce_eager=True,
            kv_cache_memory_bytes=1 << 30,
            max_logprobs=128,
        )
    for line in sys.stdin:
        asked = json.loads(line)
        with contextlib.redirect_stdout(sys.stderr):
            llm.reset_prefix_cache()
            start = time.process_time()
            outputs = llm.beam_search(
                [{"prompt_token_ids": prompt} for prompt in asked["prompts"]],
                BeamSearchParams(beam_width=asked["width"], max_tokens=asked["tokens"], ignore_eos=True),
            )
            seconds = time.process_time() - start
        found = [[list(one.tokens[-asked["tokens"] :]) for one in output.sequences] for output in outputs]
        print(json.dumps({"cpu_s": seconds, "sequences": found}), file=answers, flush=True)
    llm.llm_engine.engine_core.shutdown()


if __name__ == "__main__":
    main(sys.argv[1])
