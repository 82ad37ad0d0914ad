"""The ``head`` benchmark: its sides are the losses they claim to be, and its memory count counts."""

from __future__ import annotations

import pytest
import torch

from llmrec.bench import head, runner
from llmrec.bench.memory import peak_bytes
from llmrec.bench.runner import Case, Target, as_report, run_bench
from llmrec.errors import InputError


@pytest.fixture(scope="module")
def small() -> head.HeadBench:
    return head.small_bench(vocabulary=500)


def test_the_vocab_side_is_trls_loss_and_the_level_side_is_not(small: head.HeadBench) -> None:
    level, vocab, trl = (small.step(side) for side in ("level", "vocab", "trl"))
    assert vocab == pytest.approx(trl, rel=1e-5)
    assert level < vocab - 0.5  # ln(256) against ln(1524), nearly untrained


def test_the_vocab_side_has_trls_gradients(small: head.HeadBench) -> None:
    found = []
    for side in ("vocab", "trl"):
        small.losses[side]().backward()
        found.append([parameter.grad.clone() for parameter in small.model.parameters()])
        small.model.zero_grad(set_to_none=True)
    for ours, theirs in zip(*found, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-3, atol=1e-6)


def test_a_step_leaves_no_gradient_behind(small: head.HeadBench) -> None:
    small.step("level")
    assert all(parameter.grad is None for parameter in small.model.parameters())


def test_the_peak_is_of_what_is_alive_at_a_time_and_views_count_once() -> None:
    def work() -> None:  # an outer product of 1000 x 500 floats, one of a twentieth of it after that
        with torch.no_grad():
            for width in (500, 25):
                row = torch.ones(width)
                (torch.ones(1000)[:, None] * row).view(-1).mul_(2)

    peak = peak_bytes(torch.nn.Linear(1, 1), work)
    assert 4 * (500 * 1000) <= peak <= 4 * (500 * 1000 + 2 * 1500 + 2)


def test_a_base_that_is_not_cached_is_said_to_be_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "cached", lambda asset: None)
    reasons = {case.name: case.skip for case in head.cases(False)}
    assert "llmrec assets fetch smollm2-135m-instruct" in reasons["135m step"]
    assert not reasons["step"]
    assert {case.skip for case in head.cases(True) if case.name.startswith("135m")} == {"--quick leaves it out"}


def test_a_skipped_case_is_reported_without_figures_and_without_running(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> float:
        raise InputError("not to be measured")

    target = Target(peer="p", at_most=1.0, repeats=1, quick_repeats=1, why="w")
    cases = [Case("a", "ms", lambda: 1.0, lambda: 2.0), Case("b", "ms", fail, fail, "no disk")]
    monkeypatch.setattr(head, "cases", lambda quick: cases)
    monkeypatch.setattr(runner, "load_targets", lambda: {"head": {"a": target, "b": target}})
    measured, skipped = run_bench("head")
    assert (measured.holds, skipped.holds, skipped.ratio, skipped.skipped) == (True, None, None, "no disk")
    report = as_report("head", [measured, skipped], quick=False)
    assert report["holds"] is True
    assert report["cases"][1]["skipped"] == "no disk"
