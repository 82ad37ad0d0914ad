"""GRPO over thoughts: what is drawn, what is scored, what is paid, what learns, and the recipe from start to end."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llmrec import cli, recipes
from llmrec.checkpoint_card import DataCard, LineageEntry, ServingCard
from llmrec.config import build_config
from llmrec.data.dataset import Dataset
from llmrec.decode.searcher import Searcher
from llmrec.decode.thinking_searcher import ThinkingSearcher
from llmrec.decode.trie import SIDTrie
from llmrec.errors import ConfigError, InputError
from llmrec.prompts.renderer import Renderer
from llmrec.prompts.templates import TemplateSet
from llmrec.prompts.thought_form import ThoughtForm
from llmrec.testing.checkpoints import TinyParts
from llmrec.testing.worlds import write_tiny_folder
from llmrec.train.config import StageConfig
from llmrec.train.grpo.batch import pay
from llmrec.train.grpo.config import GRPOStageConfig
from llmrec.train.grpo.prompts import build_prompts
from llmrec.train.grpo.rollouts import Group, Row
from llmrec.train.grpo.stage import prepare
from llmrec.train.grpo.thought_rollouts import make_rollouts, thought_knowledge
from llmrec.train.monitor.held_out import HeldOut
from llmrec.train.rewards.build import build_context
from llmrec.train.rewards.compose import make_rewards
from llmrec.train.stage import run_stage
from tests.train.conftest import World, make_world
from tests.train.grpo_world import copied, grpo, settings
from tests.train.test_grpo import UNCLIPPED, Elsewhere, Gradients, full, rollouts_of, rows_of

TASKS = {"behaviour": {}, "think": {"settings": {"window": 20}}}
BUDGET = 14
THOUGHT = {"kind": "thought", "group_size": 4, "max_thought_tokens": BUDGET, "num_beams": 5}
BEST_BEAM = {"parts": {"best_beam": {"top_k": 5}}, "normalise": "none"}


SHORT = """
form: plain
closing: "!"
phrasings:
  - {prompt: "?", answer: "{{ first_prefix }},{{ prefix }}"}
  - {prompt: "?", answer: "{{ prefix }}"}
