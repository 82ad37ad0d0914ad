"""``llmrec data preview``: every task's rows, told apart by loss, in a hundred columns."""

import json

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.text import Text

from llmrec import cli
from llmrec.cli.preview import folded, print_preview
from llmrec.data.dataset import read_data
from llmrec.pipeline_config import load_recipe
from llmrec.pipeline_parts import sid_parts
from llmrec.preview import preview_stage
from llmrec.sid_vocab.build import build_table_of
from llmrec.stages import StageCache
from llmrec.testing.worlds import write_tiny_folder


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """A file, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    folder = write_tiny_folder(tmp_path / "tiny")
    index = {str(number + 1): [f"<a_{number % 6}>", f"<b_{number // 6}>"] for number in range(60)}
    (tmp_path / "index.json").write_text(json.dumps(index))
    llama = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    content = {
        "name": "tiny",
        "data": {"path": str(folder), "attributes": ["genres"]},
        "base": {"config": {**llama, "num_attention_heads": 4}, "tokenizer_size": 400},
        "sid": {"index": {"path": "index.json"}},
        "cpt": {"tasks": {"behaviour": {}, "sid_to_title": {}}, "recent_items": 6},
        "sft": {
            "tasks": {"next_item_chat": {"settings": {"max_history": 3}}, "explain": {}},
            "train_sid_rows": False,
        },
    }
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture
def llmrec(capsys):
    """``llmrec(words...)`` -> (exit code, stdout, stderr)."""

    def run(*words):
        with pytest.raises(SystemExit) as end:
            cli.main([str(word) for word in words])
        captured = capsys.readouterr()
        return end.value.code or 0, captured.out, captured.err

    return run


def test_every_task_of_the_stage_is_shown_with_lengths_and_what_is_cut(llmrec, recipe, tmp_path):
    code, out, _ = llmrec("data", "preview", recipe, "--rows", "1")
    assert code == 0
    assert "building the SIDs first" in out
    assert "recent_items leaves out" in out
    assert "60 rows, " in out  # sid_to_title has one per item
    assert "behaviour:0:0" in out
    assert "behaviour:1:0" not in out
    assert max(len(line) for line in out.splitlines()) <= 100
    assert not (tmp_path / "runs").exists()
    code, out, _ = llmrec("data", "preview", recipe, "--stage", "sft", "--rows", "2")
    assert code == 0
    assert "rows are cut: " in out  # histories longer than max_history
    assert out.count("<|im_start|>assistant") == 4
    assert "The " in out  # titles of the items


def test_overrides_count_and_an_unknown_stage_exits_2(llmrec, recipe):
    code, out, _ = llmrec("data", "preview", recipe, "cpt.recent_items=null", "cpt.tasks.sid_to_title.share=0.2")
    assert code == 0
    assert "recent_items leaves out" not in out
    assert "60 rows, " not in out
    code, _, err = llmrec("data", "preview", recipe, "--stage", "rl")
    assert code == 2
    assert "its stages are cpt, sft" in err


def test_sids_of_the_run_are_used_where_they_are_the_recipe_s(llmrec, recipe, tmp_path):
    config = load_recipe(recipe)
    dataset = read_data(config.data)
    table = build_table_of(config.sid, dataset).table
    folder = tmp_path / "runs" / "tiny"
    cache = StageCache(folder, Console(quiet=True))
    cache.run("sid", sid_parts(config, dataset), [folder / "sid"], lambda key: table.save(folder / "sid"))
    assert "SIDs of runs/tiny/sid" in llmrec("data", "preview", recipe)[1]
    (tmp_path / "runs/tiny/sid").rename(tmp_path / "runs/tiny/gone")
    assert "building the SIDs first" in llmrec("data", "preview", recipe)[1]
    (tmp_path / "runs/tiny/gone").rename(tmp_path / "runs/tiny/sid")
    changed = llmrec("data", "preview", recipe, "sid.index.codebook_sizes=[8, 12]")[1]
    assert "building the SIDs first" in changed


def test_loss_is_bold_and_the_rest_is_not(recipe, tmp_path):
    found = preview_stage(load_recipe(recipe), "cpt", tmp_path / "runs", say=lambda line: None)
    console = Console(width=100, force_terminal=True, color_system="standard", highlight=False, record=True)
    with console.capture() as captured:
        print_preview(found, 1, console)
    row = found.sample.tasks[1].rendered[0]
    title = found.tokenizer.decode(row.input_ids[row.target & (row.sid_level < 0)][:-1]).strip()
    assert f"\x1b[1;32m {title}" in captured.get()  # bold green
    sid = found.table.text(found.sample.tasks[0].examples[0].values["items"][0])
    assert f"\x1b[1;36m{sid}" in captured.get()  # bold cyan


@given(st.lists(st.sampled_from(["<a_1><b_22>", "<a_1>", "word", " ", "two words", "a < b", "<|im_end|>", "x" * 40])))
def test_folding_loses_nothing_and_keeps_sids_whole(pieces):
    line = "".join(pieces)
    parts = folded(Text(line), 30, num_levels=2)
    assert "".join(part.plain for part in parts) == line
    assert all(len(part) <= 30 or "x" * 40 in part.plain for part in parts)
    assert line.count("<a_1><b_22>") == sum(part.plain.count("<a_1><b_22>") for part in parts)
