"""Random, popular and same-prefix negatives: who can be drawn, how often, and that draws are a row's own."""

import dataclasses
from collections import Counter

import numpy as np
import pytest

from llmrec.errors import InputError
from llmrec.train.preference.config import PopularNegatives, RandomNegatives, SamePrefixNegatives
from llmrec.train.preference.contexts import Context, Drops
from llmrec.train.preference.negatives import Drawn, SamePrefix, popular_source, random_source
from tests.train.preference.conftest import contexts_of, table_of

CONTEXT = Context("u:2", "u", 2, ("a", "b"), "c", ("d",))


def picked(source, context=CONTEXT, taken=(), drops=None):
    return [one.item_id for one in source.pick(context, set(taken), drops or Drops())]


def test_random_never_gives_what_the_user_met_or_another_source_took():
    source = random_source(RandomNegatives(count=20), table_of("abcdefghij"), 0)
    drops = Drops()
    assert sorted(picked(source, taken="e", drops=drops)) == list("fghij")
    assert drops.missing == {"random": 15}


def test_a_rows_draws_are_its_own():
    table = table_of("abcdefghijklmnopqrst")
    one, other = (dataclasses.replace(CONTEXT, row_id=f"u:{place}") for place in (3, 4))
    source = random_source(RandomNegatives(count=4), table, 0)
    first = picked(source, one)
    assert picked(source, other) != first
    assert picked(source, one) == first == picked(random_source(RandomNegatives(count=4), table, 0), one)
    assert picked(random_source(RandomNegatives(count=4), table, 1), one) != first


def test_draws_follow_the_weights():
    """Two of four items: against the successive draws written out."""
    weights = np.array([1.0, 2.0, 3.0, 4.0, 0.0])
    source = Drawn("popular", tuple("wxyzn"), weights, 2, 0)
    pairs = Counter(tuple(picked(source, dataclasses.replace(CONTEXT, row_id=str(i)))) for i in range(4000))
    for (first, second), count in pairs.items():
        p, q = weights["wxyz".index(first)] / 10, weights["wxyz".index(second)] / 10
        expected = p * q / (1 - p)
        assert abs(count / 4000 - expected) < 4 * np.sqrt(expected / 4000)
    assert len(pairs) == 12


def test_draws_end_where_nearly_all_weight_is_barred():
    source = Drawn("popular", ("a", "x", "y", "z"), np.array([1e12, 1.0, 1.0, 1.0]), 3, 0)
    assert sorted(picked(source)) == ["x", "y", "z"]


def test_popularity_is_counted_in_train_alone(shop):
    table = table_of("abcdefghij")
    before = shop({"u": "abcde", "v": "afghi", "w": "bajhi"})
    after = shop({"u": "abcee", "v": "afgjd", "w": "bajji"})  # only the last two events differ
    for exponent in (1.0, 0.5):
        config = PopularNegatives(count=4, exponent=exponent)
        one, two = (popular_source(config, table, dataset.split, 0) for dataset in (before, after))
        assert dict(zip(one.item_ids, one.weights, strict=True)) == dict(zip(two.item_ids, two.weights, strict=True))
        assert one.weights[one.row_of["a"]] == 3**exponent
        assert "h" not in one.row_of  # met as a target only


def test_same_prefix_shares_the_first_codes_and_retired_items_are_never_drawn():
    table = table_of("abcdefghi")  # abc, def, ghi share their first code
    retired = dataclasses.replace(table, status=np.array([0, 1, 0, 0, 0, 0, 0, 0, 0]))
    context = Context("u:1", "u", 1, ("g",), "a", ("d",))
    drops = Drops()
    source = SamePrefix(SamePrefixNegatives(count=2), table, 0)
    assert sorted(picked(source, context)) == ["b", "c"]
    assert picked(SamePrefix(SamePrefixNegatives(count=2), retired, 0), context, drops=drops) == ["c"]
    assert drops.missing == {"same_prefix": 1}
    assert "b" not in random_source(RandomNegatives(), retired, 0).item_ids


def test_a_prefix_of_all_levels_is_refused():
    with pytest.raises(InputError, match="the SIDs have 2 levels"):
        SamePrefix(SamePrefixNegatives(levels=2), table_of("abcdef"), 0)


def test_contexts_and_sources_go_together(shop):
    dataset = shop({"u": "abcdefg", "v": "bcdhia"})
    table = table_of("abcdefghi")
    source = random_source(RandomNegatives(count=2), table, 0)
    for context in contexts_of(dataset, table):
        assert set(picked(source, context)).isdisjoint({*context.history, context.chosen, *context.later})
