"""Canary: what `RecommenderTrainer` and `run_stage` rely on in TRL and transformers. Fails first when they change."""

from __future__ import annotations

import ast
import inspect
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import TrainerState
from trl import SFTConfig, SFTTrainer

from llmrec.models import load_weights
from llmrec.train import cpt, trainer
from llmrec.train.batches import IGNORED, Batches, build_batches, collate, valid_batches
from llmrec.train.config import Flow, StageConfig, TaskMix
from llmrec.train.stage import stage_arguments, train_sequences
from llmrec.train.states import last_state
from llmrec.train.trainer import RecommenderTrainer
from tests.train.conftest import World

SEEN = {"trl": "1.16", "transformers": "5.19"}
MIXED = {"behaviour": TaskMix(), "sid_to_title": TaskMix(), "explain": TaskMix()}


class Recorder:
    """A collator that remembers what it was given."""

    def __init__(self, pad_id: int) -> None:
        self.pad_id = pad_id
        self.rows: list[list[list[int]]] = []

    def __call__(self, rows: Any) -> dict[str, Any]:
        self.rows += [row["input_ids"] for row in rows]
        return collate(rows, self.pad_id)


def make_batches(world: World, **settings: Any) -> tuple[StageConfig, Batches]:
    config = StageConfig(**{"method": "full", "tasks": MIXED, "batch_tokens": 256, "save_steps": 3, **settings})
    return config, build_batches(config, world.renderer, world.dataset.catalog, train_sequences(world.dataset))


def make_trainer(
    world: World, config: StageConfig, rows: Dataset, folder: Path, flow: Flow = "extended_base", **arguments: Any
) -> tuple[RecommenderTrainer, Recorder]:
    steps = -(-len(rows) // config.gradient_accumulation)
    args = stage_arguments(config, steps, folder, fresh=False)
    for name, value in {"eval_strategy": "no", **arguments}.items():
        setattr(args, name, value)
    recorder = Recorder(world.tokenizer.pad_token_id)
    made = RecommenderTrainer(
        model=cpt.prepare(world.model, world.table, config, flow),
        args=args,
        train_dataset=rows,
        processing_class=world.tokenizer,
        data_collator=recorder,
        table=world.table,
        stage=config,
    )
    return made, recorder


@pytest.mark.parametrize("package", SEEN)
def test_the_versions_are_those_the_seam_was_read_against(package: str) -> None:
    found = ".".join(version(package).split(".")[:2])
    if found != SEEN[package]:
        pytest.fail(
            f"{package} is {found}, the seam was read against {SEEN[package]}: run this file, read SFTTrainer.__init__,"
            " compute_loss, prediction_step and log, and Trainer._get_num_items_in_batch, training_step and"
            " _save_checkpoint for what docs/decisions/0005-trl-seam.md lists; then change SEEN and that page.",
            pytrace=False,
        )


@pytest.mark.parametrize("name", ["compute_loss", "create_optimizer", "log"])
def test_overrides_take_what_the_overridden_methods_take(name: str) -> None:
    ours, theirs = (inspect.signature(getattr(each, name)).parameters for each in (RecommenderTrainer, SFTTrainer))
    assert [(each.name, each.default) for each in ours.values()] == [
        (each.name, each.default) for each in theirs.values()
    ]


def test_nothing_private_is_overridden_or_used(world: World, tmp_path: Path) -> None:
    tree = ast.parse(inspect.getsource(trainer))
    [ours] = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "RecommenderTrainer"]
    methods = {node.name for node in ours.body if isinstance(node, ast.FunctionDef)}
    of_self = {
        node.attr
        for node in ast.walk(ours)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self"
    }
    private = {name for name in methods | of_self if name.startswith("_") and not name.startswith("__")}
    config, batches = make_batches(world)
    plain = SFTTrainer(
        model=world.model,
        args=stage_arguments(config, 1, tmp_path, fresh=True),
        train_dataset=batches.dataset,
        eval_dataset=batches.dataset,
        processing_class=world.tokenizer,
        data_collator=Recorder(0),
    )
    assert private  # our own
    assert not {name for name in private if hasattr(plain, name)}


