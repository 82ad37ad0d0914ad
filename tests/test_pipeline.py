"""A whole recipe on a tiny world: what it leaves, what it skips, what stays frozen, what equals what."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

from llmrec.checkpoint import Checkpoint
from llmrec.checkpoint_card import fingerprint
from llmrec.data.config import DataConfig
from llmrec.data.dataset import read_data
from llmrec.decode.searcher import Searcher
from llmrec.errors import ConfigError, InputError
from llmrec.eval.config import EvalConfig
from llmrec.eval.evaluate import evaluate
from llmrec.eval.generate import Generator
from llmrec.pipeline import load_recipe
from llmrec.pipeline_parts import sid_parts
from llmrec.recommender import Recommender
from llmrec.testing.checkpoints import tiny_base
from llmrec.train.base import make_base
from llmrec.train.batches import build_batches
from llmrec.train.log import TrainingLog
from llmrec.train.stage import train_sequences
from tests.tiny_run import BASE, STAGE, run, write_recipe


@pytest.fixture
def copied(tiny_run, tmp_path):
    """(recipe, folder): the finished run in a folder of the test's own."""
    recipe, result, _ = tiny_run
    return recipe, shutil.copytree(result.folder, tmp_path / "runs" / "tiny")


def stages_of(folder):
    return json.loads((folder / "timing.json").read_text())["stages"]


def valid_losses(folder, name):
    return [
        row["valid_loss"] for row in TrainingLog(folder / "logs" / f"{name}.jsonl", name).rows() if "valid_loss" in row
    ]


# -- what a run leaves ---------------------------------------------------------------------------------------------


def test_a_run_leaves_what_its_docstring_promises_and_nothing_half_done(tiny_run):
    recipe, result, shown = tiny_run
    folder = result.folder
    assert sorted(path.name for path in folder.iterdir()) == [
        "cpt", "eval", "logs", "recipe.yaml", "report.html", "sft", "sid", "stages", "timing.json",
    ]  # fmt: skip
    assert result.final == folder / "sft"
    assert load_recipe(folder / "recipe.yaml") == load_recipe(recipe)
    assert all(stage["ran"] for stage in stages_of(folder).values())
    assert "<html" in result.report.read_text()
    assert json.loads((folder / "eval" / "explanations.json").read_text()) == result.explanations
    assert "cpt  2 epochs: " in shown
    for name in ("cpt", "sft"):
        steps = [row["step"] for row in TrainingLog(folder / "logs" / f"{name}.jsonl", name).rows()]
        assert steps == sorted(steps)
        assert steps[0] == 0
    assert valid_losses(folder, "cpt")[-1] < valid_losses(folder, "cpt")[0]


def test_the_evaluation_judges_all_models_and_finds_no_invalid_item(tiny_run):
    _, result, _ = tiny_run
    summary = json.loads((result.folder / "eval" / "eval.json").read_text())
    assert list(summary["modes"]["filtered"]) == ["llmrec", "untrained", "popularity", "itemknn"]
    assert summary["checked"] >= 2 * 2 * 12 * 20  # models, modes, users, places
    assert (summary["invalid"], summary["duplicates"], summary["excluded_violations"]) == (0, 0, 0)
    assert summary["loo_sha256"] == result.dataset.split.loo_sha256


def test_sid_rows_and_base_rows_stay_frozen_behind_a_plain_lora(tiny_run):
    recipe, result, _ = tiny_run
    config = load_recipe(recipe)
    cpt, sft = Checkpoint.load(result.folder / "cpt"), Checkpoint.load(result.final)
    untouched, tokenizer = make_base(config.base, result.dataset.catalog.texts(), config.seed)
    rows = cpt.load_model("float32").get_input_embeddings().weight
    assert rows[: len(tokenizer)].equal(untouched.get_input_embeddings().weight)
    peft = sft.load_peft("float32")
    assert peft.get_input_embeddings().weight.equal(rows)
    assert sft.load_model("float32").get_input_embeddings().weight.equal(rows)
    from safetensors import safe_open

    with safe_open(result.final / "adapter_model.safetensors", framework="np") as file:
        assert {name.rsplit(".", 2)[-2] for name in file.keys()} == {"lora_A", "lora_B"}  # noqa: SIM118
    assert [entry.stage for entry in sft.card.lineage] == ["cpt", "sft"]
    assert sft.card.lineage[-1].parent == cpt.fingerprint
    assert valid_losses(result.folder, "sft")[0] == pytest.approx(valid_losses(result.folder, "cpt")[-1], rel=1e-5)


def test_the_final_checkpoint_recommends(tiny_run):
    _, result, _ = tiny_run
    answer = Recommender.load(result.final, dtype="float32").recommend(["1", "7"], k=60)
    assert len({item.item_id for item in answer}) == 58
    scores = [item.score for item in answer]
    assert scores == sorted(scores, reverse=True)


