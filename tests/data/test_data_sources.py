"""Every format gives the same world."""

from __future__ import annotations

import gzip
import json
import zipfile
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from llmrec.data.config import DataConfig
from llmrec.data.dataset import Dataset, read_data
from llmrec.data.movielens import GENRES_100K, natural_titles
from llmrec.errors import DataError
from llmrec.testing.worlds import tiny_events, tiny_items, write_tiny_folder

ATTRIBUTES = ("genres", "year")


def read(path: Path, **settings: Any) -> Dataset:
    return read_data(DataConfig(path=str(path), name="tiny", **settings))


@pytest.fixture
def plain(tmp_path: Path) -> Dataset:
    return read(write_tiny_folder(tmp_path / "plain"), attributes=ATTRIBUTES)


def test_plain_folder(plain: Dataset) -> None:
    assert plain.report.source == "folder"
    assert plain.catalog.text_fields == ("title",)
    assert plain.catalog.attribute_values("1") == {"genres": ("Drama",), "year": ("1950",)}
    assert plain.interactions.frame.rows() == tiny_events()
    assert plain.split.counts.users == 40


def test_formats_agree(plain: Dataset, tmp_path: Path) -> None:
    folder = write_tiny_folder(tmp_path / "other")
    text = (folder / "interactions.csv").read_bytes()
    (folder / "interactions.csv").unlink()
    (folder / "interactions.csv.gz").write_bytes(gzip.compress(b"\xef\xbb\xbf" + text.replace(b"\n", b"\r\n")))
    items = pl.read_ndjson(folder / "items.jsonl")
    (folder / "items.jsonl").unlink()
    items.with_columns(pl.col("item_id").cast(pl.Int32)).write_parquet(folder / "items.parquet")
    assert read(folder, attributes=ATTRIBUTES).fingerprint == plain.fingerprint

    (folder / "interactions.csv.gz").unlink()
    schema = ["user_id", "item_id", "timestamp"]
    events = pl.DataFrame(tiny_events(), schema=schema, orient="row")
    # Pandas turns whole-number ids into floats as soon as a column has gaps.
    events.with_columns(pl.col("user_id").cast(pl.Float64)).write_parquet(folder / "interactions.parquet")
    assert read(folder, attributes=ATTRIBUTES).fingerprint == plain.fingerprint

    archive = tmp_path / "packed.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        for path in folder.iterdir():
            packed.write(path, f"deep/{path.name}")
    assert read(archive, attributes=ATTRIBUTES).fingerprint == plain.fingerprint
    assert read(folder / "items.parquet", attributes=ATTRIBUTES).fingerprint == plain.fingerprint


def test_fingerprint_sees_content_and_order(plain: Dataset, tmp_path: Path) -> None:
    folder = write_tiny_folder(tmp_path / "changed")
    path = folder / "interactions.csv"
    original = path.read_text(encoding="utf-8")
    header, first, second, *rest = original.splitlines()
    variants = [
        "\n".join([header, second, first, *rest]),
        original + "40,1,99999\n",
        original.replace(f"{first}\n", f"{first}5\n", 1),
    ]
    prints = {plain.fingerprint}
    for variant in variants:
        path.write_text(variant, encoding="utf-8")
        prints.add(read(folder, attributes=ATTRIBUTES).fingerprint)
    path.write_text(original, encoding="utf-8")
    prints.add(read(folder, attributes=("genres",)).fingerprint)
    items = folder / "items.jsonl"
    items.write_text(items.read_text(encoding="utf-8").replace('["Comedy"]', '["Come", "dy"]'), encoding="utf-8")
    prints.add(read(folder, attributes=ATTRIBUTES).fingerprint)
    assert len(prints) == 6


def test_csv_items_quotes_events_weights_and_own_column_names(tmp_path: Path) -> None:
    (tmp_path / "interactions.csv").write_text(
        "visitor,sku,at,kind,weight,device\n"
        "u,1,2024-05-01T10:00:00Z,view,0.5,phone\n"
        "u,2,2024-05-01 09:00:00,buy,1,\n"
        "u,1,2024-04-30,view,2,web\n",
        encoding="utf-8",
    )
    (tmp_path / "items.csv").write_text(
        'sku,name,about,brand\n1,"Pen, ""blue""","two\nlines",Acme\n2,,A ruler,\n', encoding="utf-8"
    )
    columns = {"user_id": "visitor", "item_id": "sku", "timestamp": "at", "event": "kind", "title": "name"}
    dataset = read(tmp_path, columns=columns, text_fields=("name", "about"))
    frame = dataset.interactions.frame
    assert frame.columns == ["user_id", "item_id", "timestamp", "event", "weight", "device"]
    assert [dataset.split.items[i] for i in dataset.split.sequences[0]] == ["1", "2", "1"]
    assert frame["timestamp"][0] - frame["timestamp"][1] == 3_600_000_000
    assert frame["weight"].to_list() == [0.5, 1.0, 2.0]
    assert dataset.catalog.text("1") == 'Pen, "blue"\ntwo lines'
    assert dataset.catalog.title("2") == "A ruler"
    assert dataset.report.empty_titles == 1
    assert dataset.report.unused_columns == ("brand",)
    assert "item columns not used: brand" in "\n".join(dataset.report.lines())
    assert read(tmp_path, columns=columns).catalog.text_fields == ("title", "about", "brand")


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        (["1", "2", "3"], [1, 2, 3]),
        (["1.5", "2", "3e2"], [1.5, 2.0, 300.0]),
        (["2024-01-01T00:00:00.5+02:00", "2024-01-01T00:00:00Z", "2024-01-01"], [-7_199_500_000, 0, 0]),
    ],
)
def test_times(tmp_path: Path, times: list[str], expected: list[float]) -> None:
    folder = write_tiny_folder(tmp_path / "d", num_items=60)
    rows = "".join(f"u,{i + 1},{time}\n" for i, time in enumerate(times))
    (folder / "interactions.csv").write_text("user_id,item_id,timestamp\n" + rows, encoding="utf-8")
    found = read(folder).interactions.frame["timestamp"].to_list()
    start = 1_704_067_200_000_000 if "2024" in times[0] else 0
    assert [value - start for value in found] == expected