def test_ready_rows_reach_the_collator_as_they_are_and_in_order(world: World, tmp_path: Path) -> None:
    config, batches = make_batches(world, batch_tokens=1024, epochs=2)
    rows = batches.dataset.select(range(6))
    made, recorder = make_trainer(world, config, rows, tmp_path)
    assert made.train_dataset.column_names == ["input_ids", "labels", "sid_level"]
    assert made.args.train_sampling_strategy == "sequential"
    made.train()
    assert recorder.rows == rows["input_ids"][:]
    assert len({str(row) for row in recorder.rows}) == 6  # so that another order would show


def test_a_resumed_run_reads_the_rows_that_were_left_and_no_other(world: World, tmp_path: Path) -> None:
    config, batches = make_batches(world)
    rows = batches.dataset.select(range(5))
    made, _ = make_trainer(world, config, rows, tmp_path)
    made.train()
    again, recorder = make_trainer(world, config, rows, tmp_path)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert recorder.rows == rows["input_ids"][3:]


def test_trainer_state_is_the_last_file_of_a_state(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before: list[dict[str, int]] = []
    save = TrainerState.save_to_json

    def save_and_look(state: TrainerState, path: str) -> None:
        before.append(sizes(Path(path).parent))
        save(state, path)

    monkeypatch.setattr(TrainerState, "save_to_json", save_and_look)
    config, batches = make_batches(world)
    made, _ = make_trainer(world, config, batches.dataset.select(range(3)), tmp_path)
    made.train()
    after = sizes(tmp_path / "checkpoint-3")
    assert {"model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"} < before[0].keys()
    assert before[0] == {name: size for name, size in after.items() if name != "trainer_state.json"}
    assert last_state(tmp_path) == tmp_path / "checkpoint-3"


def sizes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in folder.iterdir()}


