"""Canary: what `PairLosses` relies on in TRL's DPOTrainer. Fails first when TRL changes."""

from __future__ import annotations

import ast
import inspect
import math
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from trl import DPOConfig, DPOTrainer, SFTTrainer

from llmrec.config import build_config
from llmrec.errors import ConfigError, InputError
from llmrec.train.config import StageConfig
from llmrec.train.preference import trainer as module
from llmrec.train.preference.stage_config import DIVERGENT, PAIR_LOSSES, UNWEIGHTED, PreferenceConfig
from llmrec.train.preference.trl_losses import PairBatch, PairLosses
from llmrec.train.prefix_tree import TreeRow
from llmrec.train.stage import stage_arguments
from llmrec.train.tree_forward import TreeForward
from tests.train.conftest import World

SEEN = "1.16"
PAIRS = [([5, 6, 7, 8], [20, 21], [30, 31]), ([9, 10], [22, 23], [32, 33]), ([11, 12, 13], [24, 25], [34, 35])]


def dpo_trainer(world: World, folder: Path, **settings: Any) -> DPOTrainer:
    rows = Dataset.from_dict({"prompt": ["The Silent"], "chosen": [" River"], "rejected": [" Garden"]})
    return DPOTrainer(
        model=world.model,
        ref_model=None,
        args=DPOConfig(
            output_dir=str(folder),
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to="none",
            precompute_ref_log_probs=True,
            disable_tqdm=True,
            **settings,
        ),
        train_dataset=rows,
        processing_class=world.tokenizer,
    )


def both_sides(world: World, trainer: DPOTrainer, reference: torch.Tensor) -> tuple[dict[str, Any], PairBatch]:
    """The same pairs as TRL's collator lays them out, and as our forward scores them."""
    rows = [
        {
            "prompt_ids": prompt,
            "chosen_ids": chosen,
            "rejected_ids": rejected,
            "ref_chosen_logps": float(reference[i]),
            "ref_rejected_logps": float(reference[len(PAIRS) + i]),
        }
        for i, (prompt, chosen, rejected) in enumerate(PAIRS)
    ]
    found = TreeForward(world.model)([TreeRow(prompt, [chosen, rejected]) for prompt, chosen, rejected in PAIRS])
    order = torch.tensor([0, 2, 4, 1, 3, 5])
    weight = torch.ones(len(PAIRS))
    return trainer.data_collator(rows), PairBatch(found.tokens[order], found.mask[order], reference, weight)


def reference_of(world: World) -> torch.Tensor:
    """Log-probabilities around the model's own: as a reference would give after a few steps."""
    with torch.no_grad():
        rows = [TreeRow(prompt, [chosen, rejected]) for prompt, chosen, rejected in PAIRS]
        sums = TreeForward(world.model)(rows).sums[[0, 2, 4, 1, 3, 5]]
    return sums + torch.tensor([0.5, -1.0, 0.2, -0.4, 1.5, -2.0])


@pytest.mark.parametrize("package", ["trl"])
def test_the_version_is_the_one_the_seam_was_read_against(package: str) -> None:
    found = ".".join(version(package).split(".")[:2])
    if found != SEEN:
        pytest.fail(
            f"{package} is {found}, the seam was read against {SEEN}: run this file, read DPOTrainer._compute_loss for "
            "new losses, and for what it reads of the trainer and of the model's answer; then change SEEN.",
            pytrace=False,
        )


def test_the_trainer_overrides_and_uses_nothing_private(world: World, tmp_path: Path) -> None:
    tree = ast.parse(inspect.getsource(module))
    [ours] = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "PreferenceTrainer"]
    methods = {node.name for node in ours.body if isinstance(node, ast.FunctionDef)}
    of_self = {
        node.attr
        for node in ast.walk(ours)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self"
    }
    plain = SFTTrainer(
        model=world.model,
        args=stage_arguments(StageConfig(), 1, tmp_path, fresh=True),
        train_dataset=Dataset.from_dict({"rows": [[0]]}),
        eval_dataset=Dataset.from_dict({"rows": [[0]]}),
        processing_class=world.tokenizer,
        data_collator=list,
    )
    private = {name for name in methods | of_self if name.startswith("_") and not name.startswith("__")}
    assert methods == {"__init__", "loss_of", "log"}
    assert not {name for name in private if hasattr(plain, name)}


