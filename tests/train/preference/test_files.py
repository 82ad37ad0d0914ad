"""A data set on disk: it comes back as it was, and whatever does not belong together is refused by name."""

import dataclasses
import json

import numpy as np
import polars as pl
import pytest

from llmrec.data.assets import sha256_file
from llmrec.data.split import leave_one_out
from llmrec.errors import DataError, InputError, MismatchError
from llmrec.sid_vocab.table import SIDTable
from llmrec.train.preference.build import make_preferences
from llmrec.train.preference.files import (
    CARD_FILE,
    ROWS_FILE,
    PreferenceCard,
    load_preferences,
    read_rows,
    save_preferences,
    to_frame,
)


@pytest.fixture
def config(recipe):
    return recipe(negatives={"random": {"count": 2}, "same_prefix": {"count": 1}}, recent_events=2, seed=3)


@pytest.fixture
def made(config, tiny_dataset, checkpoint):
    return make_preferences(config, tiny_dataset, checkpoint)


@pytest.fixture
def saved(tmp_path, config, made, tiny_dataset, checkpoint):
    folder = tmp_path / "made"
    save_preferences(folder, config, made, tiny_dataset, checkpoint, engine=None)
    return folder


def load(folder, dataset, checkpoint):
    return load_preferences(folder, split=dataset.split, table=checkpoint.table)


def rewritten(folder, frame):
    """Other rows under a card that names them."""
    frame.write_parquet(folder / ROWS_FILE)
    values = json.loads((folder / CARD_FILE).read_text())
    values["rows_sha256"] = sha256_file(folder / ROWS_FILE)
    (folder / CARD_FILE).write_text(json.dumps(values))


def test_rows_come_back_and_the_card_counts_them(saved, made, config, tiny_dataset, checkpoint):
    data = load(saved, tiny_dataset, checkpoint)
    assert data.rows == made.rows
    card = data.card
    assert (card.rows, card.pairs) == (len(made.rows), sum(len(row.rejected) for row in made.rows))
    assert sum(card.pairs_by_source.values()) == card.pairs
    assert card.users == len({row.user_id for row in made.rows})
    assert card.rows_dropped == dict(made.drops.rows)
    assert (card.seed, card.name, card.scorer, card.model.engine) == (3, "test", None, None)
    assert card.data.loo_sha256 == tiny_dataset.split.loo_sha256
    assert card.model.fingerprint == checkpoint.fingerprint
    assert card.model.sids.rows == checkpoint.table.rows_fingerprint
    assert card.recipe["negatives"] == {"random": {"count": 2}, "same_prefix": {"count": 1, "levels": 1}}


def test_equal_recipes_write_equal_files_and_nothing_is_overwritten(saved, config, made, tiny_dataset, checkpoint):
    other = saved.with_name("again")
    again = make_preferences(config, tiny_dataset, checkpoint)
    save_preferences(other, config, again, tiny_dataset, checkpoint, engine=None)
    assert [(other / name).read_bytes() for name in (ROWS_FILE, CARD_FILE)] == [
        (saved / name).read_bytes() for name in (ROWS_FILE, CARD_FILE)
    ]
    with pytest.raises(InputError, match="exists already"):
        save_preferences(saved, config, made, tiny_dataset, checkpoint, engine=None)


def test_other_rows_than_the_cards_are_refused(saved, made, tiny_dataset, checkpoint):
    to_frame(made.rows[1:]).write_parquet(saved / ROWS_FILE)
    with pytest.raises(MismatchError, match="is not the file that"):
        load(saved, tiny_dataset, checkpoint)


def test_another_split_is_refused(saved, tiny_dataset, checkpoint):
    interactions = dataclasses.replace(
        tiny_dataset.interactions,
        frame=tiny_dataset.interactions.frame.reverse().with_columns(timestamp=pl.lit(0, dtype=pl.Int64)),
    )
    with pytest.raises(MismatchError, match="the data at hand has"):
        load_preferences(saved, split=leave_one_out(interactions), table=checkpoint.table)


def test_chosen_among_the_rejected_and_leaks_are_refused(saved, made, tiny_dataset, checkpoint):
    first = made.rows[0]
    rewritten(saved, to_frame([dataclasses.replace(first, rejected=(first.chosen, *first.rejected[1:]))]))
    with pytest.raises(DataError, match="is both chosen and rejected"):
        load(saved, tiny_dataset, checkpoint)
    split = tiny_dataset.split
    target = split.items[split.targets("test")[split.users.index(first.user_id)]]
    rewritten(saved, to_frame([dataclasses.replace(first, rejected=(target, *first.rejected[1:]))]))
    with pytest.raises(DataError, match=f"{target} is rejected and is a valid or test item"):
        load(saved, tiny_dataset, checkpoint)


def test_items_without_a_sid_are_refused(saved, tiny_dataset):
    few = SIDTable(("1", "2"), np.array([[0], [1]]), (2,))
    with pytest.raises(DataError, match="items have no SID"):
        load_preferences(saved, split=tiny_dataset.split, table=few)


def test_every_problem_of_the_columns_is_named(tmp_path, made):
    path = tmp_path / "rows.parquet"
    frame = to_frame(made.rows[:2])
    frame.drop("weights").with_columns(
        pl.col("position").cast(pl.String), chosen=pl.Series([None, "1"], dtype=pl.String)
    ).write_parquet(path)
    with pytest.raises(DataError) as caught:
        read_rows(path)
    for told in ("no column 'weights'", "'position' is String, not Int64", "'chosen' is empty in 1 rows"):
        assert told in str(caught.value)
    path.write_text("row_id,chosen\n")
    with pytest.raises(DataError, match="cannot be read"):
        read_rows(path)


@pytest.mark.parametrize(
    ("text", "told"),
    [("{", "cannot be read"), ("[]", "has format None"), ('{"format_version": 1}', "is damaged: llmrec_version")],
)
def test_a_damaged_card_is_refused(saved, text, told):
    (saved / CARD_FILE).write_text(text)
    with pytest.raises(InputError, match=told):
        PreferenceCard.read(saved)
    with pytest.raises(InputError, match="is no preference data set"):
        PreferenceCard.read(saved / "nowhere")