def test_a_step_of_two_batches_is_the_step_of_both_in_one(
    world: World, tiny_dataset: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[int] = []
    compute_loss = RecommenderTrainer.compute_loss

    def record(self: Any, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        given.append(int(num_items_in_batch))
        return compute_loss(self, model, inputs, return_outputs, num_items_in_batch)

    monkeypatch.setattr(RecommenderTrainer, "compute_loss", record)
    config, batches = make_batches(world, gradient_accumulation=2, warmup_ratio=0, batch_tokens=512)
    rows = batches.dataset.to_list()
    targets = [sum(label != IGNORED for labels in row["labels"] for label in labels[1:]) for row in rows]
    ends = [targets.index(min(targets)), targets.index(max(targets))]
    assert targets[ends[1]] > 1.5 * targets[ends[0]]  # so that a mean of two means would differ
    pair = [rows[end] for end in ends]
    merged = {name: pair[0][name] + pair[1][name] for name in pair[0]}
    # SGD, because AdamW's first step is the sign of the gradient and would hide a wrong scale
    settings = {"optim": "sgd", "lr_scheduler_type": "constant", "max_grad_norm": 1e9, "save_strategy": "no"}
    start = {name: weight.clone() for name, weight in world.model.state_dict().items()}
    found = []
    for data, accumulation in ((pair, 2), ([merged], 1)):
        world.model.load_state_dict(start)
        each = config.model_copy(update={"gradient_accumulation": accumulation})
        made, _ = make_trainer(world, each, Dataset.from_list(data), tmp_path, **settings)
        made.train()
        found.append({name: weight.clone() for name, weight in world.model.state_dict().items()})
    assert given == [sum(targets[end] for end in ends)] * 3
    for name, weight in found[0].items():
        moved = (weight - start[name]).abs().max().item()
        assert torch.allclose(weight, found[1][name], rtol=0, atol=1e-7 + 1e-3 * moved), name
    assert max((found[0][name] - start[name]).abs().max().item() for name in start) > 1e-4


def test_logged_losses_are_means_over_targets(world: World, tmp_path: Path) -> None:
    config, batches = make_batches(world, gradient_accumulation=2)
    # a step of one batch with known SIDs and one of words: the loss is the mean over the targets of both
    counts = [_targets(batch) for batch in batches.dataset]
    chosen = [next(place for place, count in enumerate(counts) if count[kind]) for kind in (0, 1)]
    pair = batches.dataset.select(chosen)
    made, _ = make_trainer(world, config, pair, tmp_path, logging_steps=1)
    made.args.learning_rate = 0.0
    made.train()
    row = next(row for row in made.state.log_history if "grad_norm" in row)
    sid, text = (sum(counts[place][kind] for place in chosen) for kind in (0, 1))
    expected = (sid * row["sid_loss"] + text * row["text_loss"]) / (sid + text)
    assert row["loss"] == pytest.approx(expected, rel=1e-3)
    sequences = train_sequences(world.dataset)
    histories, targets = [each[:-1] for each in sequences], [each[-1] for each in sequences]
    valid = valid_batches(world.renderer, histories, targets, window=20, batch_tokens=200)
    assert len({len(batch) for batch in valid["labels"]}) > 1  # so that a mean of batches would differ
    found = made.evaluate(valid)
    one = valid_batches(world.renderer, histories, targets, window=20, batch_tokens=10**6)
    assert found["eval_loss"] == pytest.approx(made.evaluate(one)["eval_loss"], rel=1e-5)
    assert found["eval_sid_loss"] == found["eval_loss"]
    assert isinstance(made.args, SFTConfig)


def _targets(batch: dict[str, Any]) -> tuple[int, int]:
    """Targets of a batch whose position is known to be a SID, and the others."""
    pairs = [
        level >= 0
        for labels, levels in zip(batch["labels"], batch["sid_level"], strict=True)
        for label, level in zip(labels, levels, strict=True)
        if label != IGNORED
    ]
    return sum(pairs), len(pairs) - sum(pairs)


def test_what_learns_on_a_packed_base_stays_in_float32(world: World, tmp_path: Path) -> None:
    world.model.save_pretrained(tmp_path / "base")
    config, batches = make_batches(world, method="lora", tasks={"behaviour": TaskMix()})

    def packed() -> Any:
        world.model = load_weights(tmp_path / "base", dtype="float32", quantize="4bit")
        return world.model

    packed()
    ours, _ = make_trainer(world, config, batches.dataset, tmp_path / "ours", flow="adapter")
    learns = [weight for weight in ours.model.parameters() if weight.requires_grad]
    before = [weight.detach().clone() for weight in learns]
    assert {weight.dtype for weight in learns} == {torch.float32}
    ours.train()
    assert all(not torch.equal(weight, old) for weight, old in zip(learns, before, strict=True))
    # what the repair is for: once TRL leaves them alone, `RecommenderTrainer.__init__` need not put them back
    theirs = SFTTrainer(
        model=cpt.prepare(packed(), world.table, config, "adapter"),
        args=stage_arguments(config, 1, tmp_path / "theirs", fresh=True),
        train_dataset=batches.dataset,
        eval_dataset=batches.dataset,
        processing_class=world.tokenizer,
        data_collator=Recorder(0),
    )
    assert {weight.dtype for weight in theirs.model.parameters() if weight.requires_grad} == {torch.bfloat16}


def test_the_loss_is_computed_in_the_precision_that_accelerate_is_set_to(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, batches = make_batches(world)
    trained, _ = make_trainer(world, config, batches.dataset, tmp_path)
    monkeypatch.setattr(trained.accelerator, "autocast", lambda: torch.autocast("cpu", torch.bfloat16))
    seen: set[torch.dtype] = set()
    layer = next(module for module in trained.model.modules() if isinstance(module, torch.nn.Linear))
    layer.register_forward_hook(lambda module, given, out: seen.add(out.dtype))
    trained.args.max_steps = 1
    trained.train()
    assert seen == {torch.bfloat16}
    assert {weight.dtype for weight in trained.model.parameters()} == {torch.float32}
