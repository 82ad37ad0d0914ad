"""ECPO and GBPO against the papers' formulas, written out; what they promise about gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from llmrec.config import build_config
from llmrec.errors import ConfigError
from llmrec.train.grpo.config import GRPOStageConfig
from llmrec.train.grpo.losses import LOSSES, denominator

EPSILON, DELTA = 0.2, 0.1
NOW = torch.tensor([[0.5, 0.9, 0.02], [0.5, 0.9, 0.02], [0.3, 0.6, 1.0], [0.3, 0.6, 1.0]], dtype=torch.float64)
OLD = torch.tensor([[0.1, 0.9, 0.4], [0.1, 0.9, 0.4], [0.5, 0.01, 0.2], [0.5, 0.01, 0.2]], dtype=torch.float64)
ADVANTAGES = torch.tensor([1.0, -1.0, 2.0, -0.5], dtype=torch.float64)


def below(loss: str) -> np.ndarray:
    found = denominator(loss, NOW.log(), OLD.log(), ADVANTAGES, epsilon=EPSILON, delta=DELTA)  # type: ignore[arg-type]
    return found.exp().numpy()


def test_ecpo_divides_by_the_larger_of_the_old_and_the_shrunken_probability() -> None:
    np.testing.assert_allclose(below("ecpo"), torch.maximum(NOW / (1 + EPSILON + DELTA), OLD))


def test_gbpo_divides_by_the_old_probability_bounded_by_the_sign_of_the_advantage() -> None:
    good, bad = torch.maximum(OLD, NOW), torch.maximum(OLD, 1 - NOW)
    np.testing.assert_allclose(below("gbpo"), good.where(ADVANTAGES[:, None] >= 0, bad))


@pytest.mark.parametrize("loss", [name for name in LOSSES if name not in ("ecpo", "gbpo")])
def test_every_other_loss_divides_by_the_old_probability(loss: str) -> None:
    np.testing.assert_allclose(below(loss), OLD)


def gradient(loss: str, p: float, old: float, advantage: float) -> float:
    """d(objective)/dp of one token, by autograd, with GRPO's clipping where the loss has it."""
    now = torch.tensor([[p]], dtype=torch.float64, requires_grad=True)
    a = torch.tensor([advantage], dtype=torch.float64)
    old_log_p = torch.tensor([[old]], dtype=torch.float64).log()
    ratio = (now.log() - denominator(loss, now.log(), old_log_p, a, epsilon=EPSILON, delta=DELTA)).exp()  # type: ignore[arg-type]
    clipped = ratio.clamp(1 - EPSILON, 1 + EPSILON) if LOSSES[loss].clipped else ratio  # type: ignore[index]
    value = torch.minimum(ratio * a, clipped * a).sum()
    (found,) = torch.autograd.grad(value, now)
    return float(found)


def test_a_bad_items_gradient_explodes_with_grpo_and_is_bounded_with_the_two() -> None:
    p, old = 0.5, 1e-4
    assert gradient("grpo", p, old, -1.0) == pytest.approx(-1 / old)
    assert gradient("ecpo", p, old, -1.0) == pytest.approx(-(1 + EPSILON + DELTA) / p)
    assert gradient("gbpo", p, old, -1.0) == pytest.approx(-1 / (1 - p))


def test_without_an_old_policy_ecpo_is_grpo_and_gbpo_pushes_unlikely_bad_items_little() -> None:
    for p in (0.01, 0.5, 0.95):
        for advantage in (1.0, -1.0):
            assert gradient("ecpo", p, p, advantage) == pytest.approx(gradient("grpo", p, p, advantage))
    assert gradient("gbpo", 0.01, 0.01, 1.0) == pytest.approx(gradient("grpo", 0.01, 0.01, 1.0))
    assert abs(gradient("gbpo", 0.01, 0.01, -1.0)) < 0.02 * abs(gradient("grpo", 0.01, 0.01, -1.0))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"loss": "ecpo", "ratio": "sequence"}, "bounds the probability of a token"),
        ({"loss": "gbpo", "epsilon_high": 0.3}, "does not clip"),
        ({"loss": "grop"}, "loss"),
        ({"rollout": {"group_size": 1}}, "group_size"),
        ({"rollout": {"add_target": True}}, "has no probability to be drawn"),
        ({"rollout": {"kind": "beam", "temperature": 2.0}}, "temperature belongs to"),
        ({"rollout": {"kind": "beam", "estimator": "unordered_set"}}, "beams count equally"),
        ({"rewards": {"parts": {"hitt": {}}}}, "hit"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        build_config(GRPOStageConfig, settings, source="test")
