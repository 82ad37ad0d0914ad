"""The GRPO stage on a tiny world: gradients against a plain forward, what learns, what is resumed, what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import TrainerCallback

from llmrec.checkpoint_card import LineageEntry
from llmrec.errors import InputError, LLMRecError
from llmrec.testing.checkpoints import tiny_parts
from llmrec.train import cpt
from llmrec.train.config import StageConfig
from llmrec.train.grpo.prompts import build_prompts
from llmrec.train.grpo.stage import prepare
from llmrec.train.grpo.trainer import ConstrainedGRPOTrainer
from llmrec.train.rewards.compose import RewardSet
from llmrec.train.start_weights import StartWeights
from tests.train.conftest import World, make_world
from tests.train.grpo_world import copied, grpo, settings


class Gradients(TrainerCallback):  # type: ignore[misc]
    """The gradient of every step, before it is clipped."""

    def __init__(self) -> None:
        self.steps: list[np.ndarray] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        parameters = [each for each in kwargs["model"].parameters() if each.requires_grad]
        self.steps.append(torch.cat([each.grad.flatten() for each in parameters]).numpy().copy())


class Elsewhere(StartWeights):
    """A reference that is not the start, so that the divergence has a gradient at the first step."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        generator = torch.Generator().manual_seed(3)
        self._kept = [each + 0.02 * torch.randn(each.shape, generator=generator) for each in self._kept]


UNCLIPPED = {"max_grad_norm": 1e9}


