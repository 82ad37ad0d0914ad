"""What codes mean: lifts against brute force and by chance, pairs that were left out, prefixes in words."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmrec.data.interactions import Interactions
from llmrec.data.split import Split, leave_one_out
from llmrec.sid_vocab.health import category_lift, measure_meaning, prefix_lift, valid_pairs
from llmrec.sid_vocab.page import render_page
from llmrec.sid_vocab.report import as_plain, health_report
from llmrec.sid_vocab.table import SIDTable
from llmrec.testing.checkpoints import tiny_catalog
from llmrec.testing.worlds import tiny_events


def split_of(rows: list[tuple[str, str, int]]) -> Split:
    return leave_one_out(Interactions(pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")))


@given(
    codes=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 1)), min_size=6, max_size=12),
    data=st.data(),
)
def test_prefix_lift_is_that_of_every_possible_replacement(codes: list[tuple[int, int]], data: st.DataObject) -> None:
    number = len(codes)
    row = st.integers(0, number - 1)
    pairs = data.draw(st.lists(st.tuples(row, row).filter(lambda pair: pair[0] != pair[1]), min_size=1, max_size=15))
    popularity = data.draw(st.lists(st.integers(0, 9), min_size=number, max_size=number))
    bins = [0 if count == 0 else count.bit_length() for count in popularity]
    lifts = prefix_lift(np.array(codes), np.array(pairs), np.array(popularity))
    assert [lift.what for lift in lifts] == ["a", "ab"]
    for level, lift in enumerate(lifts, start=1):
        chances = []
        for one, other in pairs:
            others = [item for item in range(number) if bins[item] == bins[other] and item != one]
            chances.append(np.mean([codes[item][:level] == codes[one][:level] for item in others]))
        assert lift.pairs == len(pairs)
        assert lift.observed == pytest.approx(np.mean([codes[a][:level] == codes[b][:level] for a, b in pairs]))
        assert lift.expected == pytest.approx(np.mean(chances))
        spread = np.sqrt(sum(chance * (1 - chance) for chance in chances)) / len(pairs)
        if spread > 1e-9:
            assert lift.z == pytest.approx((lift.observed - lift.expected) / spread)


def test_codes_at_random_have_no_lift_and_codes_by_genre_have_one() -> None:
    rng = np.random.default_rng(0)
    genres = rng.integers(0, 6, 200)  # users stay with their genre and take any of its 100 items
    rows = [
        (str(user), str(genre + 6 * int(rng.integers(0, 100))), time)
        for user, genre in enumerate(genres)
        for time in range(6)
    ]
    split = split_of(rows)
    pairs, counts = valid_pairs(split, np.arange(len(split.items)))
    assert counts.used == len(pairs) > 150
    by_genre = np.array([[int(item) % 6] for item in split.items])
    lift = prefix_lift(by_genre, pairs, split.train_counts())[0]
    assert lift.observed == 1
    assert lift.lift == pytest.approx(6, rel=0.15)
    assert lift.z is not None
    assert lift.z > 20
    scores = [
        prefix_lift(np.random.default_rng(seed).integers(0, 6, by_genre.shape), pairs, split.train_counts())[0].z
        for seed in range(30)
    ]
    assert abs(float(np.mean([score for score in scores if score is not None]))) < 0.6


def test_pairs_leave_out_what_train_knows_and_are_counted() -> None:
    walks = {"1": "abcd", "2": "xyab", "3": "bcda", "4": "eefg", "5": "pqrs", "6": "uvwt", "7": "bato"}
    rows = [(user, item, time) for user, walk in walks.items() for time, item in enumerate(walk)]
    split = split_of(rows)
    known = np.array([row if item != "w" else -1 for row, item in enumerate(split.items)])
    pairs, counts = valid_pairs(split, known)
    # Train keeps two of each; second and third are bc ya cd ef qr vw at. User 3 has bc in train, w has no SID.
    shown = {split.items[one] + split.items[other] for one, other in pairs}
    assert shown == {"ya", "cd", "ef", "qr", "at"}
    assert (counts.users, counts.used, counts.in_train, counts.repeats, counts.without_sid) == (7, 5, 1, 0, 1)
    repeated = split_of([("1", item, time) for time, item in enumerate("abbc")] + rows[4:8])
    assert valid_pairs(repeated, np.arange(len(repeated.items)))[1].repeats == 1


def test_category_lift_agrees_with_all_pairs() -> None:
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 3, (40, 2))
    values = [{"x"} if rng.random() < 0.2 + 0.3 * code else {"y", "z"} for code in codes[:, 0]]
    values[5] = set()
    known = [row for row in range(40) if values[row]]

    def exact(level: int) -> float:
        pairs = [p for p in combinations(known, 2) if (codes[p[0], :level] == codes[p[1], :level]).all()]
        return float(np.mean([bool(values[one] & values[other]) for one, other in pairs]))

    lifts = category_lift(codes, values, "kind")
    assert [lift.what for lift in lifts] == ["kind a", "kind ab"]
    for level, lift in enumerate(lifts, start=1):
        assert lift.expected == pytest.approx(exact(0), abs=0.015)
        assert lift.observed == pytest.approx(exact(level), abs=0.015)
    assert category_lift(codes, [set()] * 40, "kind") == []
    assert category_lift(np.arange(40)[:, None], values, "kind") == []  # nobody has a prefix in common


def test_a_prefix_is_explained_by_titles_and_by_what_is_frequent_below_it() -> None:
    catalog, split = tiny_catalog(), split_of(tiny_events(200))
    codes = np.array([[row % 6, row // 6] for row in range(60)])
    table = SIDTable(catalog.item_ids, codes, (6, 10))
    found = measure_meaning(table, split, catalog, prefixes=[(3,), (3, 2)])
    genre, item = found.prefixes
    assert (genre.tokens, genre.num_items, len(genre.titles)) == ("<a_3>", 10, 8)
    assert genre.typical == ("genres Western: 100% (all items 17%)",)
    counts = dict(zip(split.items, split.train_counts().tolist(), strict=True))
    best = max((item_id for item_id in catalog.item_ids if int(item_id) % 6 == 4), key=lambda one: counts.get(one, 0))
    assert genre.titles[0] == catalog.title(best)
    assert (item.tokens, item.titles) == ("<a_3><b_2>", (catalog.title("16"),))
    genres = next(lift for lift in found.category_lift if lift.what == "genres a")
    assert genres.observed == 1
    assert genres.expected == pytest.approx(9 / 59, abs=0.01)
    assert [one.num_items for one in measure_meaning(table, split, catalog, examples=2).prefixes] == [10, 10]


def test_the_page_escapes_titles_and_draws(tmp_path) -> None:
    catalog, split = tiny_catalog(), split_of(tiny_events(100))
    hostile = catalog.frame.with_columns(pl.lit("<script>alert(1)</script>").alias("title"))
    catalog = type(catalog)(hostile, catalog.text_fields, catalog.attributes)
    table = SIDTable(catalog.item_ids, np.array([[row % 6, row % 4] for row in range(60)]), (6, 5))
    health = health_report(table, [catalog.title(one) for one in catalog.item_ids], popularity=np.arange(60) % 3)
    assert health.cold is not None
    assert (health.cold.items, health.cold.reconstruction_error) == (20, None)
    page = render_page(table, health.as_dict(), as_plain(measure_meaning(table, split, catalog)), title="T & <b>")
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert "T &amp; &lt;b&gt;" in page
    assert page.count("<svg") == 1
