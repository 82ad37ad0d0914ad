"""The preference stage: its losses, its reference in both flows, iterations, and going on after a stop."""

from __future__ import annotations

import copy
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from llmrec.errors import DataError, InputError
from llmrec.train import cpt
from llmrec.train.config import StageConfig
from llmrec.train.preference.losses import PreferenceObjective, ScoredRows, softmax_dpo
from llmrec.train.preference.pairs import PreferenceRow, RejectedSource
from llmrec.train.preference.reference import score_rows
from llmrec.train.preference.rows import build_rows
from llmrec.train.preference.stage import run_preference
from llmrec.train.preference.stage_config import PreferenceConfig
from llmrec.train.stage import train_sequences
from llmrec.train.tree_forward import TreeForward
from tests.train.conftest import World

STARTS = ("full model", "extended_base", "adapter")


def row(number: int, history: list[str], chosen: str, rejected: list[str], weight: float = 1.0) -> PreferenceRow:
    random: RejectedSource = "random"
    return PreferenceRow(
        row_id=str(number),
        user_id=str(number),
        position=len(history),
        history=tuple(history),
        chosen=chosen,
        rejected=tuple(rejected),
        chosen_source="event",
        source=(random,) * len(rejected),
        weights=(weight,) * len(rejected),
        scores=(None,) * len(rejected),
    )


def make_rows(world: World, rejected: int = 3, count: int = 24) -> list[PreferenceRow]:
    """The last train item of a user before items of other genres."""
    rng = np.random.default_rng(0)
    made = []
    for number, items in enumerate(train_sequences(world.dataset)[:count]):
        others = [item for item in world.table.item_ids if (int(item) - int(items[-1])) % 6]
        made.append(row(number, items[:-1], items[-1], rng.choice(others, rejected, replace=False).tolist()))
    return made


def start_model(world: World, start: str) -> Any:
    """What SFT leaves: a full model with a fresh adapter, or a trained adapter, in flow "adapter" with SID rows."""
    stage = StageConfig(train_sid_rows=start == "adapter")
    model = cpt.add_adapter(world.model, world.table, stage)
    if start != "full model":
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model


def quick(**settings: Any) -> PreferenceConfig:
    values = {"learning_rate": 3e-3, "sid_learning_rate": 3e-3, "beta": 0.5, "valid_users": 10, "warmup_ratio": 0.0}
    return PreferenceConfig(**{**values, "schedule": "constant_with_warmup", "save_steps": 2, **settings})


def run(world: World, model: Any, config: PreferenceConfig, rows: Any, folder: Path, **more: Any) -> Any:
    return run_preference(
        "preference",
        config,
        rows,
        model=model,
        tokenizer=world.tokenizer,
        renderer=world.renderer,
        dataset=world.dataset,
        work=folder / "work",
        log=folder / "log.jsonl",
        console=Console(quiet=True),
        **more,
    )


def losses(path: Path, name: str = "preference_loss") -> list[float]:
    return [each[name] for each in map(json.loads, path.read_text().splitlines()) if name in each]


def trained(model: Any) -> dict[str, torch.Tensor]:
    return {name: each.detach().clone() for name, each in model.named_parameters() if each.requires_grad}


# -- losses ------------------------------------------------------------------------------------------------------------


def scored(seed: int = 0, counts: tuple[int, ...] = (3, 1, 2), weight: float = 1.0) -> ScoredRows:
    size = sum(counts) + len(counts)
    generator = torch.Generator().manual_seed(seed)
    mask = torch.ones(size, 2, dtype=torch.bool)
    mask[2, 1] = False
    tokens = -torch.rand(size, 2, generator=generator).mul(3) * mask
    owner = torch.tensor([place for place, count in enumerate(counts) for _ in range(count + 1)])
    reference = -3 * torch.rand(size, generator=generator)
    return ScoredRows(tokens.requires_grad_(), mask, reference, owner, torch.full((size,), weight))


def test_softmax_dpo_is_the_formula_of_the_paper() -> None:
    rows = scored()
    rewards = (0.7 * (rows.policy - rows.reference)).tolist()
    expected = []
    for chosen, rejected in ((0, (1, 2, 3)), (4, (5,)), (6, (7, 8))):
        odds = sum(math.exp(rewards[each] - rewards[chosen]) for each in rejected)
        expected.append(-math.log(1 / (1 + math.exp(math.log(odds)))))
    assert softmax_dpo(rows, 0.7).tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("weight", [1.0, 2.5])
