"""SIDTable: construction checks, tokens and text, both fingerprints, files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmrec.errors import DataError, InputError, MismatchError
from llmrec.sid_vocab.table import SIDTable

IDS = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=6)


def small_table(**changes: object) -> SIDTable:
    parts: dict = {
        "item_ids": ("7", "x", "é"),
        "codes": np.array([[0, 1, 0], [2, 0, 0], [0, 1, 1]]),
        "codebook_sizes": (3, 2, 2),
        "has_suffix": True,
        "token_ids": (np.arange(10, 13), np.arange(20, 22), np.arange(30, 32)),
        "codebooks": (np.eye(3, 4, dtype=np.float32), np.ones((2, 4), np.float32)),
    }
    return SIDTable(**{**parts, **changes})


@st.composite
def tables(draw: st.DrawFn) -> SIDTable:
    ids = draw(st.lists(IDS, min_size=1, max_size=12, unique=True))
    sizes = draw(st.lists(st.integers(1, 9), min_size=2, max_size=5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    ends = np.cumsum(sizes)[:-1]
    has_suffix = draw(st.booleans())
    return SIDTable(
        item_ids=tuple(ids),
        codes=rng.integers(0, sizes, (len(ids), len(sizes))),
        codebook_sizes=tuple(sizes),
        has_suffix=has_suffix,
        status=rng.integers(0, 2, len(ids)),
        token_ids=tuple(np.split(rng.permutation(sum(sizes)) + 5, ends)) if draw(st.booleans()) else None,
        codebooks=tuple(rng.normal(size=(n, 3)) for n in sizes[: len(sizes) - has_suffix])
        if draw(st.booleans())
        else (),
        parent=draw(st.none() | st.just("f" * 64)),
    )


@given(table=tables())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_round_trip(table: SIDTable, tmp_path: Path) -> None:
    table.save(tmp_path)
    loaded = SIDTable.load(tmp_path)
    assert loaded.item_ids == table.item_ids
    assert loaded.codebook_sizes == table.codebook_sizes
    assert (loaded.has_suffix, loaded.parent) == (table.has_suffix, table.parent)
    np.testing.assert_array_equal(loaded.codes, table.codes)
    np.testing.assert_array_equal(loaded.status, table.status)
    assert (loaded.token_ids is None) == (table.token_ids is None)
    for ours, theirs in zip(loaded.codebooks, table.codebooks, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert loaded.vocabulary_fingerprint == table.vocabulary_fingerprint
    assert loaded.rows_fingerprint == table.rows_fingerprint


@given(table=tables())
@settings(max_examples=60, deadline=None)
def test_tokens_parse_and_buckets_agree(table: SIDTable) -> None:
    text = "noise <a_0> " + " and ".join(table.text(item_id) for item_id in table.item_ids)
    assert table.parse(text) == [tuple(row) for row in table.codes.tolist()]
    assert sorted(np.concatenate(list(table.buckets().values())).tolist()) == list(range(table.num_items))
    for sid, rows in table.buckets().items():
        assert (np.diff(rows) > 0).all()
        assert all(tuple(table.codes[row].tolist()) == sid for row in rows)
    for row, item_id in enumerate(table.item_ids):
        assert table.row(item_id) == row
        assert table.tokens(item_id) == tuple(table.token(i, code) for i, code in enumerate(table.codes[row].tolist()))


@given(table=tables(), data=st.data())
@settings(max_examples=60, deadline=None)
def test_only_the_right_fingerprint_changes(table: SIDTable, data: st.DataObject) -> None:
    row = data.draw(st.integers(0, table.num_items - 1))
    level = data.draw(st.integers(0, table.num_levels - 1))
    grown = tuple(size + (i == level) for i, size in enumerate(table.codebook_sizes))
    codes, status = table.codes.copy(), 1 - table.status
    codes[row, level] = table.codebook_sizes[level]
    bigger = replace(table, codebook_sizes=grown, token_ids=None, codebooks=())
    renamed = tuple("a name longer than six" if i == row else item_id for i, item_id in enumerate(table.item_ids))
    for changed in (replace(table, item_ids=renamed), replace(table, status=status)):
        assert changed.rows_fingerprint != table.rows_fingerprint
        assert changed.vocabulary_fingerprint == table.vocabulary_fingerprint
    recoded = replace(bigger, codes=codes)
    assert recoded.rows_fingerprint != bigger.rows_fingerprint
    assert recoded.vocabulary_fingerprint == bigger.vocabulary_fingerprint
    vocabularies = [bigger, replace(table, has_suffix=not table.has_suffix, codebooks=())]
    if table.token_ids:
        vocabularies.append(table.with_token_ids([ids + (i == level) * 1000 for i, ids in enumerate(table.token_ids)]))
    if table.codebooks:
        vocabularies.append(replace(table, codebooks=(table.codebooks[0] + 1e-3, *table.codebooks[1:])))
    for changed in vocabularies:
        assert changed.vocabulary_fingerprint != table.vocabulary_fingerprint
        assert changed.rows_fingerprint == table.rows_fingerprint
        with pytest.raises(MismatchError) as caught:
            table.require_same_vocabulary(changed)
        assert table.vocabulary_fingerprint in str(caught.value)
        assert changed.vocabulary_fingerprint in str(caught.value)
    table.require_same_vocabulary(replace(table, item_ids=renamed))


def test_fingerprints_do_not_depend_on_the_machine_or_the_release() -> None:
    # A change here breaks every saved table: raise FORMAT_VERSION with it.
    table = small_table()
    assert table.vocabulary_fingerprint == "3c9d4c30c7ba4e240428b9c1d1c3635a07278171cdd1eb23013da3e624b9e22e"
    assert table.rows_fingerprint == "52534049bf41a619c86bfae1c534f09ff706f517c67b3ae3298813ce9fe6e282"


def test_item_ids_that_join_to_the_same_text_differ() -> None:
    parts = {"codes": np.zeros((2, 1), int), "codebook_sizes": (1,)}
    one, other = SIDTable(item_ids=("ab", "c"), **parts), SIDTable(item_ids=("a", "bc"), **parts)
    assert one.rows_fingerprint != other.rows_fingerprint


def test_arrays_are_read_only_copies() -> None:
    codes = np.array([[0, 1, 0], [2, 0, 0], [0, 1, 1]])
    table = small_table(codes=codes)
    codes[0, 0] = 2
    assert table.codes[0, 0] == 0
    assert table.codes.dtype == np.int32
    for array in (table.codes, table.status, *table.codebooks, *(table.token_ids or ())):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


def test_token_ids_of_items() -> None:
    table = small_table()
    assert table.sid_token_ids().tolist() == [[10, 21, 30], [12, 20, 30], [10, 21, 31]]
    assert table.num_tokens == 7
    with pytest.raises(InputError, match="no token ids yet"):
        small_table(token_ids=None).sid_token_ids()


@pytest.mark.parametrize(
    ("text", "sids"),
    [
        ("<a_2> <b_1> <c_0>", [(2, 1, 0)]),
        ("<a_0><b_1><b_1><c_1>", []),
        ("<a_0><b_1>", []),
        ("<a_3><b_1><c_0>", []),
        ("<a_01><b_1><c_0>", []),
        ("<a_0>\n<b_1><c_0>", []),
        ("x<a_0><b_1><c_0><c_1><a_2><b_0><c_1>.", [(0, 1, 0), (2, 0, 1)]),
    ],
)
def test_parse(text: str, sids: list[tuple[int, ...]]) -> None:
    assert small_table().parse(text) == sids


def test_unknown_item_and_token() -> None:
    with pytest.raises(InputError, match="'8' is not among the 3 items"):
        small_table().row("8")
    for level, code in ((0, 3), (3, 0), (0, -1)):
        with pytest.raises(InputError, match="outside the codebook sizes"):
            small_table().token(level, code)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"item_ids": ("7", "7", "é")}, "occur more than once: '7'"),
        ({"item_ids": ("7", "", "é")}, "non-empty text"),
        ({"item_ids": ("7", "\ud800", "é")}, "non-empty text"),
        ({"item_ids": ("7", "x")}, "codes must be integers of shape (2, 3)"),
        ({"item_ids": (), "codes": np.zeros((0, 3), int)}, "no items"),
        ({"codes": np.zeros((3, 3))}, "float64"),
        ({"codes": np.zeros((3, 2), int)}, "not int64 (3, 2)"),
        ({"codes": np.array([[0, 1, 0], [2, 0, 0], [3, -1, 1]])}, "outside 0..2, first 3 in row 2"),
        ({"codebook_sizes": (3, 2, 0)}, "codebook size of 0"),
        ({"codebook_sizes": (2,) * 27, "codes": np.zeros((3, 27), int)}, "26 levels, not 27"),
        ({"status": np.array([0, 1, 2])}, "not 2"),
        ({"status": np.array([0, 1])}, "shape (3,)"),
        ({"token_ids": (np.arange(3), np.arange(2))}, "one array per level"),
        ({"token_ids": (np.arange(3), np.arange(2), np.arange(5, 7))}, "two codes share a token"),
        ({"token_ids": (np.arange(3) - 1, np.arange(7, 9), np.arange(5, 7))}, "negative"),
        ({"token_ids": (np.zeros(3), np.zeros(2), np.zeros(2))}, "token ids must be integers"),
        ({"codebooks": (np.ones((3, 4)),)}, "one (codebook_size, dim) codebook per quantised level"),
        ({"codebooks": (np.ones((3, 4)), np.full((2, 4), np.nan))}, "level 1 must hold finite"),
    ],
)
def test_construction_errors(changes: dict, words: str) -> None:
    with pytest.raises(DataError) as caught:
        small_table(**changes)
    assert words in str(caught.value)


def test_all_problems_come_together() -> None:
    with pytest.raises(DataError) as caught:
        small_table(item_ids=("7", "7", "é"), codes=np.full((3, 3), 9), status=np.array([0, 1, 9]))
    assert len(caught.value.problems) == 5


def test_load_refuses_changed_content(tmp_path: Path) -> None:
    table = small_table()
    table.save(tmp_path)
    frame = pl.read_parquet(tmp_path / "sid_table.parquet")
    frame.with_columns(status=pl.lit(1, pl.UInt8)).write_parquet(tmp_path / "sid_table.parquet")
    with pytest.raises(MismatchError) as caught:
        SIDTable.load(tmp_path)
    assert table.rows_fingerprint in str(caught.value)
    assert replace(table, status=np.ones(3, int)).rows_fingerprint in str(caught.value)


def test_load_refuses_foreign_codebooks(tmp_path: Path) -> None:
    small_table().save(tmp_path / "one")
    other = small_table(codebooks=(np.zeros((3, 4), np.float32), np.ones((2, 4), np.float32)))
    other.save(tmp_path / "two")
    name = "codebooks/codebooks.safetensors"
    (tmp_path / "one" / name).write_bytes((tmp_path / "two" / name).read_bytes())
    with pytest.raises(MismatchError) as caught:
        SIDTable.load(tmp_path / "one")
    assert other.vocabulary_fingerprint in str(caught.value)
    assert small_table().vocabulary_fingerprint in str(caught.value)


def test_load_says_what_is_wrong_with_the_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no SID table"):
        SIDTable.load(tmp_path)
    for name, content, words in (
        ("codebooks/codebooks.safetensors", b"x", "cannot be read"),
        ("sid_table.parquet", b"x", "cannot be read"),
        ("sid_table.json", b"{", "cannot be read"),
        ("sid_table.json", b"{}", "not of SID table format"),
        ("sid_table.json", b'{"format_version": 2}', "lacks codebook_sizes"),
    ):
        small_table().save(tmp_path)
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=words):
            SIDTable.load(tmp_path)
    small_table().save(tmp_path)
    pl.DataFrame({"item_id": ["7"]}).write_parquet(tmp_path / "sid_table.parquet")
    with pytest.raises(InputError, match="has the columns"):
        SIDTable.load(tmp_path)
    assert json.loads((tmp_path / "sid_table.json").read_text())["num_items"] == 3
