"""index.json of LC-Rec and MiniOneRec: round trip, and every kind of mistake."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmrec.errors import DataError, InputError
from llmrec.sid_vocab.index_json import GivenSIDs, IndexConfig, read_index_json, to_index_json
from llmrec.sid_vocab.table import SIDTable


def read(folder: Path, content: object, ids: list[str], **settings_: object) -> GivenSIDs:
    path = folder / "index.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return read_index_json(IndexConfig(path=str(path), **settings_), ids)


@given(codes=st.lists(st.tuples(st.integers(0, 300), st.integers(0, 5), st.integers(0, 9)), min_size=1, max_size=20))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_round_trip(codes: list[tuple[int, int, int]], tmp_path: Path) -> None:
    ids = [f"é{row}" for row in range(len(codes))]
    table = SIDTable(item_ids=tuple(ids), codes=np.array(codes), codebook_sizes=(301, 6, 10))
    to_index_json(table, tmp_path / "index.json")
    given_ = read_index_json(IndexConfig(path=str(tmp_path / "index.json")), ids[::-1])
    np.testing.assert_array_equal(given_.codes[::-1], codes)
    assert given_.codebook_sizes == tuple(np.max(codes, axis=0) + 1)
    assert given_.notes == ()


def test_retired_items_are_not_written(tmp_path: Path) -> None:
    table = SIDTable(item_ids=("a", "b"), codes=np.array([[0], [1]]), codebook_sizes=(2,), status=np.array([1, 0]))
    to_index_json(table, tmp_path / "index.json")
    assert json.loads((tmp_path / "index.json").read_text()) == {"b": ["<a_1>"]}


def test_other_items_are_counted_and_sizes_may_be_stated(tmp_path: Path) -> None:
    found = read(tmp_path, {"0": ["<a_1>", "<b_0>"], "1": ["<a_9>", "<b_0>"]}, ["0"], codebook_sizes=[4, 4])
    assert found.codes.tolist() == [[1, 0]]
    assert found.codebook_sizes == (4, 4)
    assert found.notes == ("1 SIDs of items that the catalogue lacks were left out",)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"0": ["<a_1>"], "1": ["<a_1>", "<b_1>"]}, "differ in length: 1 items with 1, 1 items with 2"),
        ({"0": ["<a_1>"]}, "1 of 2 catalogue items have no SID, first: '1'"),
        ({"0": ["<a_1>", "<c_1>"], "1": ["<a_1>", "<b_1>"]}, "item '0'"),
        ({"0": ["<a_1>", 3], "1": ["<a_1>", "<b_01>"]}, "item '1'"),
        ({"0": ["<a_1>"], "1": "<a_1>"}, "no list of tokens, first: '1'"),
        ({"0": ["<a_1>"] * 27, "1": ["<a_1>"] * 27}, "at most 26"),
    ],
)
def test_content_errors(tmp_path: Path, content: dict, words: str) -> None:
    with pytest.raises(DataError) as caught:
        read(tmp_path, content, ["0", "1"])
    assert words in str(caught.value)


def test_many_wrong_items_are_counted(tmp_path: Path) -> None:
    ids = [str(row) for row in range(9)]
    with pytest.raises(DataError, match="and 4 more items like these"):
        read(tmp_path, {item_id: ["12"] for item_id in ids}, ids)


def test_stated_sizes_that_are_too_small(tmp_path: Path) -> None:
    for sizes in ([1, 1], [2]):
        with pytest.raises(DataError, match="the file needs at least"):
            read(tmp_path, {"0": ["<a_1>", "<b_0>"]}, ["0"], codebook_sizes=sizes)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "must map item ids"),
        ("{}", "must map item ids"),
        ('{"0": ["<a_1>"], "0": ["<a_2>"]}', "gives 1 items two SIDs, first: '0'"),
    ],
)
def test_files_that_are_no_index(tmp_path: Path, content: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        read(tmp_path, content, ["0"])
    with pytest.raises(InputError, match="cannot be read"):
        read_index_json(IndexConfig(path=str(tmp_path / "missing.json")), ["0"])
