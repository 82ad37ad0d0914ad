"""This machine, for estimates: how fast it multiplies matrices, and what memory and disk are free."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

_GPU_SLOWER = 3.0  # a third of the peak: usual for training, not measured here


@dataclass(frozen=True)
class Machine:
    """What the estimate is made for."""

    name: str
    flops: float
    """Operations a second of a large matrix product."""
    on_gpu: bool
    free_memory: float
    """Bytes."""
    free_disk: float
    """Bytes."""

    def seconds(self, operations: float, hidden: int) -> float:
        """Time of a model's operations."""
        return operations / self.flops * self.slower(hidden)

    def slower(self, hidden: int) -> float:
        """How much longer a model of this width takes than large products with as many operations.

        Measured in float32 on one core with 140 GFLOP/s: SmolLM2-135M (hidden 576) with LoRA trained 119 tokens a
        second, factor 2.5; a Llama of 1.1M parameters (hidden 128) in full 7,800, factor 3.4.
        """
        return _GPU_SLOWER if self.on_gpu else 2.2 + 150 / hidden


def this_machine(runs: Path) -> Machine:
    """Speed and what is free: the GPU's if there is one, and the disk of `runs`."""
    import psutil
    import torch

    existing = next(parent for parent in (runs.absolute(), *runs.absolute().parents) if parent.exists())
    disk = shutil.disk_usage(existing).free
    if torch.cuda.is_available():
        size = 8192
        flops = 2 * size**3 / _gpu_seconds(size)
        return Machine(torch.cuda.get_device_name(), flops, True, torch.cuda.mem_get_info()[0], disk)
    size, threads = 1024, torch.get_num_threads()
    flops = 2 * size**3 / _cpu_seconds(size, threads)
    name = f"CPU, {threads} thread{'s' if threads > 1 else ''}"
    return Machine(name, flops, False, psutil.virtual_memory().available, disk)


def _cpu_seconds(size: int, threads: int, repeats: int = 8) -> float:
    """The best time of one square float32 product. CPU time counts where other programs hold the cores."""
    import torch

    left = torch.randn(size, size)
    left @ left  # chooses the kernel
    times = []
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        left @ left
        times.append(min(time.perf_counter() - wall, (time.process_time() - cpu) / threads))
    return min(times)


def _gpu_seconds(size: int, repeats: int = 5) -> float:
    """The best time of one square bfloat16 product: training runs under autocast there."""
    import torch

    left = torch.randn(size, size, device="cuda", dtype=torch.bfloat16)
    times = []
    for _ in range(repeats + 1):  # the first one chooses the kernel
        torch.cuda.synchronize()
        start = time.perf_counter()
        left @ left
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times[1:])