def test_parquet_times(tmp_path: Path) -> None:
    folder = write_tiny_folder(tmp_path / "d")
    (folder / "interactions.csv").unlink()
    schema = ["user_id", "item_id", "timestamp"]
    frame = pl.DataFrame(tiny_events(), schema=schema, orient="row")
    frame.with_columns(pl.from_epoch("timestamp", time_unit="s")).write_parquet(folder / "interactions.parquet")
    found = read(folder).interactions.frame["timestamp"]
    assert found.dtype == pl.Int64
    assert (found // 1_000_000).to_list() == frame["timestamp"].to_list()


# ----- MovieLens ------------------------------------------------------------------------------------------------------

MOVIES = [("1", "Net, The (1995)", ["Sci-Fi"]), ("2", "Café (1946)", ["Drama", "War"]), ("3", "unknown", [])]
RATINGS = [("7", "1", "3", "10"), ("7", "3", "4", "10"), ("7", "2", "5", "9"), ("8", "1", "1", "1")]


def check_movielens(dataset: Dataset) -> None:
    assert dataset.report.source == "movielens"
    assert [dataset.catalog.title(i) for i in "123"] == ["The Net", "Café", "unknown"]
    assert dataset.catalog.attribute_values("2") == {"genres": ("Drama", "War"), "year": ("1946",)}
    assert dataset.catalog.attribute_values("3") == {}
    assert [dataset.split.items[i] for i in dataset.split.sequences[0]] == ["2", "1", "3"]
    assert dataset.interactions.frame["rating"].to_list() == ["3", "4", "5", "1"]
    assert dataset.report.notes[0].startswith("1 title put")
    assert dataset.report.notes[1] == "1 movie without a year, 1 without a genre"
    assert dataset.report.warnings() == ["1 of 2 users with fewer than 3 events take no part (1 event)"]


def zipped(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def test_movielens_100k_zip(tmp_path: Path) -> None:
    def line(item: str, title: str, genres: list[str]) -> str:
        flags = ["1" if (genre in genres or (genre == "unknown" and not genres)) else "0" for genre in GENRES_100K]
        return "|".join([item, title, "01-Jan-1995", "", "http://x", *flags]) + "\n"

    items = "".join(line(*movie) for movie in MOVIES)
    files = {
        "ml-100k/u.data": "".join("\t".join(row) + "\n" for row in RATINGS).encode(),
        "ml-100k/u.item": items.encode("latin-1"),
        "__MACOSX/ml-100k/u.data": b"junk",
    }
    path = zipped(tmp_path / "ml-100k.zip", files)
    check_movielens(read(path))
    with zipfile.ZipFile(path) as archive:
        archive.extractall(tmp_path / "out")
    check_movielens(read(tmp_path / "out" / "ml-100k"))


@pytest.mark.parametrize("encoding", ["latin-1", "utf-8"])
def test_movielens_1m_zip(tmp_path: Path, encoding: str) -> None:
    items = "".join(f"{i}::{title}::{'|'.join(genres)}\n" for i, title, genres in MOVIES)
    files = {
        "ml-1m/ratings.dat": "".join("::".join(row) + "\n" for row in RATINGS).encode(),
        "ml-1m/movies.dat": items.encode(encoding),
    }
    check_movielens(read(zipped(tmp_path / "ml-1m.zip", files)))


def test_movielens_latest_zip(tmp_path: Path) -> None:
    items = "".join(f'{i},"{title}",{"|".join(genres) or "(no genres listed)"}\n' for i, title, genres in MOVIES)
    files = {
        "ml-latest/ratings.csv": (
            "userId,movieId,rating,timestamp\n" + "".join(",".join(r) + "\n" for r in RATINGS)
        ).encode(),
        "ml-latest/movies.csv": ("movieId,title,genres\n" + items).encode(),
    }
    check_movielens(read(zipped(tmp_path / "ml-latest.zip", files)))


def test_natural_titles() -> None:
    given = ["Tin Drum, The (Blechtrommel, Die)", "Star Maker, The (Uomo delle stelle, L')", "Paris, Texas", "A, B, An"]
    titles, moved = natural_titles(pl.Series(given))
    assert titles.to_list() == [
        "The Tin Drum (Die Blechtrommel)",
        "The Star Maker (L'Uomo delle stelle)",
        "Paris, Texas",
        "An A, B",
    ]
    assert moved == 3


# ----- RecBole --------------------------------------------------------------------------------------------------------


def write_recbole(folder: Path) -> Path:
    folder.mkdir()
    (folder / "toy.inter").write_text(
        "user_id:token\titem_id:token\trating:float\ttimestamp:float\n" + "".join("\t".join(r) + "\n" for r in RATINGS),
        encoding="utf-8",
    )
    (folder / "toy.item").write_text(
        "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\tprice:float\n"
        '1\t"Net", The\t1995\tSci-Fi\t1\n2\tCafé\t1946\tDrama War\t2\n3\tunkonwn\tunkonwn\tunknown\t3\n',
        encoding="utf-8",
    )
    return folder


def test_recbole(tmp_path: Path) -> None:
    dataset = read(write_recbole(tmp_path / "toy"))
    assert dataset.report.source == "recbole"
    assert dataset.catalog.attributes == ("genres", "year")
    assert dataset.catalog.text("1") == 'The "Net"\ngenres: Sci-Fi\nyear: 1995'
    assert dataset.catalog.text("3") == "unkonwn"
    assert dataset.catalog.attribute_values("2") == {"genres": ("Drama", "War"), "year": ("1946",)}
    assert dataset.report.notes[1:] == ("1 item with unknown genres", "1 item with unknown year")
    assert dataset.report.unused_columns == ("price",)
    assert [dataset.split.items[i] for i in dataset.split.sequences[0]] == ["2", "1", "3"]
    given = read(tmp_path / "toy", columns={"title": "movie_title"})
    assert given.catalog.title("1") == '"Net", The'


def test_recbole_needs_one_data_set(tmp_path: Path) -> None:
    folder = write_recbole(tmp_path / "toy")
    (folder / "other.inter").write_text("", encoding="utf-8")
    with pytest.raises(DataError, match=r"several data sets \(other, toy\)"):
        read(folder)
    (folder / "other.inter").unlink()
    (folder / "toy.item").unlink()
    with pytest.raises(DataError, match=r"no items \(toy\.item\)"):
        read(folder)


# ----- finding the data -----------------------------------------------------------------------------------------------


def test_environment_variables_in_paths(plain: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_DATA", str(tmp_path))
    dataset = read_data(DataConfig(path="$MY_DATA/plain", attributes=ATTRIBUTES))
    assert dataset.name == "plain"
    assert dataset.fingerprint == plain.fingerprint
    monkeypatch.delenv("MY_DATA")
    with pytest.raises(DataError, match="environment variable is not set"):
        read_data(DataConfig(path="$MY_DATA/plain"))


def test_what_is_not_a_data_set(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        read(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("x", encoding="utf-8")
    with pytest.raises(DataError, match=r"there is notes\.txt") as caught:
        read(tmp_path)
    assert "interactions.csv" in str(caught.value)
    (tmp_path / "bad.zip").write_bytes(b"PK nonsense")
    with pytest.raises(DataError, match="not a zip archive"):
        read(tmp_path / "bad.zip")
    write_tiny_folder(tmp_path)
    (tmp_path / "u.data").write_text("", encoding="utf-8")
    with pytest.raises(DataError, match="like folder and like movielens"):
        read(tmp_path)
    assert read(tmp_path, source="folder").report.events == len(tiny_events())


def test_json_values(tmp_path: Path) -> None:
    folder = write_tiny_folder(tmp_path / "d")
    items: list[dict[str, Any]] = tiny_items()
    items[0] |= {"item_id": 1, "genres": "Drama", "new": True, "price": 1.5, "about": float("nan")}
    items[1] |= {"genres": ["Comedy", None, 3], "about": "Funny", "extra": {"a": 1}}
    (folder / "items.jsonl").write_text("\n".join(["", *map(json.dumps, items)]), encoding="utf-8")
    dataset = read(folder, text_fields=("title", "about"), attributes=("genres", "new", "price"))
    assert dataset.catalog.attribute_values("1") == {"genres": ("Drama",), "new": ("true",), "price": ("1.5",)}
    assert dataset.catalog.attribute_values("2") == {"genres": ("Comedy", "3")}
    assert dataset.catalog.text("2").startswith("The Golden River\nFunny")
    assert dataset.report.blank_lines == 1
    with pytest.raises(DataError, match=r"items\.jsonl:3: 'extra' is an object"):
        read(folder, attributes=("extra",))
