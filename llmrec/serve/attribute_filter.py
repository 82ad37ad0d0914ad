"""Filters of a request on what the catalogue knows: "genres any of Western, Drama", "year from 1990 to 1999"."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from pydantic import Field, model_validator

from llmrec.config import Config
from llmrec.data.catalog import Catalog
from llmrec.errors import InputError


class AttributeFilter(Config):
    """A condition on one attribute; an item without a value for it does not fulfil it."""

    attribute: str = Field(examples=["genres"])
    """A column of the catalogue that `/v1/models` lists under `attributes`."""
    any_of: tuple[str, ...] | None = Field(default=None, min_length=1, max_length=200, examples=[["Western", "Drama"]])
    """The item has one of these values."""
    none_of: tuple[str, ...] | None = Field(default=None, min_length=1, max_length=200)
    """The item has none of these values."""
    at_least: float | None = Field(default=None, allow_inf_nan=False)
    """The value is a number and not below this."""
    at_most: float | None = Field(default=None, allow_inf_nan=False)
    """The value is a number and not above this."""

    @model_validator(mode="after")
    def _says_something(self) -> AttributeFilter:
        if self.any_of is None and self.none_of is None and self.at_least is None and self.at_most is None:
            raise ValueError("give at least one of any_of, none_of, at_least, at_most")
        return self


class AttributeIndex:
    """Which items of a catalogue fulfil filters.

    Args:
        catalog: the attributes.
        item_ids: the rows; an item that the catalogue lacks has no attribute.
    """

    def __init__(self, catalog: Catalog, item_ids: Sequence[str]) -> None:
        self._item_ids = tuple(item_ids)
        self._columns = _columns(catalog, self._item_ids)
        # Shops ask for the same few shelves again and again.
        self._cached = lru_cache(maxsize=64)(self._items)

    def items(self, filters: tuple[AttributeFilter, ...]) -> frozenset[str]:
        """The items that fulfil all of `filters`.

        Raises:
            InputError: there is no such attribute (near misses are named), or a range of one without numbers.
        """
        return self._cached(filters)

    def _items(self, filters: tuple[AttributeFilter, ...]) -> frozenset[str]:
        mask = np.ones(len(self._item_ids), bool)
        for condition in filters:
            mask &= self._mask(condition)
        return frozenset(self._item_ids[row] for row in np.flatnonzero(mask).tolist())

    def _mask(self, condition: AttributeFilter) -> np.ndarray:
        values, owners = self._column(condition.attribute)
        mask = np.ones(len(self._item_ids), bool)
        if condition.any_of is not None:
            mask &= self._having(values, owners, condition.any_of)
        if condition.none_of is not None:
            mask &= ~self._having(values, owners, condition.none_of)
            mask &= np.isin(np.arange(len(mask)), owners)
        if condition.at_least is not None or condition.at_most is not None:
            low = -np.inf if condition.at_least is None else condition.at_least
            high = np.inf if condition.at_most is None else condition.at_most
            numbers = _numbers(values)
            if np.isnan(numbers).all():
                raise InputError(
                    f"The attribute {condition.attribute!r} has no numbers to compare with.",
                    hint=f"its values look like {', '.join(map(repr, values[:3].tolist()))}; use any_of",
                )
            inside = np.zeros(len(mask), bool)
            inside[owners[(numbers >= low) & (numbers <= high)]] = True
            mask &= inside
        return mask

    def _having(self, values: np.ndarray, owners: np.ndarray, wanted: Sequence[str]) -> np.ndarray:
        mask = np.zeros(len(self._item_ids), bool)
        mask[owners[np.isin(values, np.array(wanted, dtype=object))]] = True
        return mask

    def _column(self, attribute: str) -> tuple[np.ndarray, np.ndarray]:
        if attribute not in self._columns:
            near = difflib.get_close_matches(attribute, self._columns, n=1)
            known = f"there are: {', '.join(self._columns)}" if self._columns else "this catalogue has none"
            raise InputError(
                f"The catalogue has no attribute {attribute!r}.", hint=f"did you mean {near[0]!r}?" if near else known
            )
        return self._columns[attribute]


def _columns(catalog: Catalog, item_ids: Sequence[str]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Per attribute its values, and the row that has each."""
    found: dict[str, tuple[list[str], list[int]]] = {name: ([], []) for name in catalog.attributes}
    for row, item_id in enumerate(item_ids):
        if item_id in catalog:
            for name, values in catalog.attribute_values(item_id).items():
                found[name][0].extend(values)
                found[name][1].extend([row] * len(values))
    return {
        name: (np.array(values, dtype=object), np.array(rows, dtype=np.int64)) for name, (values, rows) in found.items()
    }


def _numbers(values: np.ndarray) -> np.ndarray:
    """(m,) float64, NaN for what is no number."""

    def number(text: str) -> float:
        try:
            return float(text)
        except ValueError:
            return np.nan

    return np.array([number(text) for text in values.tolist()], dtype=np.float64)
