"""Explanations: a claimed attribute is the catalogue's, and what was "chosen" is in the history."""

import polars as pl
import pytest

from llmrec import recipes
from llmrec.data.catalog import Catalog
from llmrec.explanation import read_explanation
from llmrec.prompts.answers import Part
from llmrec.prompts.explain import Explain
from llmrec.prompts.explanation_claims import untrue_attributes
from llmrec.prompts.renderer import Renderer
from llmrec.prompts.templates import TemplateSet
from llmrec.testing.checkpoints import tiny_parts

FRAME = pl.DataFrame(
    {
        "item_id": ["a", "b", "c"],
        "title": ["Alien", "the genres Opera, the film", "Casablanca"],
        "genres": [["Horror", "Science Fiction"], ["Drama"], ["Drama", "Love, War"]],
        "year": ["1979", "1982", "1942"],
    }
)
CATALOG = Catalog(FRAME, ("title",), ("genres", "year"))


@pytest.mark.parametrize(
    ("text", "untrue"),
    [
        ("You chose “Alien”, which is also Science Fiction (genres). “Alien” is it too, with the year 1979.", ()),
        ("You chose “Alien”, which is also Drama (genres).", ("genres: Drama",)),
        ("“Alien” has the genres Horror, like “Alien” from your history; its year: 1980.", ("year: 1980",)),
        ("“Alien” has the genres Horror, Opera.", ("genres: Opera",)),
        ("You chose “the genres Opera, the film”, which is also Horror (genres).", ()),
        ("It is good.", ()),
    ],
)
def test_claims_about_attributes_are_held_against_the_catalogue(text: str, untrue: tuple[str, ...]) -> None:
    assert untrue_attributes(text, "a", CATALOG) == untrue


def test_values_may_hold_commas() -> None:
    assert untrue_attributes("“Casablanca” has the genres Love, War.", "c", CATALOG) == ()
    assert untrue_attributes("“Casablanca” has the genres Drama, Love, War.", "c", CATALOG) == ()
    untrue = untrue_attributes("“Casablanca” has the genres Love, Peace.", "c", CATALOG)
    assert untrue == ("genres: Love", "genres: Peace")


def test_the_gold_explanations_are_true_in_every_phrasing() -> None:
    parts = tiny_parts()
    renderer = Renderer(parts.tokenizer, parts.table, TemplateSet.load(recipes.folder("prompts")))
    catalog = parts.catalog
    titles = {item_id: catalog.title(item_id) for item_id in catalog.item_ids}
    sequences = [["1", "7", "13"], ["2", "8", "3", "14"], ["5", "11"]]
    seen = set()
    for example in Explain(per_user=2).examples(catalog, sequences, 0).rows:
        for seed in range(6):
            row = renderer.render(example, phrasing_seed=seed)
            item = example.values["item"][0]
            answer = renderer.reader.parts(row.input_ids[row.target])
            found = read_explanation(answer, item, example.values["history"], titles, finished=True, catalog=catalog)
            assert found.untrue_attributes == (), found.text
            assert found.named_outside_history == ()
            lie = read_explanation(answer, "6", example.values["history"], titles, finished=True, catalog=catalog)
            assert lie.untrue_attributes
            assert lie.named_outside_history == (item,)
            seen.add(row.text)
    assert len(seen) > 3


def test_items_that_were_never_chosen_are_named() -> None:
    titles = {"a": "Alien", "b": "Blade Runner", "c": "Casablanca"}
    parts = [Part("You chose "), Part("<a_1>", True, ("b",)), Part(' and "alien" and "Casablanca".')]
    found = read_explanation(parts, "c", ["a"], titles, finished=True)
    assert found.named_outside_history == ("b",)
    assert read_explanation(parts, "c", [], titles, finished=True).named_outside_history == ("b", "a")
