"""Tasks: gold answers parse back, prompts are prefixes of training rows, nothing but train items is a target."""

from typing import Any

import numpy as np
import polars as pl
import pytest

from llmrec.data.catalog import Catalog
from llmrec.errors import InputError
from llmrec.prompts.explain import Explain, find_reason, value_frequencies
from llmrec.prompts.task import Example, choose_positions
from llmrec.prompts.tasks import TASKS, Behaviour, NextItemChat, SIDToAttributes, SIDToTitle, TitleToSID

EVERY_TASK = pytest.mark.parametrize("name", sorted(TASKS))


@EVERY_TASK
def test_the_gold_answer_parses_back_as_ids_and_as_text(
    world: Any, catalog: Catalog, sequences: Any, name: str
) -> None:
    task = TASKS[name]()
    examples = task.examples(catalog, sequences, seed=3)
    assert examples.rows
    reader = world.renderer.reader
    for example in examples.rows:
        for phrasing_seed in (None, 5):
            row = world.renderer.render(example, phrasing_seed=phrasing_seed)
            gold = row.input_ids[row.target]
            parsed = set(task.parse(gold, reader)) if name == "explain" else task.parse(gold, reader)
            assert parsed == (set(example.target) if name == "explain" else example.target)
            assert task.accepts(gold, example, reader)
            assert task.accepts(reader.text(gold), example, reader)


@EVERY_TASK
def test_the_prompt_is_the_beginning_of_the_row_and_carries_no_loss(
    world: Any, catalog: Catalog, sequences: Any, name: str
) -> None:
    for example in TASKS[name]().examples(catalog, sequences, seed=0).rows[:20]:
        row = world.renderer.render(example, phrasing_seed=1)
        prompt = world.renderer.render(example, phrasing_seed=1, answer=False)
        np.testing.assert_array_equal(row.input_ids[: len(prompt)], prompt.input_ids)
        assert not prompt.target.any()
        assert row.target[len(prompt) :].all()
        assert not row.target[: len(prompt)].any()


@EVERY_TASK
def test_a_wrong_answer_is_not_accepted(world: Any, catalog: Catalog, sequences: Any, name: str) -> None:
    task = TASKS[name]()
    rows = task.examples(catalog, sequences, seed=0).rows
    right = rows[0]
    wrong = next(row for row in rows if row.target != right.target)
    rendered = world.renderer.render(wrong)
    assert not task.accepts(rendered.input_ids[rendered.target], right, world.renderer.reader)
    assert not task.accepts("", right, world.renderer.reader)


@EVERY_TASK
def test_row_ids_are_unique_and_targets_are_of_the_train_part(catalog: Catalog, name: str) -> None:
    sequences = [["1", "7", "13"], ["2", "8"], ["3"], []]
    rows = TASKS[name]().examples(catalog, sequences, seed=0).rows
    assert len({row.row_id for row in rows}) == len(rows)
    if name in ("behaviour", "next_item_chat", "explain"):
        train = {item for sequence in sequences for item in sequence}
        assert all(set(value) <= train for row in rows for value in row.values.values() if isinstance(value, tuple))


def test_the_first_phrasing_serves_and_training_uses_them_all(world: Any, catalog: Catalog) -> None:
    rows = TitleToSID().examples(catalog, [], 0).rows
    count = len(world.renderer.templates.tasks["title_to_sid"].phrasings)
    heads = set()
    for row in rows:
        segments = world.renderer.render(row, phrasing_seed=0).segments
        heads.add(tuple(segment.text for segment in segments if segment.kind == "instruction"))
    assert len(heads) == count
    again = [world.renderer.render(row, phrasing_seed=0).text for row in rows]
    assert again == [world.renderer.render(row, phrasing_seed=0).text for row in rows]
    assert again != [world.renderer.render(row, phrasing_seed=1).text for row in rows]


def test_chat_ends_after_the_turn_marker_with_loss(world: Any) -> None:
    example = NextItemChat().examples(None, [["1", "2", "3"]], 0).rows[0]
    row = world.renderer.render(example)
    assert row.input_ids[-1] == world.tokenizer.eos_token_id
    assert row.target[-1]
    assert row.target.sum() == 4
    text = world.tokenizer.decode(row.input_ids)
    assert ("<|im_start|>assistant\n<a_2>" in text) == (world.kind == "bpe")
    assert ("Assistant:\n" in text) == (world.kind != "bpe")


def test_long_histories_give_way_from_their_oldest_end(world: Any) -> None:
    history = [str(i) for i in range(1, 31)]
    prompt = NextItemChat(max_history=20).prompt(history)
    full = world.renderer.render(prompt, answer=False)
    assert full.truncated_items == 10
    shorter = world.renderer.render(prompt, answer=False, max_length=len(full) - 5)
    assert shorter.truncated_items == 12
    assert len(shorter) == len(full) - 6
    assert next(s.item_ids for s in shorter.segments if s.item_ids) == tuple(history[12:])
    with pytest.raises(InputError, match="cannot give way"):
        world.renderer.render(prompt, answer=False, max_length=8)
    unknown = world.renderer.render(NextItemChat().prompt(["gone", "1"]), answer=False)
    assert unknown.skipped_items == 1


