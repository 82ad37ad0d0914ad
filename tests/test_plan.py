"""Plans agree with what a run really does: rows, tokens, parameters; and they say when a machine is too small."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from llmrec import cli, plan, recipes
from llmrec.config import build_config
from llmrec.costs import GB, architecture
from llmrec.data.dataset import read_data
from llmrec.machine import Machine
from llmrec.pipeline_config import PipelineConfig
from llmrec.prompts.renderer import Renderer
from llmrec.prompts.templates import TemplateSet
from llmrec.sid_vocab.build import build_table_of
from llmrec.sid_vocab.extend import extend_tokenizer, extend_vocabulary
from llmrec.testing.worlds import tiny_model, tiny_tokenizer, write_tiny_folder
from llmrec.train.base import make_base
from llmrec.train.batches import build_batches
from llmrec.train.config import StageConfig
from llmrec.train.cpt import prepare
from llmrec.train.light_base import light_base
from llmrec.train.stage import train_sequences

MACHINE = Machine("a machine", flops=1e11, on_gpu=False, free_memory=64 * GB, free_disk=500 * GB)


@pytest.fixture
def recipe(tmp_path) -> dict:
    folder = write_tiny_folder(tmp_path / "tiny")
    index = {str(number + 1): [f"<a_{number % 6}>", f"<b_{number // 6}>"] for number in range(60)}
    (tmp_path / "index.json").write_text(json.dumps(index))
    return {
        "name": "tiny",
        "data": {"path": str(folder), "attributes": ["genres"]},
        "base": {
            "config": {
                "model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
                "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True,
            },
            "tokenizer_size": 400,
        },
        "sid": {"index": {"path": str(tmp_path / "index.json"), "has_suffix": True}},
        "cpt": {"tasks": {"behaviour": {"settings": {"window": 5}}, "sid_to_title": {}}, "method": "full"},
        "sft": {"tasks": {"behaviour": {"share": 0.5}, "explain": {}}, "train_sid_rows": False, "max_length": 200},
        "eval": {"baselines": {"popularity": {}}, "users": 30},
    }  # fmt: skip


def config_of(recipe: dict) -> PipelineConfig:
    return build_config(PipelineConfig, recipe, source="test")


def real_batches(config: PipelineConfig, stage: str):
    dataset = read_data(config.data)
    _, tokenizer = make_base(config.base, dataset.catalog.texts(), 0)
    table = extend_tokenizer(tokenizer, build_table_of(config.sid, dataset).table)
    renderer = Renderer(tokenizer, table, TemplateSet.load(recipes.folder("prompts")))
    return build_batches(config.stages[stage], renderer, dataset.catalog, train_sequences(dataset))


def test_rows_and_tokens_are_those_of_the_training(recipe):
    config = config_of(recipe)
    planned = {stage.name: stage for stage in plan.make_plan(config, machine=MACHINE).stages}
    assert list(planned) == ["sid", "cpt", "sft", "eval"]
    for name in config.stages:
        batches = real_batches(config, name)
        assert planned[name].rows == sum(batches.rows.values())
        assert planned[name].tokens == batches.tokens
    assert planned["sid"].rows == 60
    assert planned["eval"].rows == 30


def test_a_quantiser_is_not_needed_to_count(recipe):
    given = plan.make_plan(config_of(recipe), machine=MACHINE)
    recipe["sid"] = {"quantizer": {"num_levels": 1, "codebook_size": 8}}  # and a suffix: two tokens an item, as above
    guessed = plan.make_plan(config_of(recipe), machine=MACHINE)
    assert [stage.tokens for stage in guessed.stages[1:]] == [stage.tokens for stage in given.stages[1:]]


def test_a_sample_gives_about_the_tokens_of_all_rows(recipe, monkeypatch):
    exact = plan.make_plan(config_of(recipe), machine=MACHINE)
    monkeypatch.setattr(plan, "RENDERED", 12)
    sampled = plan.make_plan(config_of(recipe), machine=MACHINE)
    assert "cpt sid_to_title" in "\n".join(sampled.lines)
    assert "cpt behaviour" not in "\n".join(sampled.lines)
    assert sampled.stages[1].rows == exact.stages[1].rows
    assert sampled.stages[1].tokens == pytest.approx(exact.stages[1].tokens, rel=0.1)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2"])
@pytest.mark.parametrize("tied", [True, False])
def test_the_architecture_counts_what_the_extended_model_has(recipe, family, tied):
    config = config_of(recipe)
    tokenizer = tiny_tokenizer()
    model = tiny_model(tokenizer, family, tied=tied)
    shape = model.config.__class__(**model.config.to_dict())
    table = build_table_of(config.sid, read_data(config.data)).table
    extend_vocabulary(model, tokenizer, table, init="mean")
    counted = architecture(shape, table.num_tokens, len(tokenizer))
    assert counted.parameters == model.num_parameters()
    stage = StageConfig.model_validate({"lora": {"rank": 3}})
    table = table.with_token_ids(tuple(_blocks(tokenizer, table)))
    peft = prepare(model, table, stage, "extended_base")
    trained = sum(parameter.numel() for parameter in peft.parameters() if parameter.requires_grad)
    assert counted.trained(stage) == trained
    some = stage.lora.model_copy(update={"target_modules": ["q_proj", "down_proj"]})
    by_pattern = stage.lora.model_copy(update={"target_modules": r".*\.(q|down)_proj"})
    assert 0 < counted.adapter_parameters(some) < counted.adapter_parameters(stage.lora)
    assert counted.adapter_parameters(some) == counted.adapter_parameters(by_pattern)


def _blocks(tokenizer, table):
    import numpy as np

    for level, size in enumerate(table.codebook_sizes):
        yield np.array(tokenizer.convert_tokens_to_ids([table.token(level, code) for code in range(size)]))


def test_minutes_grow_with_epochs_and_shrink_with_speed(recipe):
    slow = replace(MACHINE, flops=1e8)
    once = plan.make_plan(config_of(recipe), machine=slow).stages[1]
    faster = plan.make_plan(config_of(recipe), machine=replace(slow, flops=1e9)).stages[1]
    recipe["cpt"]["epochs"] = 20
    often = plan.make_plan(config_of(recipe), machine=slow).stages[1]
    assert often.tokens == 20 * once.tokens
    assert 3 * once.minutes < often.minutes < 20 * once.minutes  # the valid loss and the start stay
    assert faster.minutes < once.minutes / 2
    recipe["cpt"] |= {"epochs": 1, "method": "lora", "lora": {"rank": 1}}
    config = config_of(recipe)
    model = architecture(light_base(config.base, ["a title"]).shape, 16, 416)
    full = StageConfig(method="full")
    assert model.training(config.cpt, 1000, 10, 0) < model.training(full, 1000, 10, 0)
    assert model.training_bytes(full, 10, 0.5) > model.training_bytes(full, 10, 0.0) > 16 * model.parameters


def test_a_packed_base_takes_the_memory_that_its_layers_take():
    config = tiny_model(tiny_tokenizer(), tied=False).config
    model = architecture(config, 16, 416)
    linear = sum(inputs * outputs for _, inputs, outputs in model.linear)
    assert linear == model.layer_parameters - 5 * 32  # all but the norms
    saved = {each: model.weight_bytes() - model.weight_bytes(each) for each in ("4bit", "8bit")}
    assert saved["8bit"] == pytest.approx(3 * linear, rel=0.01)
    assert saved["4bit"] == pytest.approx(3.5 * linear, rel=0.01)
    stage = StageConfig()
    assert model.training_bytes(stage, 10, 0.5) - model.training_bytes(stage, 10, 0.5, "4bit") == saved["4bit"]


def test_a_machine_that_is_too_small_is_told(recipe):
    enough = plan.make_plan(config_of(recipe), machine=MACHINE)
    assert enough.sufficient
    assert "NOT ENOUGH" not in "\n".join(enough.lines)
    for small in (replace(MACHINE, free_memory=GB / 2), replace(MACHINE, free_disk=1e5)):
        short = plan.make_plan(config_of(recipe), machine=small)
        assert not short.sufficient
        assert sum("NOT ENOUGH; " in line for line in short.lines) == 1


def test_the_command_prints_a_plan_and_leaves_nothing(recipe, tmp_path, monkeypatch, capsys):
    import yaml

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    Path("tiny.yaml").write_text(yaml.safe_dump(recipe))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit) as end:
        cli.main(["run", "tiny.yaml", "--plan"])
    out = capsys.readouterr().out
    assert not end.value.code
    assert "Plan of tiny" in out
    for word in ("estimate", "GFLOP/s measured now", "free: enough", "together"):
        assert word in out
    assert sorted(tmp_path.rglob("*")) == before
