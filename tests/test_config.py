"""Recipes: YAML with the floats people expect, dotted overrides, all mistakes together, near-misses named."""

from typing import Annotated, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, ValidationError

from llmrec.config import Config, apply_overrides, build_config, dump_yaml, load_config, parse_yaml
from llmrec.errors import ConfigError, InputError


class Stage(Config):
    """A stage."""

    learning_rate: float = 1e-3
    """Step size."""
    epochs: int = Field(default=1, ge=1)
    """Passes."""


class Pipeline(Config):
    """A pipeline."""

    name: str
    """What reports call it."""
    flow: Literal["A", "B"] = "A"
    """Where SID rows live."""
    cpt: Stage = Stage()
    """First stage."""
    sft: Stage | None = None
    """Second stage."""
    extra: Annotated[Stage | None, Field(description="third")] = None
    """Third stage."""
    sizes: tuple[int, ...] = ()
    """Sizes."""


def test_a_recipe_with_three_mistakes_names_all_of_them():
    with pytest.raises(ConfigError) as caught:
        build_config(
            Pipeline,
            {"name": "x", "flow": "C", "cpt": {"learning_rat": 0.1}, "sft": {"epochs": 0}},
            source="my.yaml",
        )
    text = str(caught.value)
    assert len(caught.value.problems) == 3
    assert "my.yaml has 3 problems" in text
    assert "cpt.learning_rat: unknown key; did you mean 'learning_rate'?" in text
    assert "flow: input should be 'A' or 'B' (given 'C')" in text
    assert "sft.epochs: input should be greater than or equal to 1 (given 0)" in text


def test_keys_are_suggested_inside_optional_and_annotated_groups():
    for group in ("sft", "extra"):
        with pytest.raises(ConfigError, match="did you mean 'epochs'"):
            build_config(Pipeline, {"name": "x", group: {"epoch": 2}}, source="r")


def test_an_unknown_key_far_from_all_lists_the_known_ones():
    with pytest.raises(ConfigError, match="zzz: unknown key; known here: cpt, extra, flow, name, sft, sizes"):
        build_config(Pipeline, {"name": "x", "zzz": 1}, source="r")


def test_a_missing_key_is_a_problem():
    with pytest.raises(ConfigError, match="name: missing, and it has no default"):
        build_config(Pipeline, {}, source="r")


def test_an_index_in_a_list_is_part_of_the_place():
    with pytest.raises(ConfigError, match=r"sizes\.1: input should be a valid integer"):
        build_config(Pipeline, {"name": "x", "sizes": [1, "many"]}, source="r")


def test_configs_are_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        Stage().epochs = 3


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("-2E5", -2e5),
        ("1.5e+2", 150.0),
        ("3", 3),
        ("1.5", 1.5),
        ("yes-1e3x", "yes-1e3x"),
        ("null", None),
    ],
)
def test_numbers_are_read_as_people_write_them(text, value):
    parsed = parse_yaml(f"key: {text}", source="r")["key"]
    assert parsed == value
    assert type(parsed) is type(value)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_float_that_python_prints_is_read_back(number):
    assert parse_yaml(f"key: {number!r}", source="r")["key"] == number


def test_broken_yaml_says_where():
    with pytest.raises(InputError, match=r"r\.yaml:2:\d+ is not valid YAML"):
        parse_yaml("a: 1\nb: [", source="r.yaml")


@pytest.mark.parametrize("text", ["!!python/object/apply:os.system ['true']", "!!python/name:os.system"])
def test_yaml_cannot_make_objects(text):
    with pytest.raises(InputError, match="not valid YAML"):
        parse_yaml(text, source="r")


def test_a_key_given_twice_is_refused():
    with pytest.raises(InputError, match=r"r:3:1 .*'epochs' is given twice"):
        parse_yaml("epochs: 1\nlearning_rate: 2\nepochs: 3\n", source="r")


def test_control_characters_are_an_input_error():
    with pytest.raises(InputError, match="not valid YAML"):
        parse_yaml("a: \x00", source="r")


def test_overrides_reach_into_groups_make_them_and_keep_the_original():
    recipe = {"name": "x", "cpt": {"epochs": 1}, "sft": None}
    result = apply_overrides(
        recipe, ["cpt.epochs=3", "sft.learning_rate=1e-4", "extra.epochs=2", "sizes=[1, 2]", "name=a=b"]
    )
    assert result == {
        "name": "a=b",
        "cpt": {"epochs": 3},
        "sft": {"learning_rate": 1e-4},
        "extra": {"epochs": 2},
        "sizes": [1, 2],
    }
    assert recipe == {"name": "x", "cpt": {"epochs": 1}, "sft": None}


def test_an_empty_override_means_null():
    assert apply_overrides({"sft": {"epochs": 1}}, ["sft="]) == {"sft": None}


def test_all_wrong_overrides_come_together():
    with pytest.raises(ConfigError) as caught:
        apply_overrides({"name": "x"}, ["epochs", "=3", "name.first=1", "a..b=1"])
    assert len(caught.value.problems) == 4
    assert "'name' holds the value 'x', not a group of settings" in str(caught.value)


def test_load_config_reads_overrides_and_round_trips(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("name: über\ncpt: {learning_rate: 2e-4}\n", encoding="utf-8")
    config = load_config(Pipeline, path, ["sft.epochs=2"])
    assert config == Pipeline(name="über", cpt=Stage(learning_rate=2e-4), sft=Stage(epochs=2))
    path.write_text(dump_yaml(config), encoding="utf-8")
    assert load_config(Pipeline, path) == config
    assert "epochs: 1" in dump_yaml(config)  # defaults are written out


@pytest.mark.parametrize(("text", "kind"), [("- a\n", "a list"), ("", "nothing"), ("word", "text")])
def test_a_recipe_must_be_a_mapping(tmp_path, text, kind):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=f"holds {kind}, not a mapping"):
        load_config(Pipeline, path)


def test_bytes_that_are_not_utf8_are_an_input_error(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(b"name: \xff\n")
    with pytest.raises(InputError, match="not UTF-8"):
        load_config(Pipeline, path)


def test_a_missing_recipe_file_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        load_config(Pipeline, tmp_path / "none.yaml")