def test_one_history_has_the_same_prompt_in_training_evaluation_and_serving(tiny_run, monkeypatch):
    recipe, result, _ = tiny_run
    dataset = result.dataset
    recommender = Recommender.load(result.final, dtype="float32")
    split = dataset.split
    asked = []
    beam_each = Searcher.beam_each

    def spy(self, prompts, *args, **kwargs):
        asked.extend(prompts)
        return beam_each(self, prompts, *args, **kwargs)

    monkeypatch.setattr(Searcher, "beam_each", spy)
    generator = Generator.of_checkpoint(recommender.checkpoint)
    evaluate(dataset, {"llmrec": generator}, EvalConfig(users=9, baselines={}, exact_users=0))
    histories = [[split.items[item] for item in split.history(user, "test")] for user in range(len(split.users))]
    served = {tuple(recommender.prompt(history).input_ids) for history in histories}
    assert len(asked) == 9
    assert {tuple(prompt) for prompt in asked} <= served

    stage = load_recipe(recipe).stages["sft"]
    batches = build_batches(stage, recommender.renderer, dataset.catalog, train_sequences(dataset))
    trained = [sequence for batch in batches.dataset["input_ids"] for sequence in batch]
    for sequence in train_sequences(dataset):
        prompt = recommender.prompt(sequence[:-1]).input_ids.tolist()
        whole = recommender.prompt(sequence).input_ids.tolist()
        assert whole in trained
        assert whole[: len(prompt)] == prompt


# -- what runs again -----------------------------------------------------------------------------------------------


def test_a_second_run_skips_every_stage_and_imports_no_torch(copied):
    recipe, folder = copied
    program = (
        "import json, sys, llmrec.cli\n"
        "try: llmrec.cli.main(sys.argv[1:])\n"
        "except SystemExit as end: assert not end.code\n"
        "heavy = ('torch', 'transformers', 'datasets', 'peft', 'sentence_transformers', 'faiss')\n"
        "sys.stderr.write(json.dumps([name for name in heavy if name in sys.modules]))"
    )
    command = [sys.executable, "-c", program, "run", str(recipe), "--runs", str(folder.parent)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.count("done before") == 4
    assert json.loads(done.stderr) == []
    assert {name: stage["ran"] for name, stage in stages_of(folder).items()} == dict.fromkeys(
        ("sid", "cpt", "sft", "eval"), False
    )
    assert json.loads((folder / "timing.json").read_text())["wall_s"] == 0


def test_a_changed_setting_of_sft_runs_sft_and_evaluation_and_says_why(copied):
    recipe, folder = copied
    _, shown = run(recipe, folder, "sft.learning_rate=1e-3", "eval.exact_users=0")
    assert {name: stage["ran"] for name, stage in stages_of(folder).items()} == {
        "sid": False, "cpt": False, "sft": True, "eval": True,
    }  # fmt: skip
    assert "sft  changed: sft.learning_rate: 0.0003 -> 0.001\n" in shown
    assert "eval  changed: eval.exact_users: 2 -> 0; sft.learning_rate: 0.0003 -> 0.001\n" in shown


def test_how_the_checkpoint_is_asked_trains_nothing_anew(copied):
    recipe, folder = copied
    _, shown = run(recipe, folder, "serving.num_beams=30")
    assert {name: stage["ran"] for name, stage in stages_of(folder).items()} == {
        "sid": False, "cpt": False, "sft": False, "eval": True,
    }  # fmt: skip
    assert "eval  changed: serving.num_beams: 20 -> 30\n" in shown
    found = Checkpoint.load(folder / "sft").card
    assert found.serving.num_beams == found.recipe["serving"]["num_beams"] == 30


def test_a_stage_behind_the_last_one_comes_and_goes_without_training_those_before_it(copied):
    recipe, folder = copied
    run(recipe, folder, "sft=null")
    assert {name: stage["ran"] for name, stage in stages_of(folder).items()} == {
        "sid": False, "cpt": False, "eval": True,
    }  # fmt: skip
    assert Checkpoint.load(folder / "cpt").card.serving.num_beams == 20


def test_a_deleted_output_is_made_again_and_what_equals_it_is_kept(copied, one_thread):
    recipe, folder = copied
    before = fingerprint(folder / "cpt")
    shutil.rmtree(folder / "cpt")
    (folder / "eval" / "eval.json").unlink()
    run(recipe, folder)
    why = {name: stage["why"] for name, stage in stages_of(folder).items()}
    assert why == {
        "sid": "nothing changed",
        "cpt": "cpt is not there any more",
        "sft": "nothing changed",
        "eval": "eval.json is not there any more",
    }
    assert fingerprint(folder / "cpt") == before


def test_two_runs_are_bit_identical(tiny_run, tmp_path, one_thread):
    recipe, result, _ = tiny_run
    again, _ = run(recipe, tmp_path / "elsewhere")
    for name in ("cpt", "sft"):
        assert fingerprint(again.folder / name) == fingerprint(result.folder / name)
    assert again.evaluation.summary["modes"] == result.evaluation.summary["modes"]
    other, _ = run(recipe, tmp_path / "other", "cpt.seed=1", "untrained=false", "eval.users=2", "sft=null")
    assert (other.folder / "cpt/model.safetensors").read_bytes() != (
        result.folder / "cpt/model.safetensors"
    ).read_bytes()


def test_own_vectors_count_by_content_not_by_name(tmp_path):
    config = load_recipe(write_recipe(tmp_path))
    dataset = read_data(config.data)
    before = sid_parts(config, dataset)
    assert sid_parts(config, dataset) == before
    np.save(tmp_path / "vectors.npy", np.random.default_rng(1).normal(size=(60, 16)).astype(np.float32))
    after = sid_parts(config, dataset)
    assert [name for name in before if before[name] != after[name]] == ["sid_files"]


# -- flow "adapter" and other bases --------------------------------------------------------------------------------


def test_flow_adapter_trains_one_adapter_through_both_stages(tmp_path, one_thread):
    base = tiny_base(tmp_path / "base")
    weights = (base / "model.safetensors").read_bytes()
    sft = {**STAGE, "epochs": 1, "learning_rate": 1e-3}
    recipe = write_recipe(
        tmp_path,
        base={"model": str(base)},
        flow="adapter",
        cpt={**STAGE, "method": "lora", "epochs": 2, "learning_rate": 3e-3},
        sft=sft,
    )
    result, _ = run(recipe, tmp_path / "run")
    assert (base / "model.safetensors").read_bytes() == weights
    cpt, final = Checkpoint.load(result.folder / "cpt"), Checkpoint.load(result.final)
    assert (cpt.card.kind, final.card.kind) == ("adapter", "adapter")
    assert final.card.base == cpt.card.base
    assert final.card.base.reference == str(base)
    assert valid_losses(result.folder, "sft")[0] == pytest.approx(valid_losses(result.folder, "cpt")[-1], rel=1e-5)
    assert valid_losses(result.folder, "cpt")[-1] < valid_losses(result.folder, "cpt")[0]
    unmerged = Recommender(final, final.load_peft("float32").eval())
    merged = Recommender.load(result.final, dtype="float32")
    for history in (["1", "7"], ["60"], []):
        one, other = unmerged.recommend(history, k=58), merged.recommend(history, k=58)
        np.testing.assert_allclose([item.score for item in one], [item.score for item in other], atol=1e-4)
        assert [item.item_id for item in one][:5] == [item.item_id for item in other][:5]
    assert result.evaluation.summary["invalid"] == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "shape",
    [{"tie_word_embeddings": False}, {"model_type": "qwen3", "head_dim": 8}, {"model_type": "gemma2", "head_dim": 8}],
    ids=["untied", "qwen3", "gemma2"],
)
@pytest.mark.parametrize("method", ["full", "lora"])
def test_other_bases_run_through(tmp_path, shape, method):
    recipe = write_recipe(tmp_path, base={**BASE, "config": {**BASE["config"], **shape}})
    result, _ = run(recipe, tmp_path / "run", f"cpt.method={method}")
    assert result.evaluation.summary["invalid"] == 0
    assert valid_losses(result.folder, "cpt")[-1] < valid_losses(result.folder, "cpt")[0]
    config = load_recipe(recipe)
    untouched, tokenizer = make_base(config.base, result.dataset.catalog.texts(), config.seed)
    model = Checkpoint.load(result.final).load_model("float32")
    for mine, theirs in (
        (model.get_input_embeddings(), untouched.get_input_embeddings()),
        (model.get_output_embeddings(), untouched.get_output_embeddings()),
    ):
        assert mine.weight[: len(tokenizer)].equal(theirs.weight)
    assert len(Recommender.load(result.final).recommend(["1"], k=5)) == 5


