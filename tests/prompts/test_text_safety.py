"""Text stays text: no title becomes a control token or a SID, before and after saving, and every text comes back."""

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmrec.errors import InputError
from llmrec.prompts.codec import SegmentCodec
from llmrec.prompts.renderer import Renderer
from llmrec.prompts.segments import SegmentKind
from llmrec.prompts.task import Example
from llmrec.prompts.tasks import NextItemChat

HOSTILE = (
    "<|im_end|>",
    "<s>",
    "</s>",
    "<a_1>",
    "<a_1><b_0><c_0>",
    "{{ item }}",
    "{% if",
    "\x02",
    "<|endoftext|>",
    "<unk>",
)
TEXTS = st.lists(
    st.one_of(st.sampled_from(HOSTILE), st.text(st.characters(exclude_categories=["Cs"]), max_size=8))
).map("".join)


def added_ids(tokenizer: Any) -> set[int]:
    return set(tokenizer.get_added_vocab().values()) - {tokenizer.unk_token_id}


@given(text=TEXTS)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_text_never_becomes_a_control_or_sid_token_and_round_trips(world: Any, text: str) -> None:
    ids = world.renderer.codec.text(text)
    assert not added_ids(world.tokenizer).intersection(ids)
    # SentencePiece writes a space as U+2581 and cannot tell the two apart again.
    assert world.renderer.codec.decode(ids) == (text if world.kind == "bpe" else text.replace("▁", " "))


@pytest.mark.parametrize("title", HOSTILE)
def test_a_hostile_title_is_only_text_in_a_row(world: Any, title: str) -> None:
    example = Example("title_to_sid", "r", {"title": title, "item": ("1",)}, ("1",))
    row = world.renderer.render(example)
    assert [s.text.strip() for s in row.segments if s.kind is SegmentKind.TEXT] == [title.strip()]
    plain = world.renderer.render(Example("title_to_sid", "r", {"title": "x", "item": ("1",)}, ("1",)))
    control = added_ids(world.tokenizer)
    assert [i for i in row.input_ids if i in control] == [i for i in plain.input_ids if i in control]
    assert (row.sid_level >= 0).sum() == world.table.num_levels


def test_a_saved_and_loaded_tokenizer_gives_the_same_ids(
    world: Any, templates: Any, tmp_path: Any, catalog: Any
) -> None:
    world.tokenizer.save_pretrained(tmp_path)
    reloaded = Renderer(type(world.tokenizer).from_pretrained(tmp_path), world.table, templates)
    for text in HOSTILE:
        assert reloaded.codec.text(text) == world.renderer.codec.text(text)
    example = NextItemChat().examples(catalog, [["1", "2", "3"]], 0).rows[0]
    assert reloaded.render(example).input_ids.tolist() == world.renderer.render(example).input_ids.tolist()
    assert reloaded.prefix_ids.tolist() == world.renderer.prefix_ids.tolist()


def test_segments_add_no_space_of_their_own(world: Any) -> None:
    codec: SegmentCodec = world.renderer.codec
    assert codec.decode([*codec.text("Riv"), *codec.text("er")]) == "River"
    assert codec.decode([*codec.text("The"), *codec.text(" River")]) == "The River"
    assert codec.text("") == ()
    # As in the checkpoint's own training, the first word of a row has the space that SentencePiece gives it.
    own = world.tokenizer("The River", add_special_tokens=False).input_ids
    assert list(codec.text(codec.prefix + "The River")) == own
    assert codec.prefix == ("" if world.kind == "bpe" else " ")


def test_the_space_before_a_title_belongs_to_the_title(world: Any) -> None:
    row = world.renderer.render(Example("title_to_sid", "r", {"title": "The River", "item": ("1",)}, ("1",)))
    texts = [s.text for s in row.segments if s.kind is SegmentKind.TEXT]
    assert texts == [" The River"]
    assert world.renderer.codec.decode(row.input_ids).replace("<s>", "").strip() == row.text.replace("<s>", "").strip()


def test_a_foreign_tokenizer_is_refused(world: Any, templates: Any) -> None:
    from llmrec.testing.worlds import tiny_tokenizer

    with pytest.raises(InputError, match="as None, the SID table as"):
        Renderer(tiny_tokenizer("bpe"), world.table, templates)


def test_slow_tokenizers_are_refused() -> None:
    class Slow:
        is_fast = False

    with pytest.raises(InputError, match="Slow is a slow tokenizer"):
        SegmentCodec(Slow(), [])  # type: ignore[arg-type]


@pytest.mark.assets
def test_the_packaged_models_own_chat_template_and_markers(catalog: Any, templates: Any) -> None:
    from transformers import AutoTokenizer

    from llmrec.data.assets import resolve_asset

    from .conftest import extend, tiny_table

    tokenizer = AutoTokenizer.from_pretrained(resolve_asset("asset:smollm2-135m-instruct", kind="model"))
    renderer = Renderer(tokenizer, extend(tokenizer, tiny_table(catalog.item_ids)), templates)
    row = renderer.render(NextItemChat().examples(catalog, [["1", "2", "3"]], 0).rows[0])
    assert row.text.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    assert row.text.endswith("<|im_start|>assistant\n<a_2><b_0><c_0><|im_end|>")
    # Without hostile text, segments tokenise like the whole string does.
    assert row.input_ids.tolist() == tokenizer(row.text, add_special_tokens=False).input_ids
    special = {tokenizer.convert_tokens_to_ids(token) for token in tokenizer.get_added_vocab()}
    for marker in tokenizer.get_added_vocab():
        assert not special.intersection(renderer.codec.text(f"A {marker} film"))
        assert renderer.codec.decode(renderer.codec.text(marker)) == marker
