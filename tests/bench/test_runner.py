"""The benchmark runner: interleaving, medians, targets, and the reviewed file."""

import importlib

import numpy as np
import pytest

from llmrec.bench import BENCHES, runner, start
from llmrec.bench.runner import Case, Target, as_report, load_targets, measure, run_bench
from llmrec.errors import ConfigError, InputError
from llmrec.sid_vocab.table import SIDTable


def target(**changes):
    return Target(**{"peer": "p", "at_most": 1.0, "repeats": 5, "quick_repeats": 2, "why": "w", **changes})


def sides(ours, theirs):
    """A case that returns the given numbers one after the other, and the order of its calls."""
    order, left, right = [], iter(ours), iter(theirs)
    return order, Case("case", "ms", lambda: order.append("o") or next(left), lambda: order.append("t") or next(right))


def test_both_sides_alternate_after_a_warm_up_and_medians_decide():
    order, case = sides([99, 1, 2, 30], [99, 4, 4, 5])
    outcome = measure(case, target(), 3)
    assert "".join(order) == "ot" + "ot" + "to" + "ot"
    assert (outcome.ours, outcome.theirs, outcome.ratio, outcome.holds) == (2, 4, 0.5, True)


def test_bounds_are_inclusive_and_have_a_direction():
    assert target(at_most=1.3).holds(1.3)
    assert not target(at_most=1.3).holds(1.31)
    gain = target(at_most=None, at_least=2.0)
    assert gain.holds(2.0)
    assert not gain.holds(1.9)
    assert (target(at_most=1.3).text(), gain.text()) == ("<= 1.3", ">= 2")


@pytest.mark.parametrize("bounds", ["", "at_most: 1, at_least: 1,"])
def test_a_target_has_exactly_one_bound(tmp_path, bounds):
    path = tmp_path / "targets.yaml"
    path.write_text(f"start: {{import: {{peer: p, {bounds} repeats: 1, quick_repeats: 1, why: w}}}}\n")
    with pytest.raises(ConfigError, match="exactly one of at_most and at_least"):
        load_targets(path)


def test_every_benchmark_has_reviewed_targets_for_exactly_its_cases():
    targets = load_targets()
    assert set(targets) == set(BENCHES)
    for name, module in BENCHES.items():
        assert {case.name for case in importlib.import_module(module).cases(True)} == set(targets[name])


def test_quick_uses_fewer_repeats_and_cases_must_match_targets(monkeypatch):
    order, case = sides([1.0] * 9, [2.0] * 9)
    monkeypatch.setattr(start, "cases", lambda quick: [case])
    monkeypatch.setattr(runner, "load_targets", lambda: {"start": {"case": target()}})
    said = []
    [outcome] = run_bench("start", quick=True, progress=said.append)
    assert (outcome.repeats, len(order), said) == (2, 6, ["start: case, 2 x ours and theirs"])
    report = as_report("start", [outcome], quick=True)
    assert (report["holds"], report["cases"][0]["ratio"]) == (True, 0.5)
    monkeypatch.setattr(runner, "load_targets", lambda: {"start": {"other": target()}})
    with pytest.raises(InputError, match="has targets for \\['other'\\]"):
        run_bench("start")


def test_an_unknown_benchmark_gets_the_nearest_name():
    with pytest.raises(InputError, match="did you mean 'start'"):
        run_bench("star")


def test_the_table_case_compares_the_same_content(tmp_path):
    table = start.make_table(50)
    table.save(tmp_path / "table")
    (tmp_path / "index.json").write_text(
        "{" + ",".join(f'"{i}": {codes}' for i, codes in zip(table.item_ids, table.codes.tolist(), strict=True)) + "}"
    )
    item_ids, codes = start.read_index(tmp_path / "index.json")
    loaded = SIDTable.load(tmp_path / "table")
    assert item_ids == loaded.item_ids
    assert np.array_equal(codes, loaded.codes)


def test_the_cases_of_start_measure_milliseconds():
    by_name = {case.name: case for case in start.cases(quick=True)}
    assert 0 < by_name["table load"].ours() < 60_000
    assert 0 < by_name["import"].ours() < 60_000


def test_a_limit_binds_our_median_whatever_the_ratio():
    _, case = sides([1, 3, 3], [1, 9, 9])
    assert measure(case, target(limit=3), 2).holds
    _, case = sides([1, 3, 3], [1, 9, 9])
    outcome = measure(case, target(limit=2.9), 2)
    assert (outcome.holds, outcome.target) == (False, "<= 1, ours <= 2.9")
