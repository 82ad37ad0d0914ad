"""Thoughts: trained as served, made of train events, and true in every statement."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from llmrec.data.catalog import Catalog
from llmrec.errors import ConfigError, DataError, InputError
from llmrec.prompts.explain import value_frequencies
from llmrec.prompts.grounding import Facts, check_thought, grounding_rates
from llmrec.prompts.renderer import Renderer
from llmrec.prompts.task import Example
from llmrec.prompts.templates import TemplateSet
from llmrec.prompts.think import Think, ThinkRow, read_rows, think_row, write_rows
from llmrec.prompts.thought_form import ThoughtForm


def split_answer(world: Any, row: Any) -> tuple[list[int], list[int]]:
    """The ids of the thought, and what stands behind its closing tokens."""
    answer, closing = row.input_ids[row.target].tolist(), list(ThoughtForm.of(world.renderer).closing_ids)
    end = next(at for at in range(len(answer)) if answer[at : at + len(closing)] == closing)
    return answer[:end], answer[end + len(closing) :]


def test_a_row_is_the_served_prompt_a_thought_its_closing_and_the_sid(
    world: Any, catalog: Catalog, sequences: Any
) -> None:
    form = ThoughtForm.of(world.renderer)
    examples = Think(window=4, per_user=2).examples(catalog, sequences, seed=1).rows
    assert any(example.truncated_items for example in examples)
    for example in examples:
        _, user, position = example.row_id.split(":")
        history = sequences[int(user)][: int(position)]
        served = form.prompt(world.renderer.sequence(history, window=4).input_ids)
        for phrasing_seed in (None, 1, 2):
            row = world.renderer.render(example, phrasing_seed=phrasing_seed)
            np.testing.assert_array_equal(row.input_ids[~row.target], served)
            np.testing.assert_array_equal(row.input_ids[: len(served)], served)
            _, behind = split_answer(world, row)
            assert behind == world.table.sid_token_ids()[world.table.row(example.target[0])].tolist()


def test_every_statement_of_every_phrasing_is_true(world: Any, catalog: Catalog, sequences: Any) -> None:
    facts = Facts(catalog, world.table)
    found = []
    for example in Think(per_user=3).examples(catalog, sequences, seed=1).rows:
        for phrasing_seed in range(6):
            row = world.renderer.render(example, phrasing_seed=phrasing_seed)
            thought, _ = split_answer(world, row)
            parts = world.renderer.reader.parts(thought)
            found.append(check_thought(parts, example.values["history"], facts))
            assert found[-1].untrue == (), row.text
            # the same words behind another user's history are not true: the check is not blind
            assert not check_thought(parts, [example.target[0]], facts).grounded
    rates = grounding_rates(found)
    assert rates["grounded"] == 1
    assert min(rates[f"{kind}_statements"] for kind in ("item", "title", "history", "attribute")) >= len(found)


def grounding_of(world: Any, catalog: Catalog, text: str, history: list[str]) -> list[str]:
    """Kinds of the untrue statements of a text in which ``<a_1>`` is written as its token."""
    names = {
        f"<{'abc'[level]}_{code}>": int(i)
        for level, ids in enumerate(world.table.token_ids)
        for code, i in enumerate(ids)
    }
    ids: list[int] = []
    while text:
        at, name = min(((text.find(name), name) for name in names if name in text), default=(len(text), ""))
        ids += [*(world.renderer.codec.text(text[:at]) if at else ()), *([names[name]] if name else [])]
        text = text[at + len(name) :]
    found = check_thought(world.renderer.reader.parts(ids), history, Facts(catalog, world.table))
    return [one.kind for one in found.untrue]


def test_untrue_statements_are_found(world: Any, catalog: Catalog) -> None:
    first, second = catalog.title("1"), catalog.title("2")  # Drama, <a_0><b_0>; Comedy, <a_1><b_0>
    for text, expected in (
        (f'you chose<a_0> "{first}" [genres: Drama]', []),
        (f'you chose<a_0><b_0> "{first}"[genres: Drama] [year: 1950].', []),
        (f'you chose<a_1> "{first}"', ["title", "history"]),
        (f'"{first}" and "{second}" [genres: Drama]', ["attribute"]),
        (f'"{first}" [genres: Drama] "{second}" [genres: Comedy]', []),
        (f'"{catalog.title("3")}"', ["history"]),
        ('"The Unheard Of"', ["title", "history"]),
        ("now<a_0>[genres: Comedy]", ["attribute"]),
        ("now<a_0><b_1>[year: 1956]", []),
        ("now<b_1>", ["item"]),
        ("[genres: Opera]", ["attribute"]),
        ("[colour: red]", ["attribute"]),
        (f'[genres: Drama] is it: "{second}"', []),
        (f'"{first}', ["title"]),
        ("nothing is said", []),
    ):
        assert grounding_of(world, catalog, text, ["1", "2"]) == expected, text


def test_retired_items_are_not_living(world: Any, catalog: Catalog) -> None:
    status = np.zeros(60, np.uint8)
    status[::6] = 1  # all of <a_0>
    facts = Facts(catalog, replace(world.table, status=status))
    assert not facts.beneath((0,))
    assert facts.beneath((1,))


def test_titles_that_would_break_the_notation_are_not_quoted() -> None:
    frame = pl.DataFrame(
        {
            "item_id": ["a", "b", "c", "d"],
            "title": ['The "Best"', "Plain", "[Rec]", "Target\nof two lines"],
            "genres": [["x"], ["x"], ["x"], ["x", "y: [z]"]],
            "year": ["1", "1", "1", "[1]"],
        }
    )
    catalog = Catalog(frame, ("title",), ("genres", "year"))
    row = think_row(catalog, value_frequencies(catalog), ["a", "b", "c"], "d", (0, 3, 4))
    assert row is not None
    assert (row.evidence, row.shared, row.detail) == (("b",), "x", "")
    assert think_row(catalog, value_frequencies(catalog), ["a", "c"], "d", (0, 2, 3)) is None
    kin = think_row(catalog, value_frequencies(catalog), ["a"], "b", (0, 2, 3), kin=["a"])
    assert kin is None


def test_a_file_of_rows_is_of_these_train_events_or_refused(catalog: Catalog, tmp_path: Path) -> None:
    path = tmp_path / "think.jsonl"
    row = ThinkRow(0, 2, 4, "13", ("1", "7"), "genres", "Drama", "year", "1962", kin="7")
    write_rows(path, [row])
    assert read_rows(path) == [row]
    task = Think(rows=str(path))
    (example,) = task.examples(catalog, [["1", "7", "13", "19"]], 0).rows
    assert example.values["history"] == ("1", "7")
    assert example.target == ("13",)
    cut = task.examples(catalog, [["7", "13", "19"]], 0)  # recent_items: 3
    assert cut.skipped == {"thoughts about items before the window": 1}
    assert Think(rows=str(path)).examples(catalog, [["13", "19"]], 0).skipped == {
        "thoughts about events before recent_items": 1
    }
    for other in ([["1", "7", "19", "13"]], []):
        with pytest.raises(DataError, match="other data"):
            task.examples(catalog, other, 0)
    with pytest.raises(DataError, match="not in the history"):
        task.examples(catalog, [["2", "7", "13", "19"]], 0)
    with pytest.raises(InputError, match="does not exist"):
        Think(rows="nowhere").examples(catalog, [], 0)
    path.write_text("{}\n")
    with pytest.raises(InputError, match="line 1 is no thought"):
        read_rows(path)


def test_a_prefix_is_never_a_whole_sid(world: Any, catalog: Catalog, sequences: Any) -> None:
    for depth, fine in ((1, True), (2, True), (3, False), (0, False)):
        example = Think(prefix_depth=depth).examples(catalog, sequences, 0).rows[0]
        if fine:
            world.renderer.render(example)
        else:
            with pytest.raises(InputError, match="prefix"):
                world.renderer.render(example)


def test_templates_without_thoughts_load_and_say_so(world: Any, templates: TemplateSet) -> None:
    files = {name: text for name, text in templates.files.items() if name != "think.yaml"}
    renderer = Renderer(world.tokenizer, world.table, TemplateSet.from_files(files))
    with pytest.raises(InputError, match=r"hold no think\.yaml"):
        ThoughtForm.of(renderer)
    with pytest.raises(InputError, match=r"hold no think\.yaml"):
        renderer.render(Example("think", "r", {}))


def test_markers_that_differ_by_row_are_refused(templates: TemplateSet) -> None:
    bad = "form: chat\nclosing: '{{ item }}'\nphrasings:\n- {prompt: 'a', answer: '{{ first }}'}\n"
    bad += "- {prompt: 'b', answer: '{{ firts }}'}\n"
    with pytest.raises(ConfigError) as caught:
        TemplateSet.from_files({**templates.files, "think.yaml": bad})
    problems = "\n".join(caught.value.problems)
    for expected in (
        "needs the form plain",
        "closing: holds Jinja",
        "the same plain words",
        "unknown variable 'firts'",
    ):
        assert expected in problems
    other = templates.files["title_to_sid.yaml"].replace("form: plain", "form: plain\nclosing: x")
    with pytest.raises(ConfigError, match="belongs to tasks that think"):
        TemplateSet.from_files({**templates.files, "title_to_sid.yaml": other})