def test_with_one_rejected_item_softmax_dpo_is_dpo(weight: float) -> None:
    rows = scored(counts=(1, 1, 1), weight=weight)
    found = []
    for name in ("s_dpo", "sigmoid"):
        config = PreferenceConfig.model_validate({"losses": {name: 1.0}})
        loss = PreferenceObjective(config)(rows)
        found.append((loss.total, torch.autograd.grad(loss.total, rows.tokens)[0]))
    torch.testing.assert_close(found[0][0], found[1][0])
    torch.testing.assert_close(found[0][1], found[1][1])
    assert found[0][0] != 0


def test_rows_count_equally_and_weights_multiply() -> None:
    config = PreferenceConfig(losses={"sigmoid": 2.0, "s_dpo": 0.5}, sft_weight=0.3, beta=0.7)
    parts = PreferenceObjective(config)(scored())
    rows = scored()
    rewards = 0.7 * (rows.policy - rows.reference)
    pairs = [[0, 1], [0, 2], [0, 3], [4, 5], [6, 7], [6, 8]]
    each = torch.stack([-torch.nn.functional.logsigmoid(rewards[c] - rewards[r]) for c, r in pairs])
    dpo = each[:3].mean() + each[3] + each[4:].mean()
    anchor = torch.stack([-rows.tokens[c].sum() / rows.mask[c].sum() for c in (0, 4, 6)]).sum()
    torch.testing.assert_close(parts.total, 2 * dpo + 0.5 * softmax_dpo(rows, 0.7).sum() + 0.3 * anchor)
    torch.testing.assert_close(parts.anchor, anchor.detach())
    assert parts.rows == 3
    plain = config.model_copy(update={"sft_weight": 0.0})
    once, twice = (PreferenceObjective(plain)(scored(weight=weight)).total for weight in (1.0, 2.0))
    torch.testing.assert_close(twice, 2 * once)


# -- rows --------------------------------------------------------------------------------------------------------------


def test_rows_are_the_serving_prompt_and_the_sids_of_items(world: World) -> None:
    rows = make_rows(world, count=3)
    made = build_rows(quick(window=2, batch_rows=2, epochs=1.5), world.renderer, rows)
    for given, found in zip(rows, made.rows, strict=True):
        expected = world.renderer.sequence(given.history, window=2).input_ids
        assert np.array_equal(found.tree.prompt, expected)
        texts = [world.tokenizer.decode(ids) for ids in found.tree.completions]
        assert texts == [world.table.text(item) for item in (given.chosen, *given.rejected)]
    assert sorted(number for batch in made.batches[:2] for number in batch) == [0, 1, 2]
    assert sum(map(len, made.batches)) == 3 + 2


def test_what_is_left_out_is_counted(world: World) -> None:
    rows = [
        row(0, ["1", "2"], "3", ["4", "new"]),
        row(1, ["1"], "new", ["4"]),
        row(2, ["new"], "1", ["2"]),
        row(3, ["1"], "2", ["new"]),
    ]
    made = build_rows(quick(), world.renderer, rows)
    assert made.dropped == {
        "rejected items without a SID": 2,
        "rows whose chosen item or whole history has no SID": 2,
        "rows of which no rejected item is left": 1,
    }
    assert (len(made.rows), made.pairs) == (1, 1)
    with pytest.raises(InputError, match="no row is left: 1 rejected items without a SID"):
        build_rows(quick(), world.renderer, rows[3:])
    with pytest.raises(DataError, match="both chosen and rejected"):
        build_rows(quick(), world.renderer, [row(0, ["1"], "2", ["2"])])


