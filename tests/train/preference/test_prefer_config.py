"""Preference recipes: the shipped ones load, and every mistake is named."""

import pytest

from llmrec import recipes
from llmrec.config import build_config, load_config
from llmrec.errors import ConfigError
from llmrec.train.preference.config import PreferConfig

SHIPPED = sorted((recipes.folder("train") / "preference").glob("*.yaml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_recipes_load_and_are_named_like_their_file(path):
    assert load_config(PreferConfig, path).name == path.stem
    assert f"llmrec prefer {path.stem} checkpoint=" in path.read_text()


def test_there_is_a_recipe_of_every_kind():
    assert {path.stem for path in SHIPPED} >= {
        "beams",
        "random",
        "self-play",
        "rejection-sampled",
        "teacher",
        "ratings",
    }


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({}, "exactly one of negatives, scorer, feedback"),
        ({"negatives": {"random": {}}, "scorer": {}}, "given negatives and scorer"),
        ({"negatives": {}}, "no source is named; known are random, popular"),
        ({"negatives": {"beams": {"count": 9, "num_beams": 5}}}, "num_beams=5 cannot give 9 wrong answers"),
        ({"negatives": {"beam": {}}}, "did you mean 'beams'?"),
        ({"negatives": {"random": {"counts": 2}}}, "did you mean 'count'?"),
        ({"negatives": {"rejection_sampled": {"count": 3, "draws": 2}}}, "draws=2 cannot give 3"),
        ({"scorer": {"baseline": "oracle"}}, "there is no baseline 'oracle'"),
        ({"scorer": {"candidates": 2, "count": 2}}, "candidates=2 cannot give one chosen and 2 rejected"),
        ({"feedback": {"column": "r", "levels": [{"reward": 1}]}}, "either value (text) or at_least"),
        ({"feedback": {"column": "r", "levels": [{"value": "buy", "reward": 1}]}}, "the same reward"),
        (
            {"feedback": {"column": "r", "levels": [{"value": "a", "reward": 1}, {"at_least": 2, "reward": 2}]}},
            "all value or all at_least",
        ),
        ({"feedback": {"column": "r", "levels": [{"value": "a", "reward": 1}], "count": 0}}, "both 0"),
    ],
)
def test_mistakes_are_named(values, told):
    with pytest.raises(ConfigError) as caught:
        build_config(PreferConfig, {"name": "n", **values}, source="recipe")
    assert told in str(caught.value)
