"""Checkpoints: what is written comes back, and what does not belong together is refused with both sides named."""

import json
import os
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pytest
import torch

from llmrec.checkpoint import Checkpoint, LineageEntry, describe_base, require_flow
from llmrec.checkpoint_card import Card
from llmrec.errors import EnvironmentProblem, InputError, MismatchError
from llmrec.folders import written_beside
from llmrec.models import load_base, model_folder, torch_dtype, weights_sha256
from llmrec.prompts.templates import TemplateSet
from llmrec.sid_vocab.table import SIDTable
from llmrec.testing.checkpoints import tiny_adapter, tiny_base, tiny_lora, tiny_parts, tiny_table
from llmrec.testing.worlds import tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def parts():
    return tiny_parts()


@pytest.fixture(scope="module")
def written(parts, tmp_path_factory):
    return parts.write(tmp_path_factory.mktemp("run") / "cpt")


@pytest.fixture
def copied(written, tmp_path):
    """A copy of the checkpoint that a test may damage."""
    return shutil.copytree(written.folder, tmp_path / "copy")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_base(tmp_path_factory.mktemp("hub") / "base")


def prompt_ids(checkpoint):
    return torch.from_numpy(checkpoint.renderer.sequence(["1", "7", "13"]).input_ids)[None]


def logits(model, ids):
    with torch.no_grad():
        return model(ids).logits


# -- full models -------------------------------------------------------------------------------------------------------


def test_a_model_comes_back_bit_identical(parts, written):
    loaded = Checkpoint.load(written.folder)
    state = loaded.load_model("float32").state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in parts.model.state_dict().items())
    assert loaded.tokenizer.get_vocab() == parts.tokenizer.get_vocab()
    assert loaded.table.rows_fingerprint == parts.table.rows_fingerprint
    assert loaded.templates.hash == parts.templates.hash
    assert loaded.catalog.frame.equals(parts.catalog.frame)
    assert (loaded.catalog.text_fields, loaded.catalog.attributes) == (("title",), ("genres", "year"))
    assert loaded.card.kind == "model"
    assert loaded.card.stage == "cpt"


def test_prompts_and_answers_are_read_as_before(parts, written):
    row = written.renderer.sequence(["1", "7", "13"])
    assert row.input_ids.tolist()[-3:] == parts.table.sid_token_ids()[12].tolist()


def test_equal_content_gives_equal_fingerprints_and_other_content_another(parts, written, tmp_path):
    again = parts.write(tmp_path / "again")
    assert again.fingerprint == written.fingerprint
    other = parts.write(tmp_path / "other", lineage=[LineageEntry(stage="sft", config_hash="c0ffee")])
    assert other.fingerprint != written.fingerprint


def test_the_generation_config_is_neutral(parts, tmp_path):
    parts.model.generation_config.top_k = 7
    parts.model.generation_config.repetition_penalty = 1.3
    try:
        model = parts.write(tmp_path / "cp").load_model("float32")
    finally:
        parts.model.generation_config.top_k = parts.model.generation_config.repetition_penalty = None
    assert model.generation_config.top_k is None
    assert model.generation_config.repetition_penalty is None
    assert model.generation_config.eos_token_id == parts.tokenizer.eos_token_id


def test_dtype(written):
    assert written.load_model("bfloat16").dtype == torch.bfloat16
    assert written.load_model("float32").dtype == torch.float32
    assert torch_dtype("auto") in (torch.float32, torch.bfloat16)


def test_no_file_names_the_machine(written):
    for name in written.card.files:
        if name.endswith((".json", ".yaml", ".jinja")):
            assert str(written.folder.parent) not in (written.folder / name).read_text(), name


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_every_changed_byte_is_refused(written, copied):
    for name in written.card.files:
        path = copied / name
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(MismatchError, match="not as it was written") as caught:
            Checkpoint.load(copied)
        assert name in str(caught.value)
        path.write_bytes(content)
    Checkpoint.load(copied)


