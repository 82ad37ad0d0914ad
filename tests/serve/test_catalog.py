"""Swapping the catalogue: requests keep the version they began with, and what does not fit is refused."""

import asyncio
import gc
import threading
import weakref
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from pydantic import SecretStr

from llmrec.serve.settings import ServeSettings
from llmrec.serve.works import ListWork
from llmrec.sid_vocab.table import ACTIVE, RETIRED

ADMIN = {"Authorization": "Bearer " + "a" * 24}
SETTINGS = ServeSettings(admin_key=SecretStr("a" * 24))


@pytest.fixture(scope="module")
def newer(served_parts, tmp_path_factory):
    """A descendant: item 5 retired, an item "new" added; its folder has the new title."""
    table = served_parts.table
    status = np.array([*table.status, ACTIVE], np.uint8)
    status[table.row("5")] = RETIRED
    folder = tmp_path_factory.mktemp("newer")
    made = replace(
        table,
        item_ids=(*table.item_ids, "new"),
        codes=np.concatenate([table.codes, [[0, 0, 3]]]),
        status=status,
        parent=table.rows_fingerprint,
    )
    made.save(folder)
    frame = served_parts.catalog.frame
    row = pl.DataFrame({"item_id": "new", "title": "The New Arrival", "genres": [["Drama"]], "year": "2025"})
    pl.concat([frame, row.select(frame.columns)]).write_parquet(folder / "catalog.parquet")
    return folder, made


async def everything(http):
    return (await http.post("/v1/recommendations", json={"history": ["1"], "k": 60, "search": "exact"})).json()


def test_a_swap_changes_what_is_recommended_and_back(serve, newer, served_checkpoint):
    folder, table = newer

    async def test(http):
        before = await everything(http)
        swapped = await http.post("/admin/catalog", json={"table": str(folder)}, headers=ADMIN)
        after = await everything(http)
        item = (await http.get("/v1/items/new")).json()
        retired = (await http.get("/v1/items/5")).json()["retired"]
        back = await http.post("/admin/catalog", json={"table": str(served_checkpoint.folder)}, headers=ADMIN)
        return before, swapped, after, item, retired, back, await everything(http), (await http.get("/metrics")).text

    before, swapped, after, item, retired, back, again, metrics = serve(test, SETTINGS)
    assert swapped.status_code == 200, swapped.text
    assert swapped.json()["catalog_version"] == after["catalog_version"] == table.rows_fingerprint
    assert swapped.json()["previous"] == before["catalog_version"]
    ids = {item["item_id"] for item in after["items"]}
    assert ids == {item["item_id"] for item in before["items"]} - {"5"} | {"new"}
    assert (item["title"], item["attributes"]["year"]) == ("The New Arrival", ["2025"])
    assert retired is True
    assert back.json()["number"] == 3
    assert again == before
    assert "llmrec_catalog_swaps_total 2.0" in metrics


def test_a_request_keeps_the_version_it_began_with(serve, newer, monkeypatch):
    folder, table = newer
    gate, started = threading.Event(), threading.Event()
    run = ListWork.run

    def hold(self, together):
        if self.k == 7:
            started.set()
            assert gate.wait(20)
        return run(self, together)

    monkeypatch.setattr(ListWork, "run", hold)

    async def test(http):
        def ask(item):
            return asyncio.create_task(http.post("/v1/recommendations", json={"history": [item], "k": 7}))

        running = ask("1")
        while not started.is_set():
            await asyncio.sleep(0.005)
        waiting = ask("2")
        while not http.server.engine.num_pending:
            await asyncio.sleep(0.005)
        version = await asyncio.to_thread(http.server.catalog.prepare, folder)
        http.server.catalog.publish(version)
        late = ask("2")
        await asyncio.sleep(0.05)
        gate.set()
        return [(await task).json()["catalog_version"] for task in (running, waiting, late)]

    first, second, third = serve(test, SETTINGS)
    assert first == second == table.parent
    assert third == table.rows_fingerprint


def test_an_old_version_is_freed_with_its_last_request(serve, newer, served_checkpoint):
    folder, _ = newer

    async def test(http):
        await http.post("/admin/catalog", json={"table": str(folder)}, headers=ADMIN)
        await everything(http)
        old = weakref.ref(http.server.catalog.current)
        await http.post("/admin/catalog", json={"table": str(served_checkpoint.folder)}, headers=ADMIN)
        await everything(http)
        gc.collect()
        return old()

    assert serve(test, SETTINGS) is None


@pytest.mark.parametrize("wrong", ["vocabulary", "moved", "nothing", "text", "catalog", "nul"])
def test_what_does_not_belong_to_the_model_is_refused(serve, newer, served_parts, tmp_path, wrong):
    _, table = newer
    if wrong == "vocabulary":
        books = tuple(np.ascontiguousarray(book + 1) for book in table.codebooks)
        replace(table, codebooks=books).save(tmp_path)
    elif wrong == "moved":
        codes = table.codes.copy()
        codes[0] = [5, 4, 3]
        replace(table, codes=codes).save(tmp_path)
    elif wrong == "text":
        (tmp_path / "sid_table.json").write_text("{}")
    elif wrong == "catalog":
        table.save(tmp_path)
        (tmp_path / "catalog.parquet").write_text("no parquet")
    place = "a\0b" if wrong == "nul" else str(tmp_path)

    async def test(http):
        refused = await http.post("/admin/catalog", json={"table": place}, headers=ADMIN)
        return refused, await everything(http)

    refused, after = serve(test, SETTINGS)
    says = {
        "vocabulary": (409, "The SID vocabularies differ"),
        "moved": (409, "is no descendant of"),
        "nothing": (400, "holds no SID table"),
        "text": (400, "is not of SID table format"),
        "catalog": (400, "catalog.parquet cannot be read"),
        "nul": (400, "cannot be read"),
    }
    assert (refused.status_code, says[wrong][1] in refused.text) == (says[wrong][0], True), refused.text
    assert after["catalog_version"] == served_parts.table.rows_fingerprint
