"""The catalogue's titles, texts and attributes."""

from __future__ import annotations

import polars as pl
import pytest

from llmrec.data.catalog import Catalog
from llmrec.errors import InputError
from llmrec.testing.worlds import tiny_items


def test_tiny_catalogue() -> None:
    catalog = Catalog(pl.DataFrame(tiny_items(6)), ("title",), ("genres", "year"))
    assert catalog.item_ids == ("1", "2", "3", "4", "5", "6")
    assert catalog.num_items == 6
    assert "3" in catalog
    assert "99" not in catalog
    assert catalog.title("1") == "The Silent River"
    assert catalog.attribute_values("6") == {"genres": ("Science Fiction",), "year": ("1955",)}
    assert catalog.text("1") == "The Silent River\ngenres: Drama\nyear: 1950"
    assert catalog.texts()[0] == catalog.text("1")


def test_title_is_never_empty_and_white_space_is_plain() -> None:
    frame = pl.DataFrame(
        {
            "item_id": ["a", "b"],
            "title": ["", "  Two \n lines "],
            "description": ["Blue\tpen", None],
            "tags": [["x", " "], []],
        }
    )
    catalog = Catalog(frame, ("title", "description"), ("tags",))
    assert catalog.title("a") == "Blue pen"
    assert catalog.title("b") == catalog.text("b") == "Two lines"
    assert catalog.text("a") == "Blue pen\ntags: x"
    assert catalog.attribute_values("b") == {}


def test_unknown_id_names_near_ones() -> None:
    catalog = Catalog(pl.DataFrame({"item_id": ["B0047", "C9"], "title": ["x", "y"]}))
    with pytest.raises(InputError, match="B0047"):
        catalog.title("B0048")
    with pytest.raises(InputError, match="ids look like"):
        catalog.row("????")


def test_refuses_bad_frames() -> None:
    with pytest.raises(InputError, match="more than once"):
        Catalog(pl.DataFrame({"item_id": ["a", "a"], "title": ["x", "y"]}))
    with pytest.raises(InputError, match=r"\['brand'\]"):
        Catalog(pl.DataFrame({"item_id": ["a"], "title": ["x"]}), ("title", "brand"))
    with pytest.raises(InputError, match="not text"):
        Catalog(pl.DataFrame({"item_id": [1], "title": ["x"]}))
