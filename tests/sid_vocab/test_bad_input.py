"""Vectors that cannot be used: for every quantiser, `build_table` says what is wrong with which item."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from llmrec.config import build_config
from llmrec.errors import DataError, InputError, LLMRecError
from llmrec.sid_vocab.behaviour_signal import BehaviourSignal
from llmrec.sid_vocab.build import BuiltTable, SIDConfig, build_table
from llmrec.sid_vocab.quantizers import QUANTIZERS
from llmrec.testing.quantizer_conformance import SMALL_QUANTIZERS

IDS = [f"item-{row}" for row in range(60)]


def good() -> np.ndarray:
    rng = np.random.default_rng(0)
    vectors: np.ndarray = rng.normal(size=(6, 12))[np.arange(60) % 6] + 0.3 * rng.normal(size=(60, 12))
    return vectors


def behaviour(num_items: int) -> BehaviourSignal:
    rng = np.random.default_rng(1)
    return BehaviourSignal(rng.normal(size=(num_items, 5)).astype(np.float32), rng.integers(0, num_items, (90, 2)))


def build(folder: Path, name: str, vectors: np.ndarray, catalogue: list[str] = IDS, ids: list[str] = IDS) -> BuiltTable:
    """A table for `catalogue` from a file with the `vectors` of `ids`."""
    np.save(folder / "v.npy", vectors)
    (folder / "ids.txt").write_text("\n".join(ids[: len(vectors)]))
    embeddings = {"source": "file", "path": str(folder / "v.npy"), "ids": str(folder / "ids.txt")}
    weight = 0.4 if name == "per-source" else 0.0
    values = {"embeddings": {**embeddings, "behaviour_weight": weight}, "quantizer": SMALL_QUANTIZERS[name]}
    config = build_config(SIDConfig, values, source="recipe")
    return build_table(config, catalogue, catalogue, behaviour(len(catalogue)))


@pytest.mark.parametrize("name", QUANTIZERS)
def test_every_quantizer_says_what_is_wrong(name: str, tmp_path: Path) -> None:
    for value, told in ((np.nan, "hold NaN or infinity"), (np.inf, "hold NaN or infinity"), (0.0, "are zero")):
        broken = good()
        broken[[7, 9]] = value
        with pytest.raises(DataError, match=f"2 of 60 vectors {told}, first: 'item-7', 'item-9'"):
            build(tmp_path, name, broken)
    constant = good()
    constant[:, 3] = 2016
    with pytest.raises(DataError, match="1 of 12 columns are the same for all 60 items: 3"):
        build(tmp_path, name, constant)
    with pytest.raises(InputError, match=r"5 items .* cannot fill a codebook of 8 codes") as caught:
        build(tmp_path, name, good()[:5], IDS[:5])
    assert caught.value.hint
    with pytest.raises(LLMRecError, match=r"the same|cannot fill"):
        build(tmp_path, name, np.ones((60, 12)))


@pytest.mark.parametrize("name", QUANTIZERS)
def test_an_item_list_that_changed_is_noticed(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"1 of 61 catalogue items have no vector, first: 'item-new'"):
        build(tmp_path, name, good(), [*IDS, "item-new"])
    with pytest.raises(DataError, match=r"1 ids occur more than once, first: 'item-0'"):
        build(tmp_path, name, good(), IDS, [*IDS[:-1], IDS[0]])
    with pytest.raises(DataError, match="59 ids for 60 vectors"):
        build(tmp_path, name, good(), IDS, IDS[:-1])
    fewer = build(tmp_path, name, good(), IDS[:-2])
    assert fewer.table.item_ids == tuple(IDS[:-2])
    assert "2 vectors of items that the catalogue lacks were left out" in fewer.report.notes
    # Rows in another order are the same items: the table follows ids, not places.
    turned = build(tmp_path, name, good()[::-1], IDS, IDS[::-1])
    straight = build(tmp_path, name, good())
    assert turned.table.rows_fingerprint == straight.table.rows_fingerprint