# -- reference ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precompute", [True, False])
@pytest.mark.parametrize("start", STARTS)
def test_the_first_loss_is_log_2_and_the_reference_is_the_start(
    world: World, tmp_path: Path, start: str, precompute: bool
) -> None:
    model = start_model(world, start)
    rows = make_rows(world)
    before = copy.deepcopy(model).eval()
    config = quick(
        losses={"sigmoid": 1.0},
        precompute_reference=precompute,
        head="vocab",
        train_sid_rows=True,
        epochs=6,
        batch_rows=24,
    )
    run(world, model, config, rows, tmp_path)
    found = losses(tmp_path / "log.jsonl")
    assert found[0] == pytest.approx(math.log(2), abs=1e-6)
    assert losses(tmp_path / "log.jsonl", "margin")[0] == pytest.approx(0.0, abs=1e-5)
    assert found[-1] < found[0] - 0.03  # every batch holds all rows
    assert losses(tmp_path / "log.jsonl", "margin")[-1] > 0.1
    # what the reference says equals the plain forward of the start model over each completion
    made = build_rows(config, world.renderer, rows)
    scores = score_rows(before, TreeForward(before), made, batch_rows=8)
    for rendered, found_scores in zip(made.rows[:4], scores, strict=False):
        for completion, score in zip(rendered.tree.completions, found_scores, strict=True):
            ids = torch.tensor([[*rendered.tree.prompt, *completion]])
            with torch.no_grad():
                logits = before(ids).logits[0, len(rendered.tree.prompt) - 1 : -1].log_softmax(dim=-1)
            expected = logits[range(len(completion)), torch.from_numpy(np.array(completion))].sum()
            assert score == pytest.approx(expected.item(), abs=1e-4)
    moved = {name for name, each in trained(model).items() if not torch.equal(each, trained(before)[name])}
    assert any("lora" in name for name in moved)
    assert any("trainable_tokens" in name for name in moved) == (start == "adapter")


@pytest.mark.parametrize("start", ["extended_base", "adapter"])
def test_a_precomputed_reference_trains_as_a_live_one(world: World, tmp_path: Path, start: str) -> None:
    model = start_model(world, start)
    kept = trained(model)
    found = []
    for precompute in (True, False):
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name in kept:
                    parameter.copy_(kept[name])
        run(world, model, quick(precompute_reference=precompute), make_rows(world), tmp_path / str(precompute))
        found.append(trained(model))
    for name, each in found[0].items():
        torch.testing.assert_close(each, found[1][name], atol=1e-4, rtol=0, msg=name)
    assert losses(tmp_path / "True" / "log.jsonl")[0] == pytest.approx(math.log(4), abs=1e-6)


def test_iterations_move_the_reference_and_may_make_their_own_rows(world: World, tmp_path: Path) -> None:
    asked: list[tuple[int, Any]] = []

    def rows_of(iteration: int, model: Any) -> list[PreferenceRow]:
        asked.append((iteration, model))
        return make_rows(world, rejected=1 + iteration)

    model = start_model(world, "adapter")
    result = run(world, model, quick(iterations=2), rows_of, tmp_path)
    assert asked == [(0, model), (1, model)]
    first, second = (losses(path) for path in result.logs)
    assert first[0] == pytest.approx(math.log(2), abs=1e-6)
    assert second[0] == pytest.approx(math.log(3), abs=1e-6)  # the reference is where the first iteration ended
    assert result.steps == 6
    assert [[step for step, _ in each] for each in result.valid_losses] == [[0, 1, 2, 3], [0, 1, 2, 3]]


# -- going on ----------------------------------------------------------------------------------------------------------


def test_a_killed_run_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    script = Path(__file__).with_name("prefer_and_stop.py")

    def train(folder: Path, iteration: int, step: int) -> int:
        command = [sys.executable, str(script), str(folder), str(iteration), str(step)]
        return subprocess.run(command, check=False, capture_output=True, timeout=200).returncode

    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert train(whole, 0, 0) == 0
    assert train(cut, 1, 3) == -9  # in the second iteration, a step behind its state
    assert not (cut / "weights.safetensors").exists()
    assert train(cut, 0, 0) == 0
    assert (whole / "weights.safetensors").read_bytes() == (cut / "weights.safetensors").read_bytes()
    for name in ("log.jsonl", "log-1.jsonl"):
        assert losses(cut / name) == losses(whole / name)
    assert [path.name for path in (cut / "work/iteration-0").iterdir()] == ["trained.safetensors"]


def test_a_step_of_two_batches_is_the_mean_over_their_rows(world: World, tmp_path: Path) -> None:
    model = start_model(world, "adapter")
    kept, rows, found = trained(model), make_rows(world, count=5), []
    for size, accumulation in ((3, 2), (5, 1)):  # batches of 3 and 2 rows: a mean of two means would differ
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name in kept:
                    parameter.copy_(kept[name])
        config = quick(batch_rows=size, gradient_accumulation=accumulation, sft_weight=1.0)
        run(world, model, config, rows, tmp_path / str(size))
        found.append(
            [losses(tmp_path / str(size) / "log.jsonl", name)[0] for name in ("loss", "grad_norm", "sft_loss")]
        )
    assert found[0] == pytest.approx(found[1], rel=1e-4)
    assert found[0][0] == pytest.approx(math.log(4) + found[0][2], rel=1e-4)
