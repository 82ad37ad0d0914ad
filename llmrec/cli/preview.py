"""Prints what `llmrec data preview` found: a heading, a line of figures and some coloured rows per task."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING

from rich.rule import Rule
from rich.text import Text

from llmrec.prompts.preview import legend, preview_lines
from llmrec.sid_vocab.table import LEVEL_LETTERS

if TYPE_CHECKING:
    from rich.console import Console

    from llmrec.preview import StagePreview
    from llmrec.prompts.segments import Rendered
    from llmrec.train.sample import TaskSample

WIDTH = 100
_NAMED = 3  # items of a row whose titles are told


def print_preview(found: StagePreview, rows: int, console: Console) -> None:
    """Print `rows` rows of each task; the width is the terminal's, at most `WIDTH`."""
    console.width = width = min(console.width, WIDTH)
    table = found.table
    console.print(f"{found.stage}, first epoch: {table.num_items:,} items with SIDs of {table.num_levels} tokens")
    console.print(legend(), "  (⏎ ends a line)")
    if found.sample.items_before_recent:
        console.print(f"recent_items leaves out {found.sample.items_before_recent:,} older train items")
    for task in found.sample.tasks:
        console.print()
        console.print(Rule(Text(task.name, style="bold"), align="left", style="dim"))
        for line in task_lines(task):
            console.print(line)
        for place in _spread(len(task.rendered), rows):
            console.print()
            console.print(Text(task.examples[place].row_id, style="dim"))
            row = task.rendered[place]
            *lines, counts = preview_lines(row, found.tokenizer)
            for part in lines:
                for piece in folded(part, width - 2, table.num_levels):
                    console.print(Text("  ").append_text(piece), soft_wrap=True)
            console.print(counts)
            if named := _names(row, found):
                console.print(Text(named, style="italic"), no_wrap=True, overflow="ellipsis")


def task_lines(task: TaskSample) -> list[str]:
    """Figures of a task in words: rows, lengths, what was cut or not made."""
    if not task.num_rows:
        lines = ["no row"]
    else:
        lengths = sorted(map(len, task.rendered))
        loss = sum(int(row.target.sum()) for row in task.rendered) / sum(lengths)
        every = "" if len(lengths) == task.num_rows else f" (measured on {len(lengths):,} of them)"
        lines = [
            f"{task.num_rows:,} rows, {'' if task.exact else 'about '}{task.num_tokens:,} tokens; length "
            f"{lengths[0]} to {lengths[-1]}, median {lengths[len(lengths) // 2]}, {loss:.0%} with loss{every}"
        ]
    cut = Counter(truncated=0, skipped=0)
    for row in task.rendered:
        cut["rows"] += row.truncated_items > 0
        cut["truncated"] += row.truncated_items
        cut["skipped"] += row.skipped_items
    if cut["rows"]:
        lines.append(f"{cut['rows']:,} rows are cut: {cut['truncated']:,} older items of their histories are left out")
    if cut["skipped"]:
        lines.append(f"{cut['skipped']:,} items without a SID skipped")
    return lines + [f"not made: {count:,} {reason}" for reason, count in task.skipped.items() if count]


def folded(line: Text, width: int, num_levels: int) -> list[Text]:
    """Cut a line after words and whole SIDs, into parts of at most `width` characters where that is possible."""
    sid = "".join(rf"<{letter}_\d+>" for letter in LEVEL_LETTERS[:num_levels])
    places, start, end = [], 0, 0
    for piece in re.finditer(rf"\s*{sid}|\s*<[^<>\s]*>|\s*[^\s<]+|\s+|.", line.plain):
        if piece.end() - start > width and end > start:
            places.append(end)
            start = end
        end = piece.end()
    return list(line.divide(places))


def _spread(count: int, rows: int) -> range | list[int]:
    return range(count) if count <= rows else [place * count // rows for place in range(rows)]


def _names(row: Rendered, found: StagePreview) -> str:
    items = list(dict.fromkeys(item for segment in row.segments for item in segment.item_ids))[-_NAMED:]
    return "; ".join(f"{found.table.text(item)} {found.catalog.title(item)}" for item in items)
