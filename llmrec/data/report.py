"""What reading a data set found: counts, warnings and notes, for people and for programs."""

from __future__ import annotations

from dataclasses import dataclass

from llmrec.data.problems import counted


@dataclass(frozen=True)
class DataReport:
    """What a data set holds and what about it deserves a look."""

    name: str
    source: str
    files: tuple[str, ...]
    events: int
    users: int
    catalog_items: int
    users_too_short: int
    """Users with fewer than three events: in the data, not in the split."""
    events_too_short: int
    unknown_item_events: int
    """Events with an item that the catalogue lacks: in the data and the split, without text."""
    unknown_items: int
    items_without_events: int
    empty_titles: int
    """Items without a title that have other text."""
    blank_lines: int
    unused_columns: tuple[str, ...]
    """Columns of the items that are neither text nor attribute."""
    notes: tuple[str, ...]
    """What a source changed while reading, with counts."""

    def warnings(self) -> list[str]:
        """One line for each thing that a person should know before training."""
        lines = []
        if self.users_too_short:
            lines.append(
                f"{self.users_too_short:,} of {counted(self.users, 'user')} with fewer than 3 events take no part "
                f"({counted(self.events_too_short, 'event')})"
            )
        if self.unknown_item_events:
            lines.append(
                f"{counted(self.unknown_item_events, 'interaction')} with {counted(self.unknown_items, 'item')} that "
                "the catalogue lacks: kept in the data, but such items cannot be recommended"
            )
        if self.empty_titles:
            lines.append(f"{counted(self.empty_titles, 'item')} without a title: the first other text stands in")
        return lines

    def lines(self) -> list[str]:
        """The whole report for people."""
        lines = [
            f"{self.name} ({self.source}; {', '.join(self.files)}): {self.events:,} events of {self.users:,} users, "
            f"{self.catalog_items:,} items in the catalogue"
        ]
        lines += [f"warning: {line}" for line in self.warnings()]
        if self.items_without_events:
            lines.append(f"note: {counted(self.items_without_events, 'item')} of the catalogue without an event")
        if self.blank_lines:
            lines.append(f"note: {counted(self.blank_lines, 'blank line')} skipped")
        if self.unused_columns:
            lines.append(f"note: item columns not used: {', '.join(self.unused_columns)}")
        return lines + [f"note: {note}" for note in self.notes]
