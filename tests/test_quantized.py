"""A base packed in 4 or 8 bits: how it is loaded, what a checkpoint keeps of it, and a whole recipe on it."""

import importlib.metadata
import importlib.util
import json

import pytest
import torch
import yaml
from safetensors.torch import load_file

from llmrec import quantized
from llmrec.checkpoint import Checkpoint, describe_base
from llmrec.config import build_config
from llmrec.errors import ConfigError, EnvironmentProblem, InputError
from llmrec.models import load_base, load_weights, weights_sha256
from llmrec.pipeline_config import PipelineConfig
from llmrec.quantized import is_packed, packing
from llmrec.recommender import Recommender
from llmrec.sid_vocab.extend import extend_vocabulary
from llmrec.testing.checkpoints import tiny_adapter, tiny_table
from llmrec.testing.worlds import tiny_model, tiny_tokenizer
from llmrec.train import cpt, sft
from llmrec.train.config import StageConfig
from tests.tiny_run import STAGE, run, write_recipe

PROMPT = torch.arange(3, 13)[None]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A base of which every layer has a multiple of 32 outputs, as those of real models have."""
    folder = tmp_path_factory.mktemp("base")
    tokenizer = tiny_tokenizer()
    tiny_model(tokenizer, tied=False, head_dim=16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def packed_base(base, tmp_path_factory):
    """A folder of weights that are packed already, as hubs have them."""
    folder = tmp_path_factory.mktemp("packed")
    model, tokenizer = load_base(base, dtype="float32", quantize="4bit")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


# -- loading -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("quantize", ["4bit", "8bit"])
def test_linear_layers_are_packed_and_the_rest_keeps_its_dtype(base, quantize):
    model = load_weights(base, dtype="bfloat16", quantize=quantize)
    plain = load_weights(base, dtype="bfloat16")
    assert (packing(model), packing(plain), is_packed(plain)) == (quantize, None, False)
    dtypes = {name.split(".")[-2]: weight.dtype for name, weight in model.named_parameters()}
    assert {dtypes.pop(name) for name in ("embed_tokens", "lm_head", "norm", "input_layernorm")} == {torch.bfloat16}
    assert dtypes.pop("post_attention_layernorm") == torch.bfloat16
    assert set(dtypes.values()) == {torch.uint8 if quantize == "4bit" else torch.int8}
    assert not model.training
    assert model.device.type == "cpu"
    exact, near = plain(PROMPT).logits.float(), model(PROMPT).logits.float()
    assert 0 < (near - exact).abs().mean() < exact.abs().mean() / 2


def test_the_plan_counts_the_bytes_that_packed_layers_take(base):
    for quantize, size in quantized.BYTES.items():
        model = load_weights(base, dtype="float32", quantize=quantize)
        layers = [module for name, module in model.named_modules() if name.endswith("_proj")]
        weights = sum(module.in_features * module.out_features for module in layers)
        bytes_of = sum(module.weight.numel() * module.weight.element_size() for module in layers)
        assert bytes_of == weights * (0.5 if quantize == "4bit" else 1)
        assert bytes_of / weights < size < 1.05 * bytes_of / weights


def test_a_valid_loss_before_the_first_step_leaves_the_packed_weights_alone(base):
    model = load_weights(base, dtype="float32", quantize="4bit")
    layers = [module for module in model.modules() if type(module).__name__ == "Linear4bit"]
    assert len(layers) == 2 * 7
    assert not any(layer.support_avx512bf16_for_cpu for layer in layers)


def test_weights_that_are_packed_already_are_loaded_as_they_are_and_not_packed_again(base, packed_base):
    model = load_weights(packed_base, dtype="float32")
    assert is_packed(model)
    assert packing(model) is None
    assert torch.equal(model(PROMPT).logits, load_weights(base, dtype="float32", quantize="4bit")(PROMPT).logits)
    with pytest.raises(InputError, match=r"quantised already \(bitsandbytes\)"):
        load_weights(packed_base, quantize="4bit")


def test_a_missing_package_names_the_extra(base, packed_base, monkeypatch):
    find_spec, version = importlib.util.find_spec, importlib.metadata.version

    def no_spec(name, *rest):
        return None if name == "bitsandbytes" else find_spec(name, *rest)

    def no_version(name):
        if name == "bitsandbytes":
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(importlib.util, "find_spec", no_spec)
    monkeypatch.setattr(importlib.metadata, "version", no_version)
    monkeypatch.setattr("transformers.quantizers.quantizer_bnb_4bit.is_bitsandbytes_available", lambda: False)
    for folder, quantize, match in (
        (base, "8bit", "base.quantize: 8bit needs bitsandbytes"),
        (packed_base, None, r"quantised \(bitsandbytes\), and what reads it is missing"),
    ):
        with pytest.raises(EnvironmentProblem, match=match) as caught:
            load_weights(folder, quantize=quantize)
        assert caught.value.hint == "pip install 'llmrec[quantized]'"


def test_other_import_errors_stay_what_they_are(base):
    with pytest.raises(ImportError, match="something"), quantized.missing_package_told(base):
        raise ImportError("something else")


# -- checkpoints ---------------------------------------------------------------------------------------------------


def learned(base, quantize, folder):
    """An adapter with SID rows that has taken a few large steps on a base packed by `quantize`; and its logits."""
    plain, _ = tiny_adapter(folder.with_name("made-for-its-parts"), base)
    model, tokenizer = load_base(base, dtype="float32", quantize=quantize)
    table = extend_vocabulary(model, tokenizer, tiny_table(), init="random", pad_to_multiple=64).table
    model = cpt.prepare(model, table, StageConfig(), "adapter")
    history = torch.from_numpy(table.sid_token_ids()[:8].reshape(1, -1))
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=1e-2)
    for _ in range(3):
        model(input_ids=history, labels=history).loss.backward()
        optimizer.step()
    fields = {"templates": plain.templates, "catalog": plain.catalog, "data": plain.card.data, "recipe": {}}
    made = Checkpoint.write(
        folder, model=cpt.finish(model, "adapter"), tokenizer=tokenizer, table=table, flow="adapter",
        base=describe_base(base), lineage=plain.card.lineage, serving=plain.card.serving, **fields,
    )  # fmt: skip
    with torch.no_grad():
        return made, history, model(history).logits


@pytest.mark.parametrize("quantize", ["4bit", "8bit"])
def test_the_card_names_the_full_base_and_training_goes_on_on_the_packed_one(base, quantize, tmp_path):
    made, history, expected = learned(base, quantize, tmp_path / "cpt")
    again = Checkpoint.load(tmp_path / "cpt")
    assert again.card.base.weights_sha256 == weights_sha256(base)
    assert again.card.base.quantize == quantize
    assert {path.name for path in made.folder.glob("*.safetensors")} == {"adapter_model.safetensors"}

    model = sft.prepare(again, StageConfig(), "adapter")
    assert packing(model) == quantize
    with torch.no_grad():
        assert torch.equal(model.eval()(history).logits, expected)
        served = again.load_model("float32")
        assert not is_packed(served)
        assert served.dtype == torch.float32
        difference = (served(history).logits - expected).abs().mean() / expected.abs().mean()
    assert 0 < difference < 0.5
    assert again.load_model("bfloat16").dtype == torch.bfloat16


def test_an_adapter_on_weights_that_were_packed_before_is_merged_into_their_values(packed_base, tmp_path):
    made, history, expected = learned(packed_base, None, tmp_path / "cpt")
    assert made.card.base.quantize is None
    assert "quantize" not in json.loads((made.folder / "llmrec.json").read_text())["base"]
    with torch.no_grad():
        torch.testing.assert_close(made.load_model("float32")(history).logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_packed_base_is_refused_where_a_new_base_would_be_written(packed_base, method):
    model = load_weights(packed_base, dtype="float32")
    with pytest.raises(InputError, match="which packing would round"):
        cpt.prepare(model, tiny_table(), StageConfig(method=method), "extended_base")


# -- recipes -------------------------------------------------------------------------------------------------------


def test_a_recipe_may_quantise_only_what_an_adapter_sits_on(tmp_path):
    path = write_recipe(tmp_path, base={"model": "somewhere", "quantize": "4bit"}, flow="adapter")
    values = yaml.safe_load(path.read_text()) | {"cpt": STAGE}
    assert build_config(PipelineConfig, values, source="test").base.quantize == "4bit"
    for changes, match in (
        ({"flow": "extended_base"}, 'base.quantize needs flow "adapter"'),
        ({"cpt": {"method": "full"}}, "use lora"),
        ({"base": {"config": {"model_type": "llama"}, "quantize": "4bit"}}, "quantize packs a checkpoint"),
        ({"base": {"model": "somewhere", "quantize": "2bit"}}, "4bit"),
    ):
        with pytest.raises(ConfigError, match=match):
            build_config(PipelineConfig, values | changes, source="test")


def test_a_recipe_without_it_is_hashed_as_before(tmp_path):
    config = build_config(PipelineConfig, yaml.safe_load(write_recipe(tmp_path).read_text()), source="test")
    assert "quantize" not in config.base.model_dump(mode="json")


@pytest.mark.slow
def test_a_run_on_a_base_in_4_bits_recommends_items_that_exist(base, tmp_path):
    recipe = write_recipe(
        tmp_path,
        base={"model": str(base), "quantize": "4bit"},
        flow="adapter",
        cpt={**STAGE, "learning_rate": 3e-3, "lora": {"rank": 4}},
        sft={**STAGE, "train_sid_rows": True, "epochs": 0.5},
        eval={"users": 6, "baselines": {"popularity": {}}, "exact_users": 2},
    )
    result, _ = run(recipe, tmp_path / "run")
    cards = {name: Checkpoint.load(tmp_path / "run" / name).card for name in ("cpt", "sft")}
    assert {card.base.quantize for card in cards.values()} == {"4bit"}
    assert {card.base.weights_sha256 for card in cards.values()} == {weights_sha256(base)}
    rows = [json.loads(line) for line in (tmp_path / "run" / "logs" / "cpt.jsonl").read_text().splitlines()]
    losses = [row["valid_loss"] for row in rows if "valid_loss" in row]
    assert losses[-1] < losses[0]
    adapter = load_file(result.final / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in adapter.values()} == {torch.float32}
    recommender = Recommender.load(result.final)
    assert not is_packed(recommender.model)
    items = recommender.recommend(["1", "7", "13"], k=10)
    assert len({item.item_id for item in items} & {str(number + 1) for number in range(60)}) == 10