def test_missing_and_smuggled_files_are_listed_together(copied):
    (copied / "model.safetensors").unlink()
    (copied / "pytorch_model.bin").write_bytes(b"pickle")
    (copied / "templates/extra.yaml").write_text("form: plain")
    (copied / "README.md").write_text("notes are fine")
    with pytest.raises(MismatchError) as caught:
        Checkpoint.load(copied)
    text = str(caught.value)
    assert "model.safetensors is missing" in text
    assert "pytorch_model.bin is not listed" in text
    assert "templates/extra.yaml is not listed" in text
    assert "README" not in text


def test_a_folder_that_is_no_checkpoint(tmp_path, copied):
    with pytest.raises(InputError, match="does not exist"):
        Checkpoint.load(tmp_path / "nowhere")
    with pytest.raises(InputError, match="no llmrec checkpoint"):
        Checkpoint.load(tmp_path)
    card = copied / "llmrec.json"
    values = json.loads(card.read_text())
    for change, message in (
        ({"format_version": 99}, "format 99"),
        ({"kind": "monolith"}, "kind"),
        ({"surprise": 1}, "surprise"),
    ):
        card.write_text(json.dumps({**values, **change}))
        with pytest.raises(InputError, match=message):
            Checkpoint.load(copied)
    card.write_text("{half")
    with pytest.raises(InputError, match="cannot be read"):
        Checkpoint.load(copied)


def test_a_foreign_table_is_refused_and_both_are_named(written, parts):
    foreign = tiny_table(seed=1).with_token_ids(parts.table.token_ids)
    with pytest.raises(MismatchError) as caught:
        Checkpoint.load(written.folder, table=foreign)
    assert foreign.vocabulary_fingerprint in str(caught.value)
    assert parts.table.vocabulary_fingerprint in str(caught.value)


def test_a_table_of_equal_vocabulary_but_other_codes_is_refused(written, parts):
    # Tables of given SIDs have no codebooks: sizes and token ids alone do not tell them apart.
    codes = parts.table.codes.copy()
    codes[[0, 1]] = codes[[1, 0]]
    moved = replace(parts.table, codes=codes)
    assert moved.vocabulary_fingerprint == parts.table.vocabulary_fingerprint
    with pytest.raises(MismatchError, match="2 items have other codes") as caught:
        Checkpoint.load(written.folder, table=moved)
    assert moved.rows_fingerprint in str(caught.value)
    assert parts.table.rows_fingerprint in str(caught.value)
    short = replace(parts.table, item_ids=parts.table.item_ids[1:], codes=parts.table.codes[1:], status=np.zeros(0))
    with pytest.raises(MismatchError, match="1 are missing"):
        Checkpoint.load(written.folder, table=short)


def test_a_table_swapped_on_disk_is_refused_even_with_matching_hashes(copied, parts):
    foreign = tiny_table(seed=1).with_token_ids(parts.table.token_ids)
    foreign.save(copied)
    restamp(copied)
    with pytest.raises(MismatchError, match="names the SID vocabulary"):
        Checkpoint.load(copied)


def test_a_foreign_tokenizer_is_refused_even_with_matching_hashes(copied):
    tiny_tokenizer().save_pretrained(copied)
    restamp(copied)
    with pytest.raises(MismatchError, match=r"15 of 15 SID tokens have other ids; <a_0> is None in the tokenizer"):
        Checkpoint.load(copied)


def test_other_templates_are_refused_even_with_matching_hashes(copied, parts):
    files = dict(parts.templates.files)
    files["behaviour.yaml"] = files["behaviour.yaml"].replace("User history:", "Someone's history:")
    TemplateSet.from_files(files).save(copied / "templates")
    restamp(copied)
    with pytest.raises(MismatchError, match="names the templates"):
        Checkpoint.load(copied)


def restamp(folder):
    """Bring the file hashes of a card up to date, as an edit by hand would."""
    from llmrec.checkpoint_card import hash_files

    card = Card.read(folder)
    card.model_copy(update={"files": hash_files(folder)}).write(folder)


