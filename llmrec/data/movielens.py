"""MovieLens as GroupLens publishes it, unpacked or zipped: 100K, 1M (and 10M), and the ``ml-latest`` family.

- 100K: ``u.data`` (tabs) and ``u.item`` (``|``, Latin-1, genres as 0/1 flags);
- 1M, 10M: ``ratings.dat`` and ``movies.dat`` (``::``; Latin-1 in 1M, UTF-8 in 10M);
- latest, 20M, 25M, 32M: ``ratings.csv`` and ``movies.csv`` (UTF-8).

Titles carry the year and put the article last ("Net, The (1995)"). The year becomes an attribute and the article goes
back to the front ("The Net"), the form in which language models know the films. Ratings stay as a context column:
every row is a positive event.
"""

from __future__ import annotations

import polars as pl

from llmrec.data.config import DataConfig
from llmrec.data.files import Files
from llmrec.data.problems import Problems, counted
from llmrec.data.source import RawData
from llmrec.data.tables import Table, read_delimited

GENRES_100K = (
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy",
    "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
)  # fmt: skip
_EVENTS = ("user_id", "item_id", "rating", "timestamp")
_CSV_NAMES = {"userId": "user_id", "movieId": "item_id"}
_NO_GENRE = ("unknown", "(no genres listed)", "")
_ARTICLES = "The|A|An|Les|La|Le|Il|Lo|El|Los|Las|Der|Die|Das|Det|Den|Un|Une"


def detect(files: Files) -> bool:
    """Whether `files` looks like one of GroupLens' data sets."""
    return any(files.find(name) for name in ("u.data", "ratings.dat")) or (
        files.find("ratings.csv") is not None and files.find("movies.csv") is not None
    )


def read(files: Files, config: DataConfig, problems: Problems) -> RawData:
    """Read ratings and movies of whichever generation is there."""
    names = ("u.data", "ratings.dat", "ratings.csv")
    events_name = next((name for name in names if files.find(name)), names[0])
    items_name = {"u.data": "u.item", "ratings.dat": "movies.dat", "ratings.csv": "movies.csv"}[events_name]
    events = _read(files, events_name, problems, "ratings", _EVENTS)
    columns = (
        ("item_id", "title", "date", "video_date", "url", *GENRES_100K)
        if items_name == "u.item"
        else ("item_id", "title", "genres")
    )
    items = _read(files, items_name, problems, "movies", columns)
    notes: tuple[str, ...] = ()
    if items is not None and {"title", "genres" if items_name != "u.item" else "unknown"} <= set(items.frame.columns):
        items, notes = _tidy(items)
    return RawData(events, items, text_fields=("title",), attributes=("genres", "year"), notes=notes)


def _read(files: Files, name: str, problems: Problems, what: str, columns: tuple[str, ...]) -> Table | None:
    found = files.find_one([name], problems, what)
    raw = files.read(found, problems) if found else None
    if found is None or raw is None:
        return None
    label = files.label(found)
    if name.endswith(".csv"):
        table = read_delimited(raw, label, problems)
        return table.with_frame(table.frame.rename(_CSV_NAMES, strict=False))
    if name.endswith(".dat"):
        raw = raw.replace(b"::", b"\t")
    separator = "|" if name == "u.item" else "\t"
    encoding = "utf-8" if _is_utf8(raw) else "latin-1"
    return read_delimited(raw, label, problems, separator=separator, columns=columns, quoted=False, encoding=encoding)


def _is_utf8(raw: bytes) -> bool:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True


def _tidy(items: Table) -> tuple[Table, tuple[str, ...]]:
    frame = items.frame
    if "unknown" in frame.columns:
        flags = [pl.when(pl.col(name) == "1").then(pl.lit(name)) for name in GENRES_100K[1:]]
        genres = pl.concat_list(flags).list.drop_nulls()
    else:
        genres = pl.col("genres").fill_null("").str.split("|")
        genres = genres.list.filter(~pl.element().is_in(_NO_GENRE))
    parts = frame["title"].str.extract_groups(r"^(.*?)\s*\((\d{4})\)\s*$").struct.unnest()
    years = parts["2"]
    titles, moved = natural_titles(pl.select(pl.coalesce(parts["1"], frame["title"])).to_series())
    result = frame.select("item_id", titles.alias("title"), genres.alias("genres"), years.alias("year"))
    notes = (
        f"{counted(moved, 'title')} put into natural order (Net, The: The Net)",
        f"{counted(years.null_count(), 'movie')} without a year, "
        f"{int((result['genres'].list.len() == 0).sum()):,} without a genre",
    )
    return items.with_frame(result), notes


def natural_titles(titles: pl.Series) -> tuple[pl.Series, int]:
    """Titles with a trailing article moved to the front, also inside parentheses, and how many changed.

    >>> natural_titles(pl.Series(["Tin Drum, The (Blechtrommel, Die)", "Hate (Haine, La)", "I, Robot"]))[0].to_list()
    ['The Tin Drum (Die Blechtrommel)', 'Hate (La Haine)', 'I, Robot']
    """
    main = titles.str.replace(rf"^(.+), ({_ARTICLES})((?: \(.*\))?)$", "$2 $1$3")
    main = main.str.replace(r"^(.+), (L')((?: \(.*\))?)$", "$2$1$3")
    main = main.str.replace_all(rf"\(([^()]+), ({_ARTICLES})\)", "($2 $1)")
    main = main.str.replace_all(r"\(([^()]+), (L')\)", "($2$1)")
    return main, int((main != titles).sum())
