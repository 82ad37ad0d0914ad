"""Recipes are found by name and by path, listed, copied; every shipped YAML is a mapping."""

import pytest

from llmrec import recipes
from llmrec.config import parse_yaml
from llmrec.errors import InputError


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """A root with two pipelines, a template and a measured table."""
    for name, text in {
        "train/pipelines/quickstart.yaml": "# llmrec run quickstart\n# A first run.\nname: q\n",
        "train/pipelines/ml-100k.yaml": "name: m\n",
        "train/README.md": "# not a recipe\n",
        "prompts/title.jinja": "{# Title from SID. #}\n{{ sid }}\n",
        "sid_vocab/rq.yaml": "a: 1\n",
        "eval/results/measured.yaml": "a: 1\n",
    }.items():
        path = tmp_path / "shelf" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.setattr(recipes, "root", lambda: tmp_path / "shelf")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "shelf"


def test_pipelines_are_named_by_stem_and_come_first(shelf):
    assert [(recipe.name, recipe.summary, recipe.is_pipeline) for recipe in recipes.shipped()] == [
        ("ml-100k", "", True),
        ("quickstart", "A first run.", True),
        ("prompts/title.jinja", "Title from SID.", False),
        ("sid_vocab/rq.yaml", "", False),
    ]


def test_find_takes_names_and_paths_and_an_existing_file_wins(shelf, tmp_path):
    assert recipes.find("quickstart") == shelf / "train/pipelines/quickstart.yaml"
    assert recipes.find("prompts/title.jinja") == shelf / "prompts/title.jinja"
    own = tmp_path / "own.yaml"
    own.write_text("a: 1\n")
    assert recipes.find(str(own)) == own
    (tmp_path / "quickstart").write_text("mine: 1\n")
    assert recipes.find("quickstart").read_text() == "mine: 1\n"


def test_a_folder_called_like_a_recipe_does_not_hide_it(shelf, tmp_path):
    (tmp_path / "quickstart").mkdir()
    assert recipes.find("quickstart").is_file()
    (tmp_path / "mine").mkdir()
    with pytest.raises(InputError, match="is a folder"):
        recipes.find("mine")


def test_an_unknown_name_gets_the_nearest_or_the_list(shelf):
    with pytest.raises(InputError) as caught:
        recipes.find("quickstrat")
    assert caught.value.hint == "did you mean 'quickstart'?"
    with pytest.raises(InputError, match="shipped: ml-100k, quickstart"):
        recipes.find("zzz")


def test_copy_never_overwrites(shelf, tmp_path):
    target = recipes.copy("quickstart", tmp_path / "new" / "mine.yaml")
    assert target.read_text() == "# llmrec run quickstart\n# A first run.\nname: q\n"
    assert recipes.copy("quickstart", tmp_path) == tmp_path / "quickstart.yaml"
    with pytest.raises(InputError, match="exists already"):
        recipes.copy("quickstart", tmp_path)


def test_folders_are_those_of_the_checkout_or_the_wheel():
    for kind in recipes.KINDS:
        assert recipes.folder(kind) == recipes.root() / kind
        assert recipes.folder(kind).is_dir()


def test_every_shipped_yaml_is_a_mapping():
    for recipe in recipes.shipped():
        if recipe.path.suffix in (".yaml", ".yml"):
            assert isinstance(parse_yaml(recipe.path.read_text(encoding="utf-8"), source=recipe.name), dict), (
                recipe.name
            )
