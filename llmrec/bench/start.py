"""Benchmark ``start``: how fast llmrec is there, and a SID table with it."""

from __future__ import annotations

import atexit
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from llmrec.bench.runner import Case
from llmrec.sid_vocab.table import SIDTable

NUM_LEVELS = 4
CODEBOOK_SIZE = 256

_BARE_APP = '''
import typer

app = typer.Typer(add_completion=False)

@app.command()
def hello(name: str) -> None:
    """Say hello."""

@app.command()
def goodbye(name: str) -> None:
    """Say goodbye."""

app()
'''


def cases(quick: bool) -> list[Case]:
    """Import, ``--help`` and loading a table of 100,000 items (20,000 with `quick`)."""
    folder = Path(tempfile.mkdtemp(prefix="llmrec-bench-"))
    atexit.register(shutil.rmtree, folder)
    bare = folder / "bare.py"
    bare.write_text(_BARE_APP, encoding="utf-8")
    table = make_table(20_000 if quick else 100_000)
    table.save(folder / "table")
    index = folder / "index.json"
    codes = table.codes.tolist()
    index.write_text(json.dumps(dict(zip(table.item_ids, codes, strict=True))), encoding="utf-8")
    return [
        Case("import", "ms", _process("-c", "import llmrec"), _process("-c", "import typer")),
        Case("help", "ms", _process("-m", "llmrec", "--help"), _process(str(bare), "--help")),
        Case(
            "table load",
            "ms",
            lambda: _milliseconds(lambda: SIDTable.load(folder / "table")),
            lambda: _milliseconds(lambda: read_index(index)),
        ),
    ]


def make_table(num_items: int, seed: int = 0) -> SIDTable:
    """A table with random codes and without codebooks."""
    codes = np.random.default_rng(seed).integers(0, CODEBOOK_SIZE, (num_items, NUM_LEVELS), dtype=np.int32)
    return SIDTable(
        item_ids=tuple(str(number) for number in range(num_items)),
        codes=codes,
        codebook_sizes=(CODEBOOK_SIZE,) * NUM_LEVELS,
    )


def read_index(path: Path) -> tuple[tuple[str, ...], np.ndarray]:
    """The peer: item ids and (n_items, num_levels) codes from JSON, item id to list of codes.

    Lists of integers load faster than the lists of tokens that LC-Rec and MiniOneRec write, so this is the harder peer.
    """
    index = json.loads(path.read_text(encoding="utf-8"))
    return tuple(index), np.array(list(index.values()), dtype=np.int32)


def _milliseconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return 1000 * (time.perf_counter() - start)


def _process(*words: str) -> Callable[[], float]:
    """Wall time of one Python process."""
    command = [sys.executable, *words]
    return lambda: _milliseconds(lambda: subprocess.run(command, check=True, capture_output=True))
