"""Run a benchmark: our side and the peer's alternately in one run, medians, ratio, target.

Interleaving is what makes the ratio trustworthy on a shared machine: a slow minute hits both sides.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import platform
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from pydantic import Field, model_validator

from llmrec.bench import BENCHES
from llmrec.config import Config, build_config, parse_yaml
from llmrec.errors import InputError

TARGETS = Path(__file__).with_name("targets.yaml")


@dataclasses.dataclass(frozen=True)
class Case:
    """One comparison.

    Attributes:
        name: as in `targets.yaml`.
        unit: of what both sides return, such as "ms".
        ours: measures our side once.
        theirs: measures the peer once, on the same work.
        skip: why it cannot be measured here; such a case is reported and has no figures.
        warm_up: whether an unmeasured round comes first; what is counted and not timed needs none.
    """

    name: str
    unit: str
    ours: Callable[[], float]
    theirs: Callable[[], float]
    skip: str = ""
    warm_up: bool = True


class Target(Config):
    """What a case must reach: exactly one of `at_most` and `at_least`, and `limit` where there is one."""

    peer: str
    """What we compare with, in words."""
    at_most: float | None = None
    """Highest ratio of medians, ours / theirs."""
    at_least: float | None = None
    """Lowest ratio of medians, ours / theirs."""
    aim: float | None = None
    """A ratio to strive for, beyond the one that must hold; shown, and judged by nobody."""
    limit: float | None = None
    """Highest median of ours, in the unit of the case: a promise of its own, whatever the peer does."""
    repeats: int = Field(ge=1)
    """Measurements of each side."""
    quick_repeats: int = Field(ge=1)
    """The same with ``--quick``."""
    why: str
    """Why this target and not another."""

    @model_validator(mode="after")
    def _one_bound(self) -> Target:
        if (self.at_most is None) == (self.at_least is None):
            raise ValueError("give exactly one of at_most and at_least")
        return self

    def holds(self, ratio: float) -> bool:
        """Whether `ratio` reaches the target."""
        return ratio <= self.at_most if self.at_most is not None else ratio >= (self.at_least or 0.0)

    def within_limit(self, ours: float) -> bool:
        """Whether the median of ours keeps to `limit`."""
        return self.limit is None or ours <= self.limit

    def text(self) -> str:
        """The target as people read it: ``<= 1.3``, or ``<= 1.3, ours <= 40``."""
        ratio = f"<= {self.at_most:g}" if self.at_most is not None else f">= {self.at_least:g}"
        aim = "" if self.aim is None else f" (aim {self.aim:g})"
        return ratio + aim + ("" if self.limit is None else f", ours <= {self.limit:g}")


@dataclasses.dataclass(frozen=True)
class Outcome:
    """A case and what was measured: `ours` and `theirs` are medians in `unit`; all None where it was skipped."""

    case: str
    peer: str
    unit: str
    ours: float | None
    theirs: float | None
    ratio: float | None
    target: str
    holds: bool | None
    repeats: int
    skipped: str = ""
    """Why there are no figures."""


def load_targets(path: Path = TARGETS) -> dict[str, dict[str, Target]]:
    """Targets by benchmark and case. Raises ConfigError for a wrong entry."""
    raw: dict[str, dict[str, Any]] = parse_yaml(path.read_text(encoding="utf-8"), source=path.name)
    return {
        bench: {
            case: build_config(Target, values, source=f"{path.name}, {bench}, {case}") for case, values in cases.items()
        }
        for bench, cases in raw.items()
    }


def run_bench(name: str, *, quick: bool = False, progress: Callable[[str], None] | None = None) -> list[Outcome]:
    """Measure every case of benchmark `name`.

    Args:
        name: a key of `BENCHES`.
        quick: smaller sizes and fewer repeats, about a minute in all.
        progress: takes a line before each case.

    Raises:
        InputError: there is no such benchmark, or a case and its target do not match.
    """
    if name not in BENCHES:
        near = difflib.get_close_matches(name, BENCHES, n=1)
        raise InputError(
            f"there is no benchmark {name!r}",
            hint=f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(BENCHES)}",
        )
    targets = load_targets().get(name, {})
    cases: list[Case] = importlib.import_module(BENCHES[name]).cases(quick)
    if {case.name for case in cases} != set(targets):
        raise InputError(
            f"benchmark {name!r} measures {sorted(case.name for case in cases)}, "
            f"{TARGETS.name} has targets for {sorted(targets)}"
        )
    outcomes = []
    for case in cases:
        target = targets[case.name]
        repeats = target.quick_repeats if quick else target.repeats
        if case.skip:
            outcomes.append(
                Outcome(case.name, target.peer, case.unit, None, None, None, target.text(), None, 0, case.skip)
            )
            continue
        if progress:
            progress(f"{name}: {case.name}, {repeats} x ours and theirs")
        outcomes.append(measure(case, target, repeats))
    return outcomes


def measure(case: Case, target: Target, repeats: int) -> Outcome:
    """Measure both sides `repeats` times, the first one changing each round, after an unmeasured round to warm up."""
    if case.warm_up:
        case.ours()
        case.theirs()
    ours: list[float] = []
    theirs: list[float] = []
    for turn in range(repeats):
        pair = [(ours, case.ours), (theirs, case.theirs)]
        for numbers, side in pair if turn % 2 == 0 else reversed(pair):
            numbers.append(side())
    ratio = median(ours) / median(theirs)
    return Outcome(
        case=case.name,
        peer=target.peer,
        unit=case.unit,
        ours=median(ours),
        theirs=median(theirs),
        ratio=ratio,
        target=target.text(),
        holds=target.holds(ratio) and target.within_limit(median(ours)),
        repeats=repeats,
    )


def as_report(name: str, outcomes: list[Outcome], *, quick: bool) -> dict[str, Any]:
    """What ``--json`` and ``--output`` write."""
    from llmrec import __version__

    return {
        "bench": name,
        "quick": quick,
        "llmrec": __version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cases": [dataclasses.asdict(outcome) for outcome in outcomes],
        "holds": all(outcome.holds for outcome in outcomes if not outcome.skipped),
    }
