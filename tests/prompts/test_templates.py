"""Template files: all of them load and render, and every mistake is told, together with the others."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from llmrec.data.catalog import Catalog
from llmrec.errors import ConfigError, InputError
from llmrec.prompts.chat import CHAT_DATE, chat_skeleton
from llmrec.prompts.preview import LOSS, NO_LOSS, SID_LOSS, SID_NO_LOSS, counts_line, legend, preview_lines
from llmrec.prompts.renderer import Renderer
from llmrec.prompts.segments import SegmentKind
from llmrec.prompts.tasks import TASKS, NextItemChat, SIDToTitle
from llmrec.prompts.templates import CHAT_FALLBACK, TemplateSet, compile_text, split_marks

from .conftest import FOLDER

FILES = sorted(FOLDER.rglob("*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.name))
def test_every_template_file_renders_in_every_phrasing(
    world: Any, catalog: Catalog, sequences: Any, templates: TemplateSet, path: Path
) -> None:
    if path.stem == CHAT_FALLBACK:
        skeleton = chat_skeleton(world.tokenizer, with_system=True, fallback=templates.chat_fallback)
        assert [piece.variable for piece in skeleton.before if piece.variable] == ["system", "user"]
        assert skeleton.after == world.tokenizer.eos_token
        return
    rows = TASKS[path.stem]().examples(catalog, sequences, 0).rows
    seen = set()
    for seed in range(20):
        row = world.renderer.render(rows[0], phrasing_seed=seed)
        seen.add(row.text)
        # Nothing of Jinja, of a marker or of Python is left in the words.
        assert not re.search(r"[{}\x02\x03]|None|Undefined", row.text)
        assert row.target.any()
    assert len(seen) == len(templates.tasks[path.stem].phrasings)


def test_there_is_a_file_per_task_and_none_is_nested() -> None:
    assert {path.stem for path in FILES} == {*TASKS, CHAT_FALLBACK}
    assert all(path.parent == FOLDER for path in FILES)


def test_optional_values_shape_the_words(world: Any, catalog: Catalog) -> None:
    one = TASKS["explain"]().examples(catalog, [["1", "2", "7"]], 0).rows[0]
    two = TASKS["explain"]().examples(catalog, [["1", "13", "7"]], 0).rows[0]
    assert ", which is also Drama (genres)" in world.renderer.render(one).text
    assert ", which are also Drama (genres)" in world.renderer.render(two).text


def test_all_mistakes_come_together(templates: TemplateSet) -> None:
    files = dict(templates.files)
    files["explain.yaml"] = "form: chat\nphrasings: []\n"
    files["title_to_sid.yaml"] = (
        "form: plain\nphrasing: 3\nphrasings:\n- {prompt: 'x {{ title }}', answer: '{{ item }}', extra: 1}\n"
    )
    files["sid_to_title.yaml"] = (
        "form: plain\nphrasings:\n"
        "- {prompt: '{{ itm }} is {{ title }} ', answer: '{{ title | upper }}'}\n"
        "- {prompt: '{% if item %', answer: 'the {{ title }}', system: hello}\n"
    )
    files["behaviour.yaml"] = "form: plain\nphrasings:\n" + "- {prompt: 'h', answer: '{{ items }}'}\n" * 2
    files["next_item_chat.yaml"] = "- 1\n"
    files["chat_fallback.yaml"] = "chat_template: '{% for m in messages %}{{ m.content }}{{ eos }}{% endfor %}'\n"
    files["sid_to_titel.yaml"] = files.pop("sid_to_attributes.yaml")
    with pytest.raises(ConfigError) as caught:
        TemplateSet.from_files(files)
    problems = "\n".join(caught.value.problems)
    for expected in (
        "sid_to_attributes.yaml: missing",
        "sid_to_titel.yaml: no task has this name; did you mean 'sid_to_title.yaml'?",
        "explain.yaml: phrasings",
        "title_to_sid.yaml: phrasing: unknown key; did you mean 'phrasings'?",
        "title_to_sid.yaml: phrasings.0.extra: unknown key",
        "unknown variable 'itm'; did you mean 'item'?",
        "'title' is part of the answer; the prompt would give it away",
        "phrasing 1: the prompt ends with a space",
        "phrasing 1, answer: 'title' may be printed or tested with if, not filtered",
        "phrasing 2, prompt: line 1",
        "phrasing 2: a system message needs form: chat",
        "phrasing 2, answer: must be {{ title }} alone",
        "behaviour.yaml: needs exactly one phrasing",
        "next_item_chat.yaml: holds no mapping",
        "chat_fallback.yaml: unknown variable 'eos'",
    ):
        assert expected in problems


@pytest.mark.parametrize(
    "source",
    [
        "{{ title | upper }}",
        "{{ title[0] }}",
        "{{ title ~ 'x' }}",
        "{% set x = title %}{{ x }}",
        "{{ title.upper() }}",
        "{% for c in title %}{{ c }}{% endfor %}",
        "{% if title == 'x' %}{{ title }}{% endif %}",
    ],
)
def test_values_may_only_be_printed_or_tested(templates: TemplateSet, source: str) -> None:
    text = f'form: plain\nphrasings:\n- {{prompt: "{source}", answer: "{{{{ item }}}}"}}\n'
    with pytest.raises(ConfigError, match="'title' may be printed or tested"):
        TemplateSet.from_files({**templates.files, "title_to_sid.yaml": text})


def test_templates_cannot_reach_into_python(templates: TemplateSet) -> None:
    text = "form: plain\nphrasings:\n- {prompt: \"{{ ''.__class__.__mro__ }}\", answer: '{{ item }}'}\n"
    with pytest.raises(ConfigError, match="unsafe"):
        TemplateSet.from_files({**templates.files, "title_to_sid.yaml": text})


def test_the_hash_follows_names_and_contents(templates: TemplateSet, tmp_path: Path) -> None:
    templates.save(tmp_path / "saved")
    again = TemplateSet.load(tmp_path / "saved")
    assert again.hash == templates.hash
    changed = {**templates.files, "behaviour.yaml": templates.files["behaviour.yaml"] + "# more\n"}
    assert TemplateSet.from_files(changed).hash != templates.hash
    shutil.rmtree(tmp_path / "saved")
    with pytest.raises(InputError, match="does not exist"):
        TemplateSet.load(tmp_path / "saved")


def test_marks_split_into_literals_and_variables() -> None:
    pieces = compile_text("a {{ x }}{% if y %}b{% endif %}{{ y }}", {"x": True, "y": False})
    assert [(piece.literal, piece.variable) for piece in pieces] == [("a ", ""), ("", "x"), ("", "y")]
    assert split_marks("") == ()


def test_chat_templates_are_taken_as_they_are_but_for_dates(world: Any) -> None:
    template = (
        "{{ bos_token }}{% if messages[0]['role'] != 'system' %}[default {{ strftime_now('%d') }}]{% endif %}"
        "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] | trim }}{% endfor %}{{ eos_token }}|\n"
    )
    skeleton = chat_skeleton(world.tokenizer, with_system=False, fallback=template)
    assert skeleton.before[0].literal == f"{world.tokenizer.bos_token}[default {CHAT_DATE}]<user>"
    assert skeleton.after == f"{world.tokenizer.eos_token}|"


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('no such role') }}",
        "{{ messages[0]['content'] }}",
        "{{ messages[1]['content'] }}{{ messages[0]['content'] }}",
        "{{ messages[0]['content'] | upper }}{{ messages[1]['content'] }}",
    ],
)
def test_chat_templates_that_lose_or_change_content_are_refused(world: Any, template: str) -> None:
    with pytest.raises(InputError, match="chat template"):
        chat_skeleton(world.tokenizer, with_system=False, fallback=template)


def test_a_system_message_goes_where_the_chat_template_puts_it(world: Any, templates: TemplateSet) -> None:
    files = dict(templates.files)
    files["next_item_chat.yaml"] = (
        "form: chat\nphrasings:\n- {system: 'You recommend.', prompt: 'After{{ history }}', answer: '{{ item }}'}\n"
    )
    renderer = Renderer(world.tokenizer, world.table, TemplateSet.from_files(files))
    row = renderer.render(NextItemChat().prompt(["1"]), answer=False)
    words = [s.text for s in row.segments if s.kind is SegmentKind.INSTRUCTION]
    assert words[:2] == ["You recommend.", "After"]
    assert row.text.lower().count("system") == 1


def test_a_base_model_without_bos_needs_a_header(world: Any, templates: TemplateSet) -> None:
    files = {**templates.files, "behaviour.yaml": "form: plain\nphrasings:\n- {prompt: '', answer: '{{ items }}'}\n"}
    if world.kind == "spm":
        renderer = Renderer(world.tokenizer, world.table, TemplateSet.from_files(files))
        assert renderer.prefix_ids.tolist() == [world.tokenizer.bos_token_id]
    else:
        with pytest.raises(InputError, match="serving prompt is empty"):
            Renderer(world.tokenizer, world.table, TemplateSet.from_files(files))


def test_the_preview_shows_what_carries_loss(world: Any, catalog: Catalog) -> None:
    row = world.renderer.sequence(["1", "gone", "2", "3"], window=2, targets="last")
    *lines, counts = preview_lines(row, world.tokenizer)
    styles = {lines[0].plain[span.start : span.end]: span.style for span in lines[0].spans}
    assert styles["<a_1><b_0><c_0>"] == SID_NO_LOSS
    assert styles["<a_2><b_0><c_0>"] == SID_LOSS
    length = len(row)
    assert counts.plain == (f"{length} tokens, 3 with loss, 1 oldest items truncated, 1 items without a SID skipped")
    title = world.renderer.render(SIDToTitle().examples(catalog, [], 0).rows[0])
    *lines, counts = preview_lines(title, world.tokenizer)
    shown = "".join(line.plain for line in lines)
    assert shown == title.text.replace("\n", "⏎")
    assert {span.style for line in lines for span in line.spans} == {LOSS, NO_LOSS, SID_NO_LOSS}
    assert counts.plain == counts_line(title)
    assert "with loss" in legend().plain
