"""The ``rl`` benchmark: both sides do the work they claim to do, with the same result."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from llmrec.bench import rl
from llmrec.bench.rl import RLBench
from llmrec.bench.runner import load_targets


@pytest.fixture(scope="module")
def made() -> RLBench:
    return rl.bench(quick=True)


def gradient_of(made: RLBench, step: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    with monkeypatch.context() as patch:
        patch.setattr(made.model, "zero_grad", lambda set_to_none: None)
        step()
    found: torch.Tensor = made.model.get_input_embeddings().weight.grad.clone()
    made.model.zero_grad(set_to_none=True)
    return found


def test_both_sides_make_the_same_log_probabilities_and_gradients(
    made: RLBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert made.tree_forward().shape == (16, 4)
    assert made.difference() < 1e-4
    ours, theirs = (gradient_of(made, step, monkeypatch) for step in (made.tree_step, made.group_step))
    torch.testing.assert_close(ours, theirs, atol=1e-4 * float(theirs.abs().max()), rtol=1e-3)


def test_a_step_of_pairs_is_eight_pairs_and_leaves_nothing_behind(
    made: RLBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    compute = made.dpo.compute_loss

    def count(model: object, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        seen.append(len(inputs["input_ids"]))
        assert inputs["input_ids"].shape[1] == 204
        loss: torch.Tensor = compute(model, inputs)
        return loss

    monkeypatch.setattr(made.dpo, "compute_loss", count)
    made.pairs_step()
    made.softmax_dpo_step()
    assert seen == [8, 8]
    assert all(parameter.grad is None for parameter in made.model.parameters())


def test_every_case_has_a_target() -> None:
    targets = load_targets()["rl"]
    assert set(targets) == {case.name for case in rl.cases(True)} == {case.name for case in rl.cases(False)}
    assert targets["group, step"].at_most == pytest.approx(1 / 5)
    assert targets["s_dpo, step"].at_most == pytest.approx(1 / 6, abs=1e-3)