# -- recipes that contradict themselves ----------------------------------------------------------------------------


def test_contradictions_of_a_recipe_come_all_together(tmp_path):
    recipe = write_recipe(tmp_path)
    with pytest.raises(ConfigError) as raised:
        load_recipe(recipe, ["flow=adapter", "cpt.train_sid_rows=false", "sft.method=full"])
    text = str(raised.value)
    for part in ('flow "adapter" needs base.model', "cpt.train_sid_rows must", "cpt.method full", "sft.method must"):
        assert part in text
    assert "given" not in text
    with pytest.raises(ConfigError, match="the rows belong to the base"):
        load_recipe(recipe, ["sft.train_sid_rows=true"])


def test_sft_may_be_left_out(tmp_path):
    recipe = write_recipe(tmp_path, sft=None, eval={"users": 2, "baselines": {}, "exact_users": 0}, untrained=False)
    result, _ = run(recipe, tmp_path / "run")
    assert result.final == tmp_path / "run" / "cpt"
    assert result.explanations == []
    assert Checkpoint.load(result.final).card.kind == "model"


def test_a_base_that_is_not_there_fails_before_any_work(tmp_path):
    recipe = write_recipe(tmp_path, base={"model": "./nowhere"})
    with pytest.raises(InputError, match="nowhere"):
        run(recipe, tmp_path / "run")
    assert not (tmp_path / "run" / "sid").exists()


def test_the_data_of_the_tiny_recipe_are_the_tiny_folder(tiny_run):
    recipe, result, _ = tiny_run
    again = read_data(DataConfig(path=str(recipe.parent / "tiny"), attributes=("genres",)))
    assert result.dataset.fingerprint == again.fingerprint