def test_writing_refuses_what_does_not_belong_together(parts, tmp_path):
    with pytest.raises(InputError, match="no token ids"):
        parts.write(tmp_path / "cp", table=tiny_table())
    with pytest.raises(MismatchError, match="SID tokens have other ids"):
        parts.write(tmp_path / "cp", tokenizer=tiny_tokenizer())
    with pytest.raises(MismatchError, match="400 rows"):
        parts.write(tmp_path / "cp", model=tiny_model(tiny_tokenizer()))
    with pytest.raises(InputError, match="needs its base"):
        parts.write(tmp_path / "cp", model=tiny_lora(parts))
    assert not list(tmp_path.iterdir())


def test_each_flow_refuses_the_other(parts, base, tmp_path):
    with pytest.raises(InputError, match='flow "adapter"'):
        parts.write(tmp_path / "cp", flow="adapter")
    with pytest.raises(InputError, match="train_sid_rows: false"):
        parts.write(tmp_path / "cp", model=tiny_lora(parts, rows=True), base=describe_base(base))
    require_flow("extended_base", parts.model)
    require_flow("extended_base", tiny_lora(parts))
    require_flow("adapter", tiny_lora(parts, rows=True))


# -- adapters ----------------------------------------------------------------------------------------------------------


def test_lora_on_an_extended_base_moves_with_its_run(parts, written, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(written.folder, run / "cpt")
    lora = tiny_lora(parts)
    lineage = [*written.card.lineage, LineageEntry(stage="sft", config_hash="1", parent=written.fingerprint)]
    adapter = parts.write(run / "sft", model=lora, base=describe_base(run / "cpt"), lineage=lineage)
    assert adapter.card.base.reference == "../cpt"
    assert not list(adapter.folder.glob("model*.safetensors"))
    moved = Checkpoint.load(run.rename(tmp_path / "elsewhere") / "sft")
    ids = prompt_ids(moved)
    torch.testing.assert_close(logits(moved.load_model("float32"), ids), logits(lora, ids), atol=1e-4, rtol=1e-4)
    assert torch.equal(logits(moved.load_peft("float32"), ids), logits(lora, ids))


@pytest.mark.parametrize("tied", [True, False])
def test_an_adapter_with_sid_rows_on_the_untouched_base(tied, tmp_path):
    base = tiny_base(tmp_path / "base", tied=tied)
    adapter, trained = tiny_adapter(tmp_path / "sft", base)
    ids = prompt_ids(adapter)
    merged = adapter.load_model("float32")
    # Padding rows included: they are part of the normalisation over the vocabulary.
    torch.testing.assert_close(logits(merged, ids), logits(trained, ids), atol=1e-4, rtol=1e-4)
    embedding, head = merged.get_input_embeddings().weight, merged.get_output_embeddings().weight
    assert (embedding.data_ptr() == head.data_ptr()) == tied
    # Of the base matrix only SID rows travel with the adapter.
    assert sum(path.stat().st_size for path in adapter.folder.glob("*.safetensors")) < 60_000
    exported = adapter.export_merged(tmp_path / "merged")
    assert exported.card.kind == "model"
    assert exported.card.lineage[-1].parent == adapter.fingerprint
    torch.testing.assert_close(logits(exported.load_model("float32"), ids), logits(merged, ids))
    with pytest.raises(InputError, match="full model already"):
        exported.export_merged(tmp_path / "twice")
    with pytest.raises(InputError, match="no adapter"):
        exported.load_peft()


def test_going_on_with_an_adapter_trains_it(base, tmp_path):
    adapter, _ = tiny_adapter(tmp_path / "sft", base)
    model = adapter.load_peft("float32", trainable=True)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert any("lora_A" in name for name in trained)
    assert any("trainable_tokens" in name for name in trained)


def test_a_wrong_or_missing_base_is_refused_and_both_are_named(tmp_path):
    base = tiny_base(tmp_path / "base")
    adapter, _ = tiny_adapter(tmp_path / "sft", base)
    tiny_base(base, seed=1)
    with pytest.raises(MismatchError) as caught:
        Checkpoint.load(adapter.folder)
    assert adapter.card.base.weights_sha256 in str(caught.value)
    assert weights_sha256(base) in str(caught.value)
    shutil.rmtree(base)
    with pytest.raises(InputError, match="no such path"):
        Checkpoint.load(adapter.folder)


# -- base models -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2"])
@pytest.mark.parametrize("tied", [True, False])
def test_weights_have_one_hash_in_memory_and_however_they_are_cut(family, tied, tmp_path):
    model = tiny_model(tiny_tokenizer(), family, tied=tied)
    model.save_pretrained(tmp_path / "one")
    model.save_pretrained(tmp_path / "many", max_shard_size="40KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 1
    assert weights_sha256(tmp_path / "one") == weights_sha256(tmp_path / "many") == weights_sha256(model)
    with torch.no_grad():
        model.get_input_embeddings().weight[3, 3] += 1e-3
    assert weights_sha256(model) != weights_sha256(tmp_path / "one")


def test_a_base_is_loaded_neutral_and_from_safetensors_only(base, tmp_path):
    model, tokenizer = load_base(base, dtype="float32")
    assert not model.training
    assert model.generation_config.top_k is None
    assert len(tokenizer) == 400
    pickled = tmp_path / "pickled"
    shutil.copytree(base, pickled)
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with pytest.raises(InputError, match="safetensors are needed"):
        load_base(pickled)
    with pytest.raises(InputError, match="no such path"):
        model_folder("/not/there")
    with pytest.raises(InputError, match="no packaged asset"):
        model_folder("asset:nothing")
    with pytest.raises(EnvironmentProblem, match="could not be downloaded"):
        model_folder("someone/some-model")  # the hub is switched off in tests


# -- writing as a whole ------------------------------------------------------------------------------------------------


def test_an_existing_folder_is_kept_unless_overwritten(parts, tmp_path):
    first = parts.write(tmp_path / "cp")
    with pytest.raises(InputError, match="exists already"):
        parts.write(tmp_path / "cp")
    second = parts.write(tmp_path / "cp", recipe={"seed": 1}, overwrite=True)
    assert Checkpoint.load(tmp_path / "cp").fingerprint == second.fingerprint != first.fingerprint
    assert [path.name for path in tmp_path.iterdir()] == ["cp"]


def test_an_error_while_writing_leaves_nothing_and_keeps_what_was_there(parts, tmp_path, monkeypatch):
    first = parts.write(tmp_path / "cp")

    def fail(self, folder):
        assert any(folder.iterdir())
        raise KeyboardInterrupt

    monkeypatch.setattr(SIDTable, "save", fail)
    with pytest.raises(KeyboardInterrupt):
        parts.write(tmp_path / "cp", overwrite=True)
    with pytest.raises(KeyboardInterrupt):
        parts.write(tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["cp"]
    assert Checkpoint.load(tmp_path / "cp").fingerprint == first.fingerprint


def test_too_little_disk_is_known_beforehand(tmp_path):
    with (
        pytest.raises(EnvironmentProblem, match="at least 1,000,000,000,000,000 bytes are needed") as caught,
        written_beside(tmp_path / "cp", needed_bytes=10**15),
    ):
        pytest.fail("must not begin to write")
    assert caught.value.exit_code == 3
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="mounting a small tmpfs needs root")
@pytest.mark.parametrize("kilobytes", [64, 160, 196, 204])
def test_a_full_disk_leaves_nothing_half_written(kilobytes, parts, tmp_path):
    """From too small for the weights (known beforehand) to too small for the last files (found while writing)."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", disk], check=False)
    if mounted.returncode:
        pytest.skip("this container may not mount")
    try:
        with pytest.raises(EnvironmentProblem, match=r"at least [\d,]+ bytes are needed, [\d,]+ are free"):
            parts.write(disk / "cp")
        assert not list(disk.iterdir())
    finally:
        subprocess.run(["umount", disk], check=True)


def test_beside_the_weights_lies_no_other_safetensors_file(tmp_path):
    # vLLM takes every *.safetensors of a model's folder for its weights.
    checkpoint = tiny_parts().write(tmp_path / "cpt")
    assert [path.name for path in checkpoint.folder.glob("*.safetensors")] == ["model.safetensors"]