def test_items_that_an_explanation_names_stay_in_its_history(world: Any, catalog: Catalog) -> None:
    history = ["1", "2", "3", "4", "5", "6", "8", "9"]  # only "1" shares a genre with "7"
    example = Explain().examples(catalog, [[*history, "7"]], 0).rows[0]
    assert example.target == ("1", "7")
    full = world.renderer.render(example)
    row = world.renderer.render(example, max_length=len(full) - 9)
    assert row.truncated_items == 3
    assert next(s.item_ids for s in row.segments if s.item_ids) == ("1", "5", "6", "8", "9")


def test_explanations_are_true(catalog: Catalog, sequences: Any) -> None:
    examples = Explain(per_user=3).examples(catalog, sequences, seed=1)
    assert examples.skipped["items that share no attribute with their history"] > 0
    for example in examples.rows:
        values = example.values
        own = catalog.attribute_values(values["item"][0])
        assert values["shared"] in own[values["attribute"]]
        for item in (*values["first"], *values["second"]):
            assert item in values["history"]
            assert values["shared"] in catalog.attribute_values(item)[values["attribute"]]
        assert values["detail"] == ", ".join(own[values["detail_attribute"]])


def test_a_rarer_shared_value_explains_better() -> None:
    frame = pl.DataFrame(
        {
            "item_id": ["a", "b", "c", "d", "e"],
            "title": list("abcde"),
            "genres": [["Drama", "Western"], ["Drama", "Western"], ["Drama", "Western"], ["Drama"], ["Comedy"]],
        }
    )
    catalog = Catalog(frame, ("title",), ("genres",))
    reason = find_reason(catalog, value_frequencies(catalog), ["d", "a", "b"], "c")
    assert reason is not None
    assert (reason.shared, reason.items) == ("Western", ("a", "b"))
    assert find_reason(catalog, value_frequencies(catalog), ["a"], "e") is None


def test_missing_attributes_are_counted() -> None:
    frame = pl.DataFrame({"item_id": ["a", "b"], "title": ["A", "B"], "genres": [["x, y", "z"], []]})
    found = SIDToAttributes().examples(Catalog(frame, ("title",), ("genres",)), [], 0)
    assert [row.target for row in found.rows] == [("x", "y", "z")]
    assert found.skipped == {"items without genres": 1}
    assert not SIDToAttributes().examples(Catalog(frame, ("title",)), [], 0).rows


def test_short_users_are_counted() -> None:
    assert NextItemChat().examples(None, [["1"], ["1", "2"]], 0).skipped == {"users with fewer than 2 train items": 1}
    assert Behaviour().examples(None, [[], ["1"]], 0).skipped == {"empty sequences": 1}


def test_positions_are_seeded_and_end_with_the_last() -> None:
    assert choose_positions(9, 3, "k") == choose_positions(9, 3, "k")
    assert choose_positions(9, 1, "k") == [8]
    assert choose_positions(9, 99, "k") == list(range(1, 9))
    assert choose_positions(1, 2, "k") == []
    assert len({tuple(choose_positions(20, 3, str(seed))) for seed in range(10)}) > 5


def test_a_row_without_its_values_or_its_item_is_an_error(world: Any) -> None:
    with pytest.raises(InputError, match="no value for title"):
        world.renderer.render(Example("sid_to_title", "r", {"item": ("1",)}))
    with pytest.raises(InputError, match="'99' has no SID"):
        world.renderer.render(Example("sid_to_title", "r", {"item": ("99",)}), answer=False)


def test_answers_with_broken_sids_name_no_item(world: Any) -> None:
    reader, ids = world.renderer.reader, world.table.sid_token_ids()
    first, second = ids[0].tolist(), ids[1].tolist()
    assert reader.items([*first, *second]) == (("1",), ("2",))
    assert reader.items([*first[:2], *second]) == ((), ("2",))
    assert reader.items([first[1], *second]) == ((), ("2",))
    assert reader.items([*first[::-1]]) == ((), (), ())
    assert reader.items([*first, world.tokenizer.eos_token_id, *second]) == (("1",),)
    assert [part.text for part in reader.parts("so <a_0> <b_0> <c_0> then <a_1><b_0><c_0>!")] == [
        "so ",
        "<a_0><b_0><c_0>",
        " then ",
        "<a_1><b_0><c_0>",
        "!",
    ]


def test_sid_to_title_reads_any_words(world: Any) -> None:
    codec = world.renderer.codec
    for title in ("Amélie – 2001", "a  b", "日本", "tab\tand <s> and <a_1><b_0><c_0>"):
        assert SIDToTitle().parse(codec.text(" " + title), world.renderer.reader) == title