def rollouts_of(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every batch that a run has rolled out."""
    seen: list[Any] = []
    plain = ConstrainedGRPOTrainer._roll_out

    def spied(self: Any, rows: Any) -> Any:
        found = plain(self, rows)
        seen.extend(found)
        return found

    monkeypatch.setattr(ConstrainedGRPOTrainer, "_roll_out", spied)
    return seen


def full(world: World) -> World:
    world.model.requires_grad_(True)
    return world


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "grpo.jsonl").read_text().splitlines()]


def plain_log_p(world: World, prompt: Any, completion: Any, allowed: Any, normalise: str) -> torch.Tensor:
    """(levels,) log-probabilities of one completion from a forward of its own."""
    from llmrec.decode.trie import SIDTrie

    ids = torch.tensor([[*prompt, *completion]])
    logits = world.model(input_ids=ids).logits[0, len(prompt) - 1 : -1].float()
    assert world.table.token_ids is not None
    trie = SIDTrie.build(world.table.codes, world.table.codebook_sizes)
    if allowed is not None:
        trie = trie.with_alive(np.isin(np.arange(trie.num_items), allowed.rows, invert=True))
    node, found = 0, []
    for level, token in enumerate(completion):
        of_level = world.table.token_ids[level]
        code = int(np.flatnonzero(of_level == token)[0])
        children = trie.children(level, np.array([node]))
        codes = children.code if normalise == "legal" else np.arange(len(of_level))
        row = logits[level][torch.tensor(of_level[codes].copy())] if normalise != "vocab" else logits[level]
        place = int(np.flatnonzero(codes == code)[0]) if normalise != "vocab" else int(token)
        found.append(torch.log_softmax(row, 0)[place])
        node = int(children.node[np.flatnonzero(children.code == code)[0]])
    return torch.stack(found)


@pytest.mark.parametrize("normalise", ["legal", "level", "vocab"])
def test_a_steps_gradient_is_that_of_a_forward_per_completion(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, normalise: str
) -> None:
    """Policy term, KL and anchor, written out for every completion of every group that has variance."""
    batches, gradients = rollouts_of(monkeypatch), Gradients()
    before = copied(full(world))
    monkeypatch.setattr("llmrec.train.grpo.stage.StartWeights", Elsewhere)
    rewards = {"parts": {"prefix_depth": {}}, "normalise": "none"}
    config = settings(
        normalise=normalise, rewards=rewards, max_steps=1, learning_rate=1e-12, beta=0.5, anchor=0.3,
        prompts_per_step=5, gradient_accumulation=2, **UNCLIPPED,
    )  # fmt: skip
    grpo(world, config, tmp_path, callbacks=[gradients])
    completions = sum(len(batch["batch"].rollout) for batch in batches)
    kept = sum(float(batch["batch"].weight.sum()) for batch in batches)
    assert completions > 0
    total = torch.zeros(())
    for inputs in batches:
        batch = inputs["batch"]
        flat = [(row, each) for row in batch.tree for each in row.completions]
        scored = [plain_log_p(before, row.prompt, each, row.allowed, normalise) for row, each in flat]
        for number, place in enumerate(batch.rollout.tolist()):
            log_p = scored[place]
            ratio = (log_p - log_p.detach()).exp()
            total = total - (ratio * batch.advantages[number]).mean() / completions
            apart = inputs["reference"][number] - log_p
            divergence = ((apart.exp() - apart - 1) * ratio).mean()
            total = total + 0.5 * batch.weight[number] * divergence / kept
        for place in batch.target.tolist():
            total = total - 0.3 * scored[place].mean() / 10
    total.backward()
    expected = np.concatenate([each.grad.flatten().numpy() for each in before.model.parameters()])
    np.testing.assert_allclose(gradients.steps[0], expected, atol=2e-5 * np.abs(expected).max() + 1e-7)


def test_batches_of_a_step_give_the_gradient_of_one_batch(world: World, tmp_path: Path) -> None:
    """Groups with variance fall unevenly on the batches; each counts the same nevertheless."""
    found = []
    for name, changes in {"one": {"prompts_per_step": 8}, "four": {"prompts_per_step": 2}}.items():
        gradients = Gradients()
        config = settings(
            max_steps=1, gradient_accumulation=8 // changes["prompts_per_step"], beta=0.1, **changes, **UNCLIPPED
        )
        grpo(full(copied(world)), config, tmp_path / name, callbacks=[gradients])
        found.append(gradients.steps[0])
    np.testing.assert_allclose(found[1], found[0], atol=1e-4 * np.abs(found[0]).max())


def test_groups_without_variance_are_left_out_and_counted(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = rollouts_of(monkeypatch)
    rewards = {"parts": {"tests.train.test_grpo:for_even_users": {}}, "normalise": "none"}
    grpo(full(world), settings(max_steps=2, anchor=0.0, rewards=rewards), tmp_path)
    rows = [row for row in rows_of(tmp_path) if row["step"]]
    for row, inputs in zip(rows, batches, strict=True):
        assert row["groups"] == 8
        assert row["dropped"] == 8 - len(inputs["batch"].tree)
        assert row["zero_variance"] == pytest.approx(row["dropped"] / 8)
    assert 0 < sum(row["dropped"] for row in rows) < 16


def for_even_users(completion_ids: Any, row_id: Any, **columns: Any) -> list[float]:
    pairs = zip(completion_ids, row_id, strict=True)
    return [float(ids[-1] % 7) if int(row.split(":")[0]) % 2 == 0 else 0.5 for ids, row in pairs]


def test_a_step_without_any_variance_changes_nothing(world: World, tmp_path: Path) -> None:
    before = [each.detach().clone() for each in full(world).model.parameters()]
    monkey = {"parts": {"tests.train.test_grpo:everything_is_fine": {}}, "normalise": "none"}
    result = grpo(world, settings(max_steps=2, anchor=0.0, rewards=monkey, keep_best=False), tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(before, world.model.parameters(), strict=True))
    assert result.steps == 2
    assert rows_of(tmp_path)[-1]["zero_variance"] == 1


def everything_is_fine(completion_ids: Any, **columns: Any) -> list[float]:
    return [1.0] * len(completion_ids)


def not_a_number(completion_ids: Any, **columns: Any) -> list[float]:
    return [float("nan")] * len(completion_ids)


def too_few(completion_ids: Any, **columns: Any) -> list[float]:
    return [1.0]


@pytest.mark.parametrize(("reward", "says"), [("not_a_number", "is nan for"), ("too_few", "gave 1 values for")])
def test_a_reward_that_gives_nonsense_is_refused_by_name(world: World, tmp_path: Path, reward: str, says: str) -> None:
    rewards = {"parts": {f"tests.train.test_grpo:{reward}": {}}}
    with pytest.raises(InputError, match=f"{reward}.*{says}"):
        grpo(full(world), settings(rewards=rewards), tmp_path)


def test_nothing_left_to_draw_is_told(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = settings()
    everything = tuple(world.table.item_ids)

    def seen_all(*args: Any, **kwargs: Any) -> Any:
        found = build_prompts(*args, **kwargs)
        object.__setattr__(
            found,
            "prompts",
            tuple(type(each)(**{**vars(each), "history": everything}) for each in found.prompts),
        )
        return found

    monkeypatch.setattr("llmrec.train.grpo.stage.build_prompts", seen_all)
    with pytest.raises(LLMRecError, match="no living item is left to draw"):
        grpo(full(world), config, tmp_path)


@pytest.mark.parametrize("kind", ["sample", "beam"])
def test_groups_are_whole_distinct_and_never_of_the_history(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    batches = rollouts_of(monkeypatch)
    rollout = {"kind": kind, "group_size": 8, **({"add_target": True} if kind == "beam" else {})}
    config = settings(
        rollout=rollout, normalise="level", anchor=0.0, rewards={"parts": {"prefix_depth": {}}}, max_steps=2
    )
    grpo(full(world), config, tmp_path)
    rows = build_prompts(config, world.renderer, world.dataset.split, window=20).prompts
    by_prompt = {tuple(row.prompt_ids.tolist()): row for row in rows}
    sids = world.table.sid_token_ids()
    for inputs in batches:
        for tree in inputs["batch"].tree:
            row = by_prompt[tuple(int(token) for token in tree.prompt)]
            drawn = {tuple(each.tolist()) for each in tree.completions}
            assert len(drawn) == 8
            assert not drawn & {tuple(sids[world.table.row(item)].tolist()) for item in row.history}
            target = tuple(sids[world.table.row(row.target)].tolist())
            assert kind == "sample" or target in drawn
    if kind == "beam":  # what was added is no merit of the policy
        assert {row["distinct_items"] for row in rows_of(tmp_path) if row["step"]} != {8.0}


def test_no_target_is_a_valid_or_test_event(world: World) -> None:
    split = world.dataset.split
    prompts = build_prompts(settings(recent_events=None), world.renderer, split, window=20)
    train = {user: [split.items[i] for i in seq] for user, seq in zip(split.users, split.train(), strict=True)}
    for prompt in prompts.prompts:
        user, position = prompt.row_id.split(":")
        assert train[user][int(position)] == prompt.target
        assert tuple(train[user][: int(position)]) == prompt.history
        assert train[user][int(position) :] == list(prompt.continuation)
    repeats = prompts.dropped.get("the target is in the history, which cannot be drawn", 0)
    assert repeats + len(prompts.prompts) == sum(max(0, len(items) - 1) for items in train.values())


@pytest.mark.parametrize("tied", [True, False])
def test_of_an_adapter_with_sid_rows_the_reference_is_the_start_and_the_base_stays(
    tiny_dataset: Any, tmp_path: Path, tied: bool
) -> None:
    world = make_world(tiny_dataset, tied=tied)
    model = cpt.prepare(world.model, world.table, StageConfig(), "adapter")
    with torch.no_grad():  # as a stage before would have left it
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    start = {name: each.detach().clone() for name, each in model.named_parameters()}
    config = settings(beta=0.1, max_steps=3, rewards={"parts": {"prefix_depth": {}}}, keep_best=False)
    grpo(world, config, tmp_path, model=model)
    rows = rows_of(tmp_path)
    assert rows[1]["kl"] == pytest.approx(0, abs=1e-6)
    assert rows[3]["kl"] > 1e-5
    moved = {name for name, each in model.named_parameters() if not torch.equal(each, start[name])}
    assert moved == {name for name, each in model.named_parameters() if each.requires_grad}
    assert any("trainable_tokens_delta" in name for name in moved)


def test_a_start_without_sft_is_refused_and_a_full_model_gets_an_adapter(tmp_path: Path) -> None:
    parts = tiny_parts()
    untaught = parts.write(tmp_path / "cpt")
    with pytest.raises(InputError, match="has seen no sft"):
        prepare(untaught, settings(method="lora", train_sid_rows=False), "extended_base")
    lineage = [LineageEntry(stage="sft", config_hash="c0ffee")]
    model = prepare(
        parts.write(tmp_path / "sft", lineage=lineage), settings(method="lora", train_sid_rows=False), "extended_base"
    )
    trained = {name for name, each in model.named_parameters() if each.requires_grad}
    assert trained
    assert all("lora_" in name for name in trained)


def test_start_weights_are_swapped_in_and_out(world: World) -> None:
    model = full(world).model
    reference = StartWeights(model)
    start = [each.detach().clone() for each in model.parameters()]
    with torch.no_grad():
        for each in model.parameters():
            each.add_(1.0)
    with reference.active():
        assert all(torch.equal(a, b) for a, b in zip(start, model.parameters(), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(start, model.parameters(), strict=True))


@pytest.mark.parametrize("loss", ["dapo", "cispo", "vespo", "ecpo", "gbpo"])
def test_every_kind_of_loss_trains(world: World, tmp_path: Path, loss: str) -> None:
    config = settings(loss=loss, num_iterations=2, max_steps=4, rewards={"parts": {"prefix_depth": {}}})
    result = grpo(full(world), config, tmp_path)
    assert result.steps == 4
    rows = [row for row in rows_of(tmp_path) if row["step"]]
    assert all(np.isfinite(row["loss"]) and row["grad_norm"] > 0 for row in rows)
    assert rows[0]["clip_share"] == 0
    assert all(row["clip_share"] >= 0 for row in rows)


def test_a_run_that_only_did_harm_hands_on_what_it_was_given(world: World, tmp_path: Path) -> None:
    before = [each.detach().clone() for each in full(world).model.parameters()]
    values = iter([np.array([0.5, 0.6])] + [np.array([0.45, 0.5])] * 9)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("llmrec.train.monitor.held_out.HeldOut.measure", lambda self: next(values))
        result = grpo(world, settings(), tmp_path)
    assert result.handed_on == 0
    assert [step for step, _ in result.held_out] == [0, 2, 4]
    assert all(torch.equal(a, b) for a, b in zip(before, world.model.parameters(), strict=True))


def test_a_collapse_stops_the_run_and_hands_on_the_best(world: World, tmp_path: Path) -> None:
    values = iter([np.array([0.5, 0.6]), np.array([0.6, 0.7])] + [np.array([0.1, 0.2])] * 9)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("llmrec.train.monitor.held_out.HeldOut.measure", lambda self: next(values))
        result = grpo(full(world), settings(max_steps=9, keep_best=False), tmp_path)
    assert result.stopped_by is not None
    assert (result.stopped_by.name, result.steps, result.handed_on) == ("collapsed", 4, 2)
    assert rows_of(tmp_path)[-1]["alarms"] == ["collapsed"]


def test_weights_that_break_stop_the_run_at_once(world: World, tmp_path: Path) -> None:
    calls: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        plain = torch.nn.utils.clip_grad_norm_

        def broken(parameters: Any, *args: Any, **kwargs: Any) -> Any:
            found = list(parameters)
            calls.append(1)
            if len(calls) == 3:
                found[0].grad.fill_(float("nan"))
            return plain(found, *args, **kwargs)

        patch.setattr(torch.nn.utils, "clip_grad_norm_", broken)
        result = grpo(full(world), settings(max_steps=9), tmp_path)
    assert result.stopped_by is not None
    assert (result.stopped_by.name, result.steps) == ("not_finite", 3)
    assert all(torch.isfinite(each).all() for each in world.model.parameters())


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_bits(tmp_path: Path) -> None:
    script = Path(__file__).with_name("grpo_and_stop.py")

    def train(folder: Path, stop_at: int) -> int:
        command = [sys.executable, str(script), str(folder), str(stop_at)]
        return subprocess.run(command, check=False, capture_output=True, timeout=200).returncode

    assert train(tmp_path / "whole", 0) == 0
    assert train(tmp_path / "stopped", 5) == -9
    assert train(tmp_path / "stopped", 0) == 0
    whole, stopped = ((tmp_path / name / "weights.safetensors").read_bytes() for name in ("whole", "stopped"))
    assert whole == stopped
    logs = [rows_of(tmp_path / name) for name in ("whole", "stopped")]
    for a, b in zip(*logs, strict=True):
        assert {k: v for k, v in a.items() if k != "seconds"} == {k: v for k, v in b.items() if k != "seconds"}


def test_a_reward_set_is_paid_in_one_call_with_the_rows_columns(world: World, tmp_path: Path) -> None:
    seen: list[dict[str, Any]] = []
    plain = RewardSet.parts

    def spied(self: Any, ids: Any, **columns: Any) -> Any:
        seen.append({"ids": ids, **columns})
        return plain(self, ids, **columns)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RewardSet, "parts", spied)
        grpo(full(world), settings(max_steps=1), tmp_path)
    (call,) = seen
    assert {len(values) for values in call.values()} == {64}
    assert len(set(call["row_id"])) == 8
    assert all(items[0] == target for items, target in zip(call["continuation"], call["target"], strict=True))
    assert max(call["log_probability"]) < 0
