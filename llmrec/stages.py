"""Stages of a run and their cache: a stage runs when its settings, its inputs or its code version changed.

Of several processes (`llmrec.processes`) the main one looks, decides and writes; the others take part in what is done
together, the trainings, and wait for the rest.

Beside its results a stage leaves ``<run>/stages/<name>.json`` with what its key was made of, so that the next run can
say *why* it runs again ("cpt.learning_rate: 0.0003 -> 0.001") instead of only that it does.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from llmrec import processes
from llmrec.data.assets import sha256_file


@dataclass(frozen=True)
class StageRun:
    """How one stage went in this run.

    Attributes:
        name: of the stage.
        ran: False where the cache had it.
        why: the reason that it ran, or was skipped.
        wall_s: seconds it took when it ran (also where it was skipped now).
        cpu_s: CPU seconds of this process, likewise.
        peak_rss_mb: peak memory of the process at its end, likewise.
    """

    name: str
    ran: bool
    why: str
    wall_s: float
    cpu_s: float
    peak_rss_mb: float


class StageCache:
    """Runs stages or skips them, and keeps ``timing.json``.

    Args:
        folder: of the run.
        console: where reasons are told.
    """

    def __init__(self, folder: Path, console: Console) -> None:
        self.folder = folder
        self.console = console
        self.runs: list[StageRun] = []
        self._outputs: dict[str, str] = {}

    def run(
        self,
        name: str,
        parts: Mapping[str, Any],
        outputs: list[Path],
        work: Callable[[str], None],
        *,
        together: bool = False,
    ) -> StageRun:
        """Run `work`, unless its last complete run had the same `parts` and its `outputs` are there.

        What the stages before it left counts among the parts: a stage that ran again and gave something else (another
        number of threads is enough) makes those behind it run again.

        Args:
            name: of the stage.
            parts: everything that decides the result (settings, input fingerprints, a version); JSON values.
            outputs: files or folders that the stage leaves.
            work: gets the stage's key (12 hex digits), by which unfinished work of the same settings is recognised.
            together: whether all processes do the work, whose result then depends on how many they are.
        """
        if together and processes.count() > 1:
            parts = {**parts, "processes": processes.count()}
        flat, key, last, why = processes.from_main(partial(self._looked_up, name, parts, outputs))
        if last is not None and not why:
            self._outputs[name] = last["outputs"]
            done = StageRun(name, False, "nothing changed", last["wall_s"], last["cpu_s"], last["peak_rss_mb"])
            self.console.print(f"[dim]{name:>5}  done before ({last['wall_s']:.0f} s)[/dim]", highlight=False)
        else:
            self.console.print(f"[bold]{name:>5}[/bold]  {why}", highlight=False)
            wall, cpu = time.perf_counter(), time.process_time()
            if together or processes.is_main():
                work(key)
            seconds = (round(time.perf_counter() - wall, 2), round(time.process_time() - cpu, 2))
            done = StageRun(name, True, why, *seconds, peak_rss_mb())
            self._outputs[name] = processes.from_main(partial(_fingerprint, outputs))
            if processes.is_main():
                record = {"key": key, "outputs": self._outputs[name], "parts": flat, **_measured(done)}
                self._write(self._record(name), record)
        self.runs.append(done)
        if processes.is_main():
            self.write_timing()
        return done

    def _looked_up(
        self, name: str, parts: Mapping[str, Any], outputs: list[Path]
    ) -> tuple[dict[str, Any], str, dict[str, Any] | None, str]:
        """The stage's parts and key, the record of its last complete run, and why it runs again: "" where it need not.

        The record of a stage that runs again is removed.
        """
        inputs = {run.name: self._outputs[run.name] for run in self.runs}
        flat, key = _flat_and_key({**parts, **({"inputs": inputs} if inputs else {})})
        record = self._record(name)
        last = json.loads(record.read_text(encoding="utf-8")) if record.exists() else None
        why = self._why(last, key, flat, outputs)
        if why:
            record.unlink(missing_ok=True)
        return flat, key, last, why

    def _record(self, name: str) -> Path:
        return self.folder / "stages" / f"{name}.json"

    def write_timing(self) -> None:
        """``timing.json``: wall and CPU seconds, peak memory, stages run and skipped."""
        timing = {
            "wall_s": round(sum(run.wall_s for run in self.runs if run.ran), 2),
            "peak_rss_mb": peak_rss_mb(),
            "stages": {run.name: {"ran": run.ran, "why": run.why, **_measured(run)} for run in self.runs},
        }
        self._write(self.folder / "timing.json", timing)

    @staticmethod
    def _write(path: Path, value: Mapping[str, Any]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f".{path.name}.{os.getpid()}")
        beside.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
        beside.replace(path)

    @staticmethod
    def _why(last: Mapping[str, Any] | None, key: str, flat: Mapping[str, Any], outputs: list[Path]) -> str:
        if last is None:
            return "no finished run yet"
        if missing := [path.name for path in outputs if not path.exists()]:
            return f"{', '.join(missing)} is not there any more"
        if last["key"] == key:
            return ""
        before = last["parts"]
        changed = sorted(name for name in before.keys() | flat.keys() if before.get(name) != flat.get(name))
        settings = [name for name in changed if not name.startswith("inputs.")]
        if not settings:
            return f"{', '.join(name.removeprefix('inputs.') for name in changed)} left something else this time"
        changed = settings
        told = [f"{name}: {before.get(name)} -> {flat.get(name)}" for name in changed[:3]]
        return "changed: " + "; ".join(told) + (f" and {len(changed) - 3} more" if len(changed) > 3 else "")


def is_done(folder: Path, name: str, parts: Mapping[str, Any]) -> bool:
    """Whether the stage `name` of the run in `folder` has finished with these `parts`; see `StageCache.run`."""
    record = folder / "stages" / f"{name}.json"
    return record.exists() and json.loads(record.read_text(encoding="utf-8"))["key"] == _flat_and_key(parts)[1]


def remove_others(work: Path, pattern: str) -> None:
    """Remove what lies beside `work` by `pattern`: states of settings that are gone."""
    for other in work.parent.glob(pattern):
        if other != work:
            shutil.rmtree(other)


def quiet_libraries() -> None:
    """Progress bars and notes of libraries off: the stages tell their own progress."""
    from datasets.utils.logging import disable_progress_bar
    from transformers.utils import logging

    disable_progress_bar()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    # PEFT sees a vocabulary that has grown, and says so at each state. What is handed on is saved by `Checkpoint`.
    warnings.filterwarnings("ignore", message="Setting `save_embedding_layers` to `True`")


def _fingerprint(outputs: list[Path]) -> str:
    """SHA-256 over names and contents of the files of a stage, at about a second per gigabyte."""
    digest = hashlib.sha256()
    for output in outputs:
        for path in sorted(output.rglob("*")) if output.is_dir() else [output]:
            if path.is_file():
                digest.update(f"{path.relative_to(output.parent)}\n{sha256_file(path)}\n".encode())
    return digest.hexdigest()


def _flat_and_key(parts: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    flat = dict(_flatten("", json.loads(json.dumps(parts))))
    return flat, hashlib.sha256(json.dumps(flat, sort_keys=True).encode()).hexdigest()[:12]


def peak_rss_mb() -> float:
    """Peak resident memory of this process so far, in MB (10**6 bytes)."""
    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6, 1)


def _measured(run: StageRun) -> dict[str, float]:
    return {"wall_s": run.wall_s, "cpu_s": run.cpu_s, "peak_rss_mb": run.peak_rss_mb}


def _flatten(prefix: str, value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        return [
            pair for name, child in value.items() for pair in _flatten(f"{prefix}.{name}" if prefix else name, child)
        ]
    return [(prefix, value)]