def test_every_loss_of_trl_is_known() -> None:
    source = inspect.getsource(DPOTrainer._compute_loss)
    assert all(f'loss_type == "{name}"' in source for name in PAIR_LOSSES)
    assert source.count('loss_type == "') == len(PAIR_LOSSES)
    divergent = inspect.getsource(DPOTrainer.__init__).split("f_divergence_loss_types = {")[1].split("}")[0]
    assert {name.strip().strip('"') for name in divergent.split(",")} == set(DIVERGENT)


@pytest.mark.parametrize("divergence", ["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"])
def test_losses_and_gradients_are_those_of_a_dpo_trainer(world: World, tmp_path: Path, divergence: Any) -> None:
    names: Any = PAIR_LOSSES if divergence == "reverse_kl" else DIVERGENT
    reference = reference_of(world)
    settings: Any = {"label_smoothing": 0.1, "beta": 0.3}
    trainer = dpo_trainer(world, tmp_path, loss_type=list(names), f_divergence_type=divergence, **settings)
    inputs, batch = both_sides(world, trainer, reference)
    for name in names:
        trainer.loss_types, trainer.loss_weights = [name], [1.0]
        world.model.zero_grad(set_to_none=True)
        theirs = trainer.compute_loss(world.model, inputs)
        theirs.backward()
        gradient = world.model.get_input_embeddings().weight.grad.clone()
        config = PreferenceConfig(losses={name: 1.0}, f_divergence=divergence, **settings)
        _, batch = both_sides(world, trainer, reference)
        world.model.zero_grad(set_to_none=True)
        ours = PairLosses(config, config.losses)(batch)
        ours.backward()  # type: ignore[no-untyped-call]
        assert ours.item() / len(PAIRS) == pytest.approx(theirs.item(), rel=1e-4), name
        again = world.model.get_input_embeddings().weight.grad / len(PAIRS)
        assert gradient.abs().max() > 1e-5, name
        torch.testing.assert_close(again, gradient, atol=1e-4 * float(gradient.abs().max()), rtol=1e-3, msg=name)


def test_weights_multiply_the_pairs(world: World) -> None:
    tokens = torch.tensor([[-1.0, -2.0], [-3.0, 0.0], [-1.5, -1.0], [-2.5, 0.0]], requires_grad=True)
    mask = torch.tensor([[True, True], [True, False], [True, True], [True, False]])
    reference = torch.tensor([-2.5, -3.5, -3.0, -2.0])
    config = PreferenceConfig(losses={"sigmoid": 1.0}, beta=0.5)
    weight = torch.tensor([0.5, 3.0])
    found = PairLosses(config, config.losses)(PairBatch(tokens, mask, reference, weight))
    ratios = tokens.sum(dim=1) - reference
    expected = (weight * -torch.nn.functional.logsigmoid(0.5 * (ratios[:2] - ratios[2:]))).sum()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found, tokens)[0], torch.autograd.grad(expected, tokens)[0])
    for name in UNWEIGHTED:
        with pytest.raises(InputError, match=f"The loss {name} is one of a whole batch"):
            PairLosses(config, {name: 1.0})(PairBatch(tokens, mask, reference, weight))


def test_settings_that_contradict_each_other_are_told_together() -> None:
    with pytest.raises(ConfigError) as told:
        build_config(
            PreferenceConfig, {"losses": {"exo_pair": -1.0, "aot": 1.0}, "f_divergence": "js_divergence"}, source="r"
        )
    for part in ("losses.exo_pair must be above 0", "exo_pair needs label_smoothing", "not for aot"):
        assert part in str(told.value)
    with pytest.raises(ConfigError, match="losses"):
        build_config(PreferenceConfig, {"losses": {"sigmoidal": 1.0}}, source="r")
    assert math.isclose(PreferenceConfig().beta, 0.1)
