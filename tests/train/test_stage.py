"""Training stages on a tiny world: what learns, what stays, what is resumed."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llmrec.config import build_config
from llmrec.errors import ConfigError, InputError
from llmrec.sid_vocab.table import SIDTable
from llmrec.train import cpt
from llmrec.train.batches import IGNORED, build_batches, collate
from llmrec.train.config import StageConfig, TaskMix
from llmrec.train.loss import TargetHead
from llmrec.train.stage import run_stage, train_sequences
from tests.train.conftest import World, make_world

QUICK = {"epochs": 3, "batch_tokens": 256, "learning_rate": 3e-3, "sid_learning_rate": 1e-2, "valid_users": 20}


def run(world: World, model: Any, config: StageConfig, folder: Path, name: str = "cpt") -> Any:
    return run_stage(
        name,
        config,
        model=model,
        tokenizer=world.tokenizer,
        renderer=world.renderer,
        dataset=world.dataset,
        window=20,
        work=folder / "work",
        log=folder / "log.jsonl",
    )


def sid_rows(table: SIDTable) -> np.ndarray:
    assert table.token_ids is not None
    return np.concatenate(table.token_ids)


def test_every_train_item_is_a_target_once_an_epoch_and_no_other_item_is(world: World) -> None:
    sequences = train_sequences(world.dataset)
    config = StageConfig(epochs=2, tasks={"behaviour": TaskMix(settings={"window": 4})})
    batches = build_batches(config, world.renderer, world.dataset.catalog, sequences)
    expected = Counter(item for sequence in sequences for item in sequence)
    last = world.renderer.table.sid_token_ids()
    rows = {tuple(ids): item for item, ids in zip(world.table.item_ids, last.tolist(), strict=True)}
    found: Counter[str] = Counter()
    for batch in batches.dataset:
        for labels in batch["labels"]:
            targets = [token for token in labels if token != IGNORED]
            found.update(rows[pair] for pair in zip(targets[::2], targets[1::2], strict=True))
    assert found == Counter({item: 2 * count for item, count in expected.items()})
    assert batches.target_items == sum(found.values())
    assert batches.target_tokens == 2 * batches.target_items


def test_items_before_recent_items_are_counted(world: World) -> None:
    sequences = train_sequences(world.dataset)
    config = StageConfig(recent_items=3)
    batches = build_batches(config, world.renderer, world.dataset.catalog, sequences)
    left_out = sum(max(0, len(items) - 3) for items in sequences)
    assert batches.dropped["items before recent_items"] == left_out > 0
    assert batches.target_items == sum(min(3, len(items)) for items in sequences)


def test_sids_amid_words_are_learned_over_the_whole_vocabulary(world: World) -> None:
    config = StageConfig(tasks={"explain": TaskMix()})
    batches = build_batches(config, world.renderer, world.dataset.catalog, train_sequences(world.dataset))
    rows = set(sid_rows(world.table).tolist())
    labels = [token for batch in batches.dataset for row in batch["labels"] for token in row]
    levels = [level for batch in batches.dataset for row in batch["sid_level"] for level in row]
    assert rows & set(labels)
    assert set(levels) == {-1}


@pytest.mark.parametrize("head", ["level", "vocab"])
@pytest.mark.parametrize(("family", "tied"), [("llama", True), ("qwen3", False), ("gemma2", True)])
def test_the_loss_equals_the_one_of_full_logits(tiny_dataset: Any, family: Any, tied: bool, head: Any) -> None:
    world = make_world(tiny_dataset, family, tied=tied)
    tasks = {"behaviour": TaskMix(), "sid_to_title": TaskMix(), "explain": TaskMix()}
    config = StageConfig(tasks=tasks, batch_tokens=512, head=head)
    batches = build_batches(config, world.renderer, world.dataset.catalog, train_sequences(world.dataset))
    inputs = collate(batches.dataset.select(range(3)).to_list(), world.tokenizer.pad_token_id)
    states = world.model.get_decoder()(input_ids=inputs["input_ids"]).last_hidden_state
    found = TargetHead(world.model, world.table, head)(states, inputs["labels"], inputs["sid_level"])
    logits = world.model(input_ids=inputs["input_ids"]).logits[:, :-1].float()
    labels, levels = inputs["labels"][:, 1:], inputs["sid_level"][:, 1:]
    if head == "level":
        assert world.table.token_ids is not None
        for level, ids in enumerate(world.table.token_ids):
            outside = torch.ones(logits.shape[-1], dtype=torch.bool)
            outside[torch.from_numpy(ids.copy())] = False
            logits[(levels == level)[..., None] & outside] = -torch.inf
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
    assert found.total.item() == pytest.approx(expected.item(), rel=1e-4)
    assert found.tokens == int((labels != IGNORED).sum())


def test_full_cpt_moves_weights_and_sid_rows_and_keeps_base_rows_bit_identical(world: World, tmp_path: Path) -> None:
    before = copy.deepcopy(world.model.state_dict())
    config = build_config(StageConfig, {**QUICK, "epochs": 15, "method": "full"}, source="test")
    model = cpt.prepare(world.model, world.table, config, "extended_base")
    result = run(world, model, config, tmp_path)
    after = world.model.state_dict()
    rows = sid_rows(world.table)
    base = np.setdiff1d(np.arange(len(after["model.embed_tokens.weight"])), rows)
    table = "model.embed_tokens.weight"
    assert torch.equal(after[table][base], before[table][base])
    assert (after[table][rows] != before[table][rows]).any(dim=1).all()
    assert not torch.equal(after["model.layers.0.mlp.up_proj.weight"], before["model.layers.0.mlp.up_proj.weight"])
    first, last = result.valid_losses[0], result.valid_losses[-1]
    assert (first[0], last[0]) == (0, result.steps)
    assert last[1] < first[1] - 0.05


@pytest.mark.parametrize("tied", [True, False])
def test_flow_adapter_moves_the_rows_of_head_and_embedding_and_nothing_of_the_base(
    tiny_dataset: Any, tmp_path: Path, tied: bool
) -> None:
    world = make_world(tiny_dataset, tied=tied)
    before = copy.deepcopy(world.model.state_dict())
    config = build_config(StageConfig, {**QUICK, "epochs": 1}, source="test")
    model = cpt.prepare(world.model, world.table, config, "adapter")
    run(world, model, config, tmp_path)
    merged = model.merge_and_unload()
    rows = sid_rows(world.table)
    base = np.setdiff1d(np.arange(merged.config.vocab_size), rows)
    for layer, name in (
        (merged.get_input_embeddings(), "model.embed_tokens.weight"),
        (merged.get_output_embeddings(), "lm_head.weight"),
    ):
        assert (layer.weight[rows] != before[name][rows]).any(dim=1).all()
        assert torch.equal(layer.weight[base], before[name][base])
    assert torch.equal(merged.model.norm.weight, before["model.norm.weight"])


def test_a_stopped_run_resumes_to_the_same_bits(tiny_dataset: Any, tmp_path: Path) -> None:
    script = Path(__file__).with_name("train_and_stop.py")

    def train(folder: Path, stop_at: int) -> int:
        command = [sys.executable, str(script), str(folder), str(stop_at)]
        return subprocess.run(command, check=False, capture_output=True, timeout=200).returncode

    assert train(tmp_path / "whole", 0) == 0
    assert train(tmp_path / "stopped", 8) == -9
    assert not (tmp_path / "stopped" / "weights.safetensors").exists()
    assert train(tmp_path / "stopped", 0) == 0
    whole, stopped = ((tmp_path / name / "weights.safetensors").read_bytes() for name in ("whole", "stopped"))
    assert whole == stopped
    logs = [(tmp_path / name / "log.jsonl").read_text().splitlines() for name in ("whole", "stopped")]
    steps = [[(row.split('"step": ')[1].split(",")[0], row.count("valid_loss")) for row in log] for log in logs]
    assert steps[0] == steps[1]


def test_contradictions_are_refused_before_training(world: World) -> None:
    with pytest.raises(InputError, match="leaves the base untouched"):
        cpt.prepare(world.model, world.table, StageConfig(method="full"), "adapter")
    with pytest.raises(InputError, match="SID rows would stay"):
        cpt.prepare(world.model, world.table, StageConfig(train_sid_rows=False), "extended_base")
    with pytest.raises(ConfigError, match=r"(?s)'sid_to_titel' is no task"):
        build_config(StageConfig, {"tasks": {"sid_to_titel": {}}}, source="test")
    with pytest.raises(ConfigError, match="has no setting 'windw'; known are window, context"):
        build_config(StageConfig, {"tasks": {"behaviour": {"settings": {"windw": 3}}}}, source="test")