"""
"""Thoughts of two to four tokens, which a tiny model learns to end."""


@pytest.fixture(scope="module")
def thinker(tiny_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> World:
    """A tiny model after some epochs of think-SFT with thoughts of few tokens: some of them end."""
    world, folder = full(make_world(tiny_dataset)), tmp_path_factory.mktemp("think-sft")
    shutil.copytree(recipes.folder("prompts"), folder / "prompts")
    (folder / "prompts" / "think.yaml").write_text(SHORT, encoding="utf-8")
    world.renderer = Renderer(world.tokenizer, world.table, TemplateSet.load(folder / "prompts"))
    quick = {"epochs": 8, "batch_tokens": 256, "learning_rate": 5e-3, "sid_learning_rate": 1e-2, "valid_users": 2}
    config = build_config(StageConfig, {**quick, "method": "full", "tasks": TASKS}, source="test")
    run_stage(
        "sft",
        config,
        model=world.model,
        tokenizer=world.tokenizer,
        renderer=world.renderer,
        dataset=world.dataset,
        window=20,
        work=folder / "work",
        log=folder / "sft.jsonl",
    )
    untouched = make_world(tiny_dataset).model  # a trainer leaves a wrapped forward, which copies would share
    untouched.load_state_dict(world.model.state_dict())
    world.model = untouched
    return world


@dataclass
class Drawn:
    config: GRPOStageConfig
    rows: list[Row]
    groups: list[Group]


def drawn(world: World, count: int = 3, **rollout: Any) -> Drawn:
    """Groups of a few prompts."""
    config = settings(rollout={**THOUGHT, **rollout}, rewards=BEST_BEAM)
    trie = SIDTrie.build(world.table.codes, world.table.codebook_sizes)
    searcher = Searcher(world.model, trie, world.table.token_ids or (), normalise="level")
    prompts = build_prompts(config, world.renderer, world.dataset.split, window=20).prompts
    rows: list[Row] = [prompt.columns for prompt in prompts[:count]]
    rollouts = make_rollouts(config.rollout, searcher, world.renderer, world.tokenizer)
    return Drawn(config, rows, rollouts.draw(rows, seed=5))


def test_a_group_holds_thoughts_and_what_is_found_behind_them(thinker: World) -> None:
    found, form, table = drawn(thinker), ThoughtForm.of(thinker.renderer), thinker.table
    sids, closed = table.sid_token_ids(), []
    for row, group in zip(found.rows, found.groups, strict=True):
        written = group.written
        assert written is not None
        assert len(group.items) == 4
        assert group.weights.weights.tolist() == [0.25] * 4
        assert len({tuple(each.tolist()) for each in group.completions}) > 1  # draws
        for number, completion in enumerate(group.completions):
            end, learned = int(written.text[number]), written.learned[number]
            ids, opening, closing = completion.tolist(), list(form.opening_ids), list(form.closing_ids)
            assert ids[: len(opening)] == opening
            assert ids[end - len(closing) : end] == closing
            assert ids[end:] == sids[group.items[number]].tolist()
            assert not learned[: len(opening)].any()
            assert not learned[end:].any()
            assert 1 <= learned.sum() <= BUDGET
            if written.closed[number]:
                assert learned[len(opening) : end].all()
            else:  # the budget was spent: what is missing of the closing words was given
                assert learned[len(opening) : len(opening) + BUDGET].all()
                assert learned.sum() == BUDGET
            assert table.item_ids[group.items[number]] == written.beams[number][0]
            assert len(set(written.beams[number])) == 5
            assert not set(written.beams[number]) & set(row["history"])
        closed += written.closed.tolist()
    assert True in closed
    both = drawn(thinker, learn_item=True).groups[0]
    assert both.written is not None
    assert all(learned[-table.num_levels :].all() for learned in both.written.learned)


def test_what_is_drawn_depends_on_seed_and_prompt_alone(thinker: World) -> None:
    three, two = drawn(thinker), drawn(thinker, 2)
    for one, other in zip(two.groups, three.groups, strict=False):
        assert [each.tolist() for each in one.completions] == [each.tolist() for each in other.completions]


def test_thoughts_are_paid_for_the_best_of_their_beams_and_for_what_is_true(thinker: World) -> None:
    found, table, config = drawn(thinker, 6), thinker.table, settings(rollout=THOUGHT)
    parts = {"best_beam": {"top_k": 3}, "grounded": {}, "format": {}, "hit": {}, "path_consistency": {}}
    named = config.rewards.model_copy(update={"parts": parts, "normalise": "none"})
    knowledge = thought_knowledge(config.rollout, thinker.renderer, thinker.dataset.catalog)
    rewards = make_rewards(named, build_context(named, table, thinker.dataset.split, **knowledge))
    paid = pay(rewards, found.rows, found.groups)
    best, true = [], []
    for row, group, one in zip(found.rows, found.groups, paid, strict=True):
        assert group.written is not None
        target = table.codes[table.row(row["target"])]
        for beams, got in zip(group.written.beams, one.parts, strict=True):
            codes = np.array([table.codes[table.row(item)] for item in beams[:3]])
            same = codes == target
            assert got[0] == pytest.approx(np.cumprod(same, axis=1).sum(axis=1).max() / table.num_levels)
            assert got[2] == 1
            assert got[3] == float(same[0].all())
            best.append(got[0])
            true.append(got[1])
    assert len(set(best)) > 1
    assert 0 < np.mean(true) <= 1


def plain_log_p(world: World, row: Any, number: int, normalise: str, temperature: float) -> torch.Tensor:
    """(tokens,) log-probabilities of one completion from a forward of its own."""
    completion = torch.as_tensor(np.asarray(row.completions[number]))
    prompt = torch.as_tensor(np.asarray(row.prompt))
    logits = world.model(input_ids=torch.cat([prompt, completion])[None]).logits[0, len(prompt) - 1 : -1].float()
    log_p = torch.log_softmax(logits / temperature, 1)[range(len(completion)), completion]
    text = int(row.text[number])
    trie, node, found = row.allowed, 0, [log_p[:text]]
    trie = SIDTrie.build(world.table.codes, world.table.codebook_sizes)
    alive = np.ones(trie.num_items, dtype=bool)
    if row.allowed is not None:
        alive[row.allowed.rows] = False
    trie = trie.with_alive(alive)
    for level, (each, token) in enumerate(zip(logits[text:], completion[text:].tolist(), strict=True)):
        of_level = (world.table.token_ids or ())[level]
        children = trie.children(level, np.array([node]))
        code = int(np.flatnonzero(of_level == token)[0])
        node = int(children.node[children.code == code][0])
        over = of_level[children.code] if normalise == "legal" else of_level
        chosen = each / temperature
        found.append((chosen[token] - torch.logsumexp(chosen[torch.from_numpy(over.copy())], 0))[None])
    return torch.cat(found)


@pytest.mark.parametrize(("normalise", "learn_item"), [("legal", True), ("level", False)])
def test_a_steps_gradient_is_that_of_a_forward_per_thought(
    thinker: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, normalise: str, learn_item: bool
) -> None:
    """Drawn tokens over the vocabulary, the item over `normalise` where it is learned, given words not at all."""
    batches, gradients, before = rollouts_of(monkeypatch), Gradients(), full(copied(thinker))
    monkeypatch.setattr("llmrec.train.grpo.stage.StartWeights", Elsewhere)
    config = settings(
        rollout={**THOUGHT, "temperature": 0.9, "learn_item": learn_item}, normalise=normalise,
        rewards={"parts": {"tests.train.test_grpo_thoughts:uneven": {}}, "normalise": "none"},
        max_steps=1, learning_rate=1e-12, beta=0.5, anchor=0.3, prompts_per_step=6, valid_users=2, **UNCLIPPED,
    )  # fmt: skip
    grpo(full(copied(thinker)), config, tmp_path, callbacks=[gradients])
    [inputs] = batches
    batch = inputs["batch"]
    flat = [(row, number) for row in batch.tree for number in range(len(row.completions))]
    scored = [plain_log_p(before, row, number, normalise, 0.9) for row, number in flat]
    completions, kept = len(batch.rollout), float(batch.weight.sum())
    assert completions > 4
    total = torch.zeros(())
    for number, place in enumerate(batch.rollout.tolist()):
        mask = batch.mask[number, : len(scored[place])].bool()
        assert mask[-1]  # cut behind the last token that is learned from
        log_p = scored[place][mask]
        reference = inputs["reference"][number, : len(mask)][mask]
        ratio = (log_p - log_p.detach()).exp()
        total = total - (ratio * batch.advantages[number]).mean() / completions
        apart = reference - log_p
        total = total + 0.5 * batch.weight[number] * ((apart.exp() - apart - 1) * ratio).mean() / kept
    for place in batch.target.tolist():
        total = total - 0.3 * scored[place].mean() / 6
    total.backward()  # type: ignore[no-untyped-call]
    expected = np.concatenate([each.grad.flatten().numpy() for each in before.model.parameters()])
    np.testing.assert_allclose(gradients.steps[0], expected, atol=1e-4 * np.abs(expected).max())


def uneven(completion_ids: Any, **columns: Any) -> list[float]:
    return [float(sum(ids) % 5) for ids in completion_ids]


def brief(completion_ids: Any, **columns: Any) -> list[float]:
    return [-float(len(ids)) for ids in completion_ids]


def test_thoughts_learn_what_is_paid_and_the_run_is_watched_as_it_thinks(
    thinker: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    plain = HeldOut.measure

    def measure(self: HeldOut) -> np.ndarray:
        asked.append(self.searcher)
        return plain(self)

    monkeypatch.setattr(HeldOut, "measure", measure)
    config = settings(
        rollout={**THOUGHT, "group_size": 8}, rewards={"parts": {"tests.train.test_grpo_thoughts:brief": {}}},
        max_steps=8, evaluate_steps=8, valid_users=2, beta=0.0, anchor=0.0, prompts_per_step=4, keep_best=False,
    )  # fmt: skip
    grpo(full(copied(thinker)), config, tmp_path)
    rows = [row for row in rows_of(tmp_path) if row["step"]]
    tokens = [row["thought_tokens"] for row in rows]
    assert np.mean(tokens[-2:]) < 0.9 * np.mean(tokens[:2]), tokens
    assert all(0 <= row["thoughts_closed"] <= 1 for row in rows)
    assert all(isinstance(searcher, ThinkingSearcher) for searcher in asked)
    assert len(asked) == 2


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"rewards": BEST_BEAM}, "judge thoughts: set rollout.kind: thought"),
        ({"rollout": {"max_thought_tokens": 9, "learn_item": True}}, "max_thought_tokens and learn_item: only kind"),
        ({"rollout": {"kind": "thought", "add_target": True}}, "add_target needs kind: beam"),
        ({"rollout": {"kind": "thought", "estimator": "unordered_set"}}, "thoughts and beams count equally"),
    ],
)
def test_settings_that_do_not_fit_are_refused(values: Any, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        build_config(GRPOStageConfig, values, source="test")


@pytest.fixture(scope="module")
def checkpoints(thinker: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The thinker as SFT leaves it, and one whose recipe says that it was never taught to think."""
    folder, dataset = tmp_path_factory.mktemp("thinkers"), thinker.dataset
    again = write_tiny_folder(folder / "tiny")  # the same data, where the recipe finds it
    templates = thinker.renderer.templates
    parts = TinyParts(thinker.model, thinker.tokenizer, thinker.table, dataset.catalog, templates)
    data = {"path": str(again), "attributes": ["genres"]}
    for name, tasks in (("taught", TASKS), ("untaught", {"behaviour": {}})):
        parts.write(
            folder / name,
            lineage=[LineageEntry(stage="sft", config_hash="c0ffee")],
            recipe={"data": data, "sft": {"tasks": tasks}},
            data=DataCard(name="tiny", loo_sha256=dataset.split.loo_sha256, fingerprint=dataset.fingerprint),
            serving=ServingCard(window=20, max_length=256, num_beams=10, normalise="level"),
        )
    return folder


