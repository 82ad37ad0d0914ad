"""What `llmrec sid report` gathers and prints: the fit's own health report, and what data says about the codes."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmrec.cli.sid_source import open_source
from llmrec.errors import InputError
from llmrec.sid_vocab.page import render_page, share, times
from llmrec.sid_vocab.table import LEVEL_LETTERS, SIDTable

_TOKEN = re.compile(r"<([a-z])_(\d{1,9})>", re.A)


@dataclass(frozen=True)
class Judged:
    """A table and everything measured about it, as plain values."""

    table: SIDTable
    health: Mapping[str, Any]
    """`HealthReport.as_dict`."""
    meaning: Mapping[str, Any]
    """`llmrec.sid_vocab.health.Meanings`."""
    name: str
    fit: Path
    """The folder of the fit."""


def judge(folder: Path, prefixes: Sequence[str]) -> Judged:
    """Measure the table of `folder`.

    Errors of reconstruction and collisions before re-assignment are of the fit, which had the vectors: they come from
    its ``report.json``. Where that is of other rows (items were added since), the rest is measured without them.

    Raises:
        InputError: there is no table or no data, or a prefix is none of the table's.
    """
    from llmrec.data.dataset import read_data
    from llmrec.sid_vocab.health import measure_meaning
    from llmrec.sid_vocab.report import as_plain, health_report

    source = open_source(folder)
    table = source.table
    wanted = [parse_prefix(text, table) for text in prefixes]
    dataset = read_data(source.data)
    catalog = source.catalog if source.catalog is not None else dataset.catalog
    meaning = as_plain(measure_meaning(table, dataset.split, catalog, prefixes=wanted))
    health = _of_fit(source.fit / "report.json", table)
    if health is None:
        titles = [catalog.title(item_id) if item_id in catalog else item_id for item_id in table.item_ids]
        note = (
            "measured without the vectors: no report of the fit for these rows; moved items do not count as colliding"
        )
        health = health_report(table, titles, notes=(note,)).as_dict()
    return Judged(table, health, meaning, f"SIDs of {dataset.name}", source.fit)


def parse_prefix(text: str, table: SIDTable) -> tuple[int, ...]:
    """The codes of ``<a_17><b_3>``. Raises InputError where it is no prefix of the table's quantised codes."""
    found = _TOKEN.findall(text)
    levels = table.num_levels - table.has_suffix
    codes = tuple(int(code) for _, code in found)
    spelled = "".join(f"<{letter}_{code}>" for letter, code in found) == text.replace(" ", "")
    letters = "".join(letter for letter, _ in found)
    if not found or not spelled or letters != LEVEL_LETTERS[: len(found)] or len(found) > levels:
        raise InputError(
            f"{text!r} is no prefix of these SIDs.", hint=f"write '<a_17>' or '<a_17><b_3>', up to {levels} levels"
        )
    if not (table.codes[:, : len(codes)] == codes).all(axis=1).any():
        raise InputError(f"No item has the prefix {text!r}.", hint=f"codebook sizes are {table.codebook_sizes}")
    return codes


def write_page(judged: Judged, path: Path) -> None:
    """Write the HTML page."""
    path.parent.mkdir(parents=True, exist_ok=True)
    page = render_page(judged.table, judged.health, judged.meaning, title=judged.name)
    path.write_text(page, encoding="utf-8")


def print_report(judged: Judged) -> None:
    """The main figures as tables on stdout."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    health, meaning = judged.health, judged.meaning
    console = Console(highlight=False)
    console.print(
        f"{health['num_items']:,} items, {health['distinct']:,} different codes; {health['collision_rate']:.1%} of the "
        f"items collide before any suffix or move, {health['largest_bucket']} in the largest bucket"
    )
    if health["hourglass"] is not None:
        console.print(f"hourglass {health['hourglass']:.2f} (above 0: inner levels are narrower than the outer ones)")
    levels = Table("level", "codes used", "perplexity", "gini", "error left", box=None)
    for level in health["levels"]:
        used = f"{level['used']} of {level['codebook_size']}"
        levels.add_row(
            level["level"],
            used,
            f"{level['perplexity']:.1f}",
            f"{level['gini']:.2f}",
            share(level["reconstruction_error"]),
        )
    console.print(levels)
    if health["cold"] and health["cold"]["items"]:
        cold, warm = health["cold"], health["warm"]
        console.print(
            f"{cold['items']:,} cold items: {share(cold['collision_rate'])} collide, error left "
            f"{share(cold['reconstruction_error'])} (warm {share(warm['collision_rate'])}, "
            f"{share(warm['reconstruction_error'])})"
        )
    lifts = Table("agree on", "observed", "by chance", "lift", "z", box=None)
    for lift in [*meaning["prefix_lift"], *meaning["category_lift"]]:
        z = "–" if lift["z"] is None else f"{lift['z']:.1f}"
        lifts.add_row(Text(lift["what"]), share(lift["observed"]), share(lift["expected"]), times(lift["lift"]), z)
    console.print(lifts)
    for one in meaning["prefixes"]:
        console.print(Text(f"{one['tokens']}  {one['num_items']:,} items  {'; '.join(one['typical'])}", style="cyan"))
        console.print(Text("  " + " · ".join(one["titles"])))
    for line in health["notes"]:
        console.print(Text(line, style="dim"))


def _of_fit(path: Path, table: SIDTable) -> dict[str, Any] | None:
    """The report of the fit, where it is there and of the rows of `table`."""
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} cannot be read: {error}", hint="fit the SIDs again (llmrec sid fit)") from error
    return found if found.get("rows_fingerprint") == table.rows_fingerprint else None
