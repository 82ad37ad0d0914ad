"""Comparing starts: trained alike on the same batches, judged by unseen targets, decided by more than chance."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from rich.console import Console

from llmrec import cli
from llmrec.data.dataset import read_data
from llmrec.errors import InputError
from llmrec.init_report import InitTrial, choose, init_report
from llmrec.pipeline import load_recipe
from llmrec.pipeline_parts import extended_base
from llmrec.sid_vocab.build import build_table_of
from llmrec.sid_vocab.rows import INITS
from llmrec.sid_vocab.table import SIDTable
from llmrec.train import cpt
from llmrec.train.log import TrainingLog
from tests.tiny_run import write_recipe


def report(recipe, *overrides, steps=4, bare=False):
    config = load_recipe(recipe, overrides)
    dataset = read_data(config.data)
    table = build_table_of(config.sid, dataset).table
    if bare:
        table = SIDTable(table.item_ids, table.codes, table.codebook_sizes, table.has_suffix)
    shown = io.StringIO()
    made = init_report(config, dataset, table, steps=steps, console=Console(file=shown, width=200))
    return made, shown.getvalue()


def test_every_start_learns_from_the_same_batches_as_the_recipe_would(tiny_run, one_thread):
    recipe, result, _ = tiny_run
    made, shown = report(recipe, steps=6)
    assert sorted(trial.init for trial in made.trials) == sorted(INITS)
    assert all(len(trial.losses) == 6 for trial in made.trials)
    means = [trial.late.mean() for trial in made.trials]
    assert means == sorted(means)
    assert shown.index("4 starts x 6 of") < shown.index("title_mean")
    assert "minutes" in shown
    assert made.estimated_seconds > 0
    json.dumps(made.as_dict())

    # The first step and the valid loss before it are those of the recipe's own run from this start.
    rows = TrainingLog(result.folder / "logs" / "cpt.jsonl", "cpt").rows()
    own = next(trial for trial in made.trials if trial.init == "title_mean")
    assert own.valid_before == pytest.approx(rows[0]["valid_loss"], rel=1e-5)
    losses = {row["step"]: row["loss"] for row in rows if "loss" in row}
    assert list(own.losses) == pytest.approx([losses[step + 1] for step in range(6)], rel=1e-3)
    assert made.of_steps == pytest.approx(rows[-1]["steps"], abs=1)


def test_adapters_half_precision_padding_and_given_sids(tmp_path):
    recipe = write_recipe(tmp_path)
    words = ("cpt.method=lora", "cpt.gradient_accumulation=2", "cpt.batch_tokens=96")
    words = (*words, "base.dtype=bfloat16", "pad_to_multiple=64")
    made, _ = report(recipe, *words, bare=True)
    assert sorted(trial.init for trial in made.trials) == ["mean", "random", "title_mean"]
    assert "no centroids" in made.left_out[0]
    assert all(np.isfinite([*trial.losses, trial.valid_before, trial.valid_after]).all() for trial in made.trials)


def test_steps_that_show_nothing_are_refused(tmp_path):
    recipe = write_recipe(tmp_path)
    with pytest.raises(InputError, match="--steps is 3"):
        report(recipe, steps=3)
    with pytest.raises(InputError, match="the first epoch of cpt has"):
        report(recipe, steps=5000)


def test_rows_of_a_recipe_are_padded_or_kept_in_spare_rows(tmp_path):
    recipe = write_recipe(tmp_path)
    config = load_recipe(recipe, ["pad_to_multiple=64"])
    dataset = read_data(config.data)
    table = build_table_of(config.sid, dataset).table
    model, extension = extended_base(config, dataset, table)
    assert len(model.get_input_embeddings().weight) % 64 == 0
    assert extension.num_pad_rows > 0
    with pytest.raises(InputError, match="do not fit into the 0 spare rows"):
        extended_base(load_recipe(recipe, ["spare_rows_only=true"]), dataset, table)
    with pytest.raises(InputError, match="pad_to_multiple adds rows"):
        load_recipe(recipe, ["spare_rows_only=true", "pad_to_multiple=64"])
    prepared = cpt.prepare(model, extension.table, config.cpt, config.flow)
    assert prepared is model


def trial(init, losses):
    return InitTrial(init, tuple(losses), 5.0, 4.0, 1.0)


def test_the_recipes_own_start_stays_unless_another_is_better_beyond_chance():
    falling = np.linspace(9, 4, 12)
    swing = np.tile([0.2, -0.2], 6)
    better, near, same = (trial("mean", falling - 0.5 + 0.1 * swing), trial("random", falling + swing - 0.01), falling)
    own = trial("title_mean", same)
    assert choose([better, own], "title_mean")[0] == "mean"
    use, why = choose([near, own], "title_mean")
    assert use == "title_mean"
    assert "beyond chance" in why
    assert choose([own, trial("mean", falling + 0.5)], "title_mean")[0] == "title_mean"
    # Of a start that the recipe does not name, the best one is used even if it is close.
    assert choose([near, own], "centroid")[0] == "random"


def test_the_command_prints_a_table_or_json(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    recipe = write_recipe(tmp_path)

    def llmrec(*words):
        with pytest.raises(SystemExit) as end:
            cli.main(["sid", "init-report", str(recipe), *words])
        captured = capsys.readouterr()
        return end.value.code or 0, captured.out, captured.err

    code, out, _ = llmrec("--steps", "4")
    assert code == 0
    assert "use       init=" in out
    assert all(init in out for init in INITS)
    code, out, err = llmrec("--steps", "4", "--json")
    assert code == 0
    assert json.loads(out) == json.loads((tmp_path / "runs/tiny/init_report.json").read_text())
    assert "done before" in err
    assert llmrec("--steps", "1")[0] == 2
    assert llmrec("base.model=/nowhere", "base.config=null")[0] == 2
