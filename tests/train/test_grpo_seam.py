"""Canary: what `ConstrainedGRPOTrainer` relies on in TRL's GRPOTrainer. Fails first when it changes."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from collections import defaultdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llmrec.train.grpo import trainer as module
from llmrec.train.grpo.stage import grpo_arguments
from llmrec.train.grpo.trainer import ConstrainedGRPOTrainer
from llmrec.train.grpo.trl_trainer import GRPOTrainer
from tests.train.conftest import World
from tests.train.grpo_world import grpo, settings

SEEN = {"trl": "1.16", "transformers": "5.19"}
TOUCHED = {
    "_prepare_inputs", "_compute_loss", "_get_per_token_logps_and_entropies", "_step", "_buffered_inputs", "_metrics",
}  # fmt: skip
"""Private members of TRL's that are overridden or read; docs/decisions/0012-grpo-seam.md gives the reasons."""


@pytest.mark.parametrize("package", SEEN)
def test_the_versions_are_those_the_seam_was_read_against(package: str) -> None:
    found = ".".join(version(package).split(".")[:2])
    if found != SEEN[package]:
        pytest.fail(
            f"{package} is {found}, the seam was read against {SEEN[package]}: run this file, read GRPOTrainer.__init__"
            ", get_train_dataloader, _get_train_sampler, training_step, _prepare_inputs, _compute_loss and log for what"
            " docs/decisions/0012-grpo-seam.md lists; then change SEEN and that page.",
            pytrace=False,
        )


def test_only_the_members_that_are_named_are_touched() -> None:
    tree = ast.parse(inspect.getsource(module))
    [ours] = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "ConstrainedGRPOTrainer"]
    names = {node.name for node in ours.body if isinstance(node, ast.FunctionDef)} | {
        node.attr
        for node in ast.walk(ours)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self"
    }
    source = inspect.getsource(GRPOTrainer)
    theirs = {name for name in names if (name.startswith("_") and f"self.{name}" in source) or name in dir(GRPOTrainer)}
    assert {name for name in theirs if name.startswith("_") and not name.startswith("__")} == TOUCHED


@pytest.mark.parametrize("name", ["_prepare_inputs", "_compute_loss"])
def test_overrides_take_what_the_overridden_methods_take(name: str) -> None:
    ours, theirs = (
        list(inspect.signature(getattr(each, name)).parameters) for each in (ConstrainedGRPOTrainer, GRPOTrainer)
    )
    assert ours == theirs


def watch(monkeypatch: pytest.MonkeyPatch, name: str) -> list[tuple[Any, ...]]:
    """What a method of the trainer was called with, and what it gave back."""
    seen: list[tuple[Any, ...]] = []
    plain = getattr(ConstrainedGRPOTrainer, name)

    def spied(self: Any, *args: Any) -> Any:
        found = plain(self, *args)
        seen.append((self, *args, found))
        return found

    monkeypatch.setattr(ConstrainedGRPOTrainer, name, spied)
    return seen


def test_every_row_comes_as_often_as_a_group_is_large_and_in_order(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = watch(monkeypatch, "_prepare_inputs")
    config = settings(max_steps=4, gradient_accumulation=2, prompts_per_step=3, num_iterations=2)
    grpo(world, config, tmp_path)
    given = [call[1] for call in seen]
    assert len(given) == 8
    for rows in given:
        numbers = np.array([row["number"] for row in rows]).reshape(6, 8)
        assert (numbers == numbers[:, :1]).all()
        assert len(set(numbers[:, 0].tolist())) == 6
    keys = [[row["number"] for row in rows] for rows in given]
    assert keys[0] == keys[1] == keys[2] == keys[3]
    assert keys[4] == keys[7] != keys[0]
    order = [row["number"] for row in seen[0][0].train_dataset][:6]
    assert keys[0][::8] == order


def test_a_rollout_serves_its_iterations_and_no_more(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = watch(monkeypatch, "_roll_out")
    grpo(world, settings(max_steps=4, num_iterations=2), tmp_path)
    assert len(seen) == 2
    for _, _, batches in seen:
        assert "old" in batches[0] or not len(batches[0]["batch"].rollout)


def test_trls_loss_is_taken_over_what_the_tree_forward_gave(world: World, tmp_path: Path) -> None:
    """GRPO's clipped objective, a mean over tokens, then rows, written out."""
    args = grpo_arguments(settings(), 1, tmp_path, save_steps=1, num_levels=2)
    assert (args.beta, args.loss_type, args.num_generations, args.steps_per_generation) == (0.0, "grpo", 8, 1)
    stub = object.__new__(GRPOTrainer)
    torch.manual_seed(0)
    log_p = torch.randn(6, 2) - 2
    old = log_p + 0.5 * torch.randn(6, 2)
    advantages = torch.randn(6)
    stub.__dict__.update(
        _get_per_token_logps_and_entropies=lambda *_, **__: (log_p, torch.ones(6, 2), None),
        args=args, model=torch.nn.Linear(1, 1), aux_loss_enabled=False, top_entropy_quantile=1.0,
        off_policy_mask_threshold=None, importance_sampling_level="token", beta=0.0, loss_type="grpo",
        epsilon_low=0.2, epsilon_high=0.2, use_vllm=False, vllm_importance_sampling_correction=False,
        current_gradient_accumulation_steps=1, _entropy_bonus_enabled=False,
        accelerator=type("One", (), {"reduce": lambda _, x, reduction: x, "gather": lambda _, x: x})(),
        _metrics={"train": defaultdict(list)},
    )  # fmt: skip
    mask = torch.ones(6, 2, dtype=torch.long)
    inputs = {
        "prompt_ids": mask[:, :0], "prompt_mask": mask[:, :0], "completion_ids": mask, "completion_mask": mask,
        "advantages": advantages, "old_per_token_logps": old, "num_items_in_batch": torch.tensor(12.0),
    }  # fmt: skip
    ratio = (log_p - old).exp()
    by_hand = -torch.minimum(ratio * advantages[:, None], ratio.clamp(0.8, 1.2) * advantages[:, None]).mean()
    assert float(stub._compute_loss(None, inputs)) == pytest.approx(float(by_hand), rel=1e-6)


@pytest.mark.slow
def test_vllm_is_not_loaded_with_the_trainer() -> None:
    code = "import sys, llmrec.train.grpo.trainer; print([name for name in sys.modules if name == 'vllm'])"
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=120)
    assert found.stdout.strip() == "[]"
