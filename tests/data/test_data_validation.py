"""Each mistake is named with its file and line, and all of them come together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from llmrec.data.config import DataConfig
from llmrec.data.dataset import Dataset, read_data
from llmrec.errors import DataError
from llmrec.testing.worlds import write_tiny_folder

HEADER = "user_id,item_id,timestamp\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_tiny_folder(tmp_path / "shop")


def read(folder: Path, **settings: Any) -> Dataset:
    return read_data(DataConfig(path=str(folder), **settings))


def problems(folder: Path, **settings: Any) -> list[str]:
    with pytest.raises(DataError) as caught:
        read(folder, **settings)
    assert caught.value.exit_code == 2
    return list(caught.value.problems)


def events(folder: Path, text: str | bytes) -> None:
    (folder / "interactions.csv").write_bytes(text if isinstance(text, bytes) else text.encode())


def items(folder: Path, *records: Any) -> None:
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    (folder / "items.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def test_wrong_column_name_suggests_the_near_one(folder: Path) -> None:
    events(folder, "userId,item_id,time_stamp\n1,1,1\n")
    assert problems(folder) == [
        "interactions.csv:1: no column 'user_id'; did you mean 'userId'? (set data.columns.user_id)",
        "interactions.csv:1: no column 'timestamp'; did you mean 'time_stamp'? (set data.columns.timestamp)",
    ]
    events(folder, "x,item_id,timestamp\n1,1,1\n")
    assert problems(folder) == [
        "interactions.csv:1: no column 'user_id'; there are: x, item_id, timestamp (set data.columns.user_id)"
    ]


def test_wrong_item_columns(folder: Path) -> None:
    (found,) = problems(folder, attributes=("genre",))
    assert "items.jsonl:1: no column 'genre'; did you mean 'genres'?" in found
    assert "data.attributes" in found
    (found,) = problems(folder, columns={"event": "action"})
    assert "no column 'action'" in found


def test_unparsable_times(folder: Path) -> None:
    events(folder, HEADER + "1,1,10\n1,2,yesterday\n1,3,12\n1,4,\n1,5,nan\n1,6,13\n1,7,14\n")
    assert problems(folder) == [
        "interactions.csv:3: timestamp 'yesterday' is not a number, nor an ISO date and time",
        "interactions.csv:5: timestamp is empty",
        "interactions.csv:6: timestamp 'nan' is not a number, nor an ISO date and time",
    ]
    events(folder, HEADER + "1,1,2024-01-01\n1,2,2024-13-01\n1,3,2024-01-03\n")
    assert problems(folder) == ["interactions.csv:3: timestamp '2024-13-01' is not a number, nor an ISO date and time"]


def test_bad_weight_and_empty_ids(folder: Path) -> None:
    events(folder, "user_id,item_id,timestamp,weight\n1,1,1,heavy\n,2,2,1\n1,,3,1\n")
    assert problems(folder) == [
        "interactions.csv:3: user_id is empty",
        "interactions.csv:4: item_id is empty",
        "interactions.csv:2: weight 'heavy' is not a number",
    ]


def test_lines_count_blank_and_quoted_ones(folder: Path) -> None:
    events(folder, HEADER + '"a\nb",1,1\n\n1,2,2\n1,3,soon\n')
    assert problems(folder) == ["interactions.csv:6: timestamp 'soon' is not a number, nor an ISO date and time"]
    events(folder, HEADER + '"a\nb",1,1\n\n1,2,2\n1,3,4\n1,4,5\n\n')
    assert read(folder).report.blank_lines == 2


def test_lines_of_the_wrong_length(folder: Path) -> None:
    events(folder, HEADER + "1,1,1\n1,2,2,3\n\n1,3,soon\n1,4\n1,5,5\n1,6,6\n")
    assert problems(folder) == [
        "interactions.csv:3: 4 values where the header has 3 columns",
        "interactions.csv:6: 2 values where the header has 3 columns",
        "interactions.csv:5: timestamp 'soon' is not a number, nor an ISO date and time",
    ]


def test_a_quote_that_never_closes(folder: Path) -> None:
    events(folder, HEADER + '1,1,1\n1,"2,2\n1,3,3\n')
    assert any(line.startswith("interactions.csv:3: ") for line in problems(folder))


def test_repeated_columns(folder: Path) -> None:
    events(folder, "user_id,item_id,timestamp,item_id\n1,1,1,1\n")
    assert problems(folder)[0] == "interactions.csv:1: the columns item_id appear more than once"


def test_undecodable_bytes(folder: Path) -> None:
    events(folder, HEADER.encode() + b"1,1,1\n1,caf\xe9,2\n1,3,3\n")
    assert problems(folder) == [
        "interactions.csv:3: byte 0xe9 at position 6 is not UTF-8; save the file as UTF-8",
    ]
    content = (folder / "items.jsonl").read_bytes()
    (folder / "items.jsonl").write_bytes(content.replace(b"Golden River", b"Gold\xff River"))
    assert len(problems(folder)) == 2


def test_items(folder: Path) -> None:
    items(
        folder,
        {"item_id": "1", "title": "One", "about": "x"},
        {"item_id": "2", "title": " ", "about": None},
        '{"item_id": "3", "title": ',
        ["4", "Four"],
        {"title": "Five"},
        {"item_id": "1", "title": "Again"},
    )
    found = problems(folder)
    assert found[0].startswith("items.jsonl:3: not JSON (")
    assert found[1:] == [
        "items.jsonl:4: a JSON list, not an object",
        "items.jsonl:5: item_id is empty",
        "items.jsonl:6: item_id '1' again, first at items.jsonl:1",
        "items.jsonl:2: item '2' has no text in title or about",
    ]


def test_parquet_names_rows(folder: Path) -> None:
    (folder / "items.jsonl").unlink()
    frame = pl.DataFrame({"item_id": ["1", "1"], "title": ["a", None], "raw": [b"x", b"y"]})
    frame.write_parquet(folder / "items.parquet")
    assert problems(folder) == [
        "items.parquet row 2: item_id '1' again, first at items.parquet row 1",
        "items.parquet row 2: item '1' has no text in title",
    ]
    assert "'raw' is Binary" in problems(folder, attributes=("raw",))[0]
    (folder / "items.parquet").write_bytes(b"no parquet")
    assert problems(folder)[0].startswith("items.parquet: not a Parquet file")


def test_empty_and_missing_files(folder: Path) -> None:
    events(folder, HEADER)
    (folder / "items.jsonl").write_text("", encoding="utf-8")
    assert problems(folder) == ["interactions.csv: no rows", "items.jsonl: no items"]
    events(folder, "")
    assert "no column 'user_id'; there are: nothing" in problems(folder)[0]
    (folder / "items.jsonl").unlink()
    (folder / "interactions.csv").rename(folder / "interactions.csv.gz")
    (folder / "interactions.csv.gz").write_bytes(b"plain text")
    first, second = problems(folder)
    assert first.startswith("interactions.csv.gz: damaged or incomplete")
    assert second.endswith("no items (items.jsonl or items.parquet or items.csv or items.jsonl.gz or items.csv.gz)")


def test_two_files_for_one_table(folder: Path) -> None:
    (folder / "interactions.parquet").write_bytes(b"")
    (found,) = problems(folder)
    assert found.endswith("interactions in several files: interactions.csv, interactions.parquet; keep one")


def test_column_clash(folder: Path) -> None:
    events(folder, "user_id,visitor,item_id,timestamp\n1,2,1,1\n")
    (found,) = problems(folder, columns={"user_id": "visitor"})
    assert found == "interactions.csv:1: user_id: the recipe takes another column for this name"
    (folder / "items.jsonl").write_text('{"item_id": "1", "title": "a", "name": "b"}\n', encoding="utf-8")
    assert any(line.startswith("items.jsonl:1: title:") for line in problems(folder, columns={"title": "name"}))


def test_everything_at_once_and_counted(folder: Path) -> None:
    events(folder, HEADER + "".join(f"1,{i},{i}\n" for i in range(60)) + "".join(f"1,{i},x\n" for i in range(50)))
    items(folder, *({"item_id": str(i), "title": ""} for i in range(30)), {"item_id": "0", "title": "a"})
    with pytest.raises(DataError) as caught:
        read(folder)
    text = str(caught.value)
    assert text.startswith("The data set shop (")
    assert "has 81 problems:" in text
    assert "and 30 more: unparsable time" in text
    assert "and 10 more: items without any text" in text
    assert "interactions.csv:62: " in text
    assert "items.jsonl:31: item_id '0' again, first at items.jsonl:1" in text
    assert len(text.splitlines()) == 1 + 21 + 1 + 21


def test_no_user_with_three_events_and_no_known_item(folder: Path) -> None:
    events(folder, HEADER + "1,a,1\n1,b,2\n2,c,3\n")
    first, second = problems(folder)
    assert first == "interactions.csv: none of 2 users has 3 events"
    assert second.endswith("no event has an item of the catalogue (events: a, b; items: 1, 2 and 58 more)")


def test_warnings_are_counted_and_nothing_is_dropped(folder: Path) -> None:
    events(folder, HEADER + "1,1,1\n1,ghost,2\n1,ghost,3\n1,spook,4\n2,2,1\n2,1,1\n")
    items(folder, {"item_id": "1", "title": "", "about": "Text"}, {"item_id": "2", "title": "Two", "about": ""})
    dataset = read(folder)
    assert dataset.interactions.num_events == 6
    assert dataset.split.items == ("1", "ghost", "spook")
    assert dataset.report.warnings() == [
        "1 of 2 users with fewer than 3 events take no part (2 events)",
        "3 interactions with 2 items that the catalogue lacks: kept in the data, but such items cannot be recommended",
        "1 item without a title: the first other text stands in",
    ]
    assert [line.partition(":")[0] for line in dataset.report.lines()[1:]] == ["warning"] * 3