def test_the_recipe_runs_from_a_taught_checkpoint(
    checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    small = (
        "grpo.max_steps=2", "grpo.prompts_per_step=3", "grpo.rollout.group_size=3",
        "grpo.rollout.max_thought_tokens=12", "grpo.valid_users=2", "grpo.normalise=level", "eval.users=2",
        "eval.exact_users=0", "eval.baselines={}",
    )  # fmt: skip
    recipe = recipes.folder("train") / "align" / "grpo-think.yaml"
    with pytest.raises(SystemExit) as end:
        cli.main(["align", str(recipe), f"checkpoint={checkpoints / 'taught'}", *small])
    shown = capsys.readouterr()
    assert not end.value.code, shown.err
    assert "3 thoughts of up to 12 tokens, 10 beams behind each" in shown.out
    made = tmp_path / "runs" / "grpo-think"
    assert json.loads((made / "train.json").read_text())["steps"] == 2
    rows = [json.loads(line) for line in (made / "logs" / "grpo.jsonl").read_text().splitlines()]
    assert {"reward/best_beam", "reward/grounded", "thought_tokens"} <= rows[-1].keys()


def test_a_start_that_was_never_taught_to_think_is_refused(checkpoints: Path) -> None:
    from llmrec.checkpoint import Checkpoint

    config = settings(rollout=THOUGHT, method="lora", train_sid_rows=False)
    with pytest.raises(InputError, match=r"never taught to think \(its tasks: behaviour\)"):
        prepare(Checkpoint.load(checkpoints / "untaught"), config, "extended_base")
    assert prepare(Checkpoint.load(checkpoints / "taught"), config, "extended_base") is not None
