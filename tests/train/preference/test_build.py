"""From recipe to rows: shared SIDs, several sources in one row, and what needs a model or leaves nothing."""

import types

import numpy as np
import pytest

from llmrec.errors import DataError, InputError
from llmrec.sid_vocab.table import SIDTable
from llmrec.train.preference.build import make_preferences


def with_table(items, codes):
    """All that a recipe without a model reads of a checkpoint."""
    return types.SimpleNamespace(table=SIDTable(tuple(items), np.array(codes)[:, None], (3,)))


def test_an_item_with_the_chosen_ones_sid_is_not_rejected(shop, recipe):
    dataset = shop({"u": "gagg"})  # a is chosen after g
    config = recipe(negatives={"random": {"count": 7}})
    made = make_preferences(config, dataset, with_table("abcdefghi", [0, 0, 0, 1, 1, 1, 2, 2, 2]))
    (row,) = made.rows
    assert sorted(row.rejected) == list("defhi")
    assert len(row.source) == len(row.weights) == len(row.scores) == 5
    assert made.drops.items == {"random: the chosen item's SID": 2}
    with pytest.raises(DataError, match="1 no rejected item is left"):
        make_preferences(config, dataset, with_table("abcg", [0, 0, 0, 1]))


def test_sources_fill_a_row_in_the_order_of_the_recipes_fields(tiny_dataset, checkpoint, recommender, recipe):
    negatives = {"beams": {"count": 2}, "same_prefix": {"count": 2}, "popular": {"count": 2}, "random": {"count": 2}}
    config = recipe(negatives=negatives, recent_events=None)
    made = make_preferences(config, tiny_dataset, checkpoint, recommender=recommender)
    order = ["random", "popular", "same_prefix", "beams"]
    for row in made.rows:
        assert list(row.source) == sorted(row.source, key=order.index)
        assert len(set(row.rejected)) == len(row.rejected)
        assert set(row.rejected).isdisjoint((*row.history, row.chosen))
        assert [score is not None for score in row.scores] == [source == "beams" for source in row.source]
    assert set(made.pairs_by_source) == set(order)


def test_a_row_does_not_depend_on_which_others_are_made(tiny_dataset, checkpoint, recommender, recipe):
    def rows(**settings):
        config = recipe(negatives={"random": {"count": 2}, "self_play": {"count": 2}}, **settings)
        made = make_preferences(config, tiny_dataset, checkpoint, recommender=recommender)
        return {row.row_id: (row.chosen, row.rejected) for row in made.rows}

    few, many = rows(users=5), rows(users=20, recent_events=3)
    assert few
    assert few.items() <= many.items()


def test_a_recipe_that_asks_a_model_needs_one(recipe, tiny_dataset, checkpoint):
    with pytest.raises(InputError, match="asks the model, and there is none"):
        make_preferences(recipe(negatives={"beams": {}}), tiny_dataset, checkpoint)


def test_no_row_at_all_says_why(recipe, tiny_dataset, checkpoint):
    config = recipe(negatives={"random": {}}, min_history=500)
    with pytest.raises(DataError, match="40 users with too few train events"):
        make_preferences(config, tiny_dataset, checkpoint)
