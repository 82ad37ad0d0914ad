"""What `recommend` and `explain` share: load a checkpoint quietly, and show the history as it was understood."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from llmrec.recommendation import EngineName
    from llmrec.recommender import Recommender
    from llmrec.title_match import Match


def load_recommender(checkpoint: Path, engine: EngineName = "torch", *, prefix_cache_mb: int = 0) -> Recommender:
    """Load with a spinner on stderr instead of the libraries' own bars; a folder that is none fails before torch."""
    from rich.console import Console

    from llmrec.checkpoint_card import Card
    from llmrec.hub import checkpoint_folder

    checkpoint = checkpoint_folder(checkpoint)
    Card.read(checkpoint)
    with Console(stderr=True).status(f"loading {checkpoint}"):
        import transformers

        from llmrec.recommender import Recommender

        transformers.utils.logging.disable_progress_bar()
        transformers.utils.logging.set_verbosity_error()  # it warns of its own default configs, too
        return Recommender.load(checkpoint, engine=engine, prefix_cache_mb=prefix_cache_mb)


def history_table(matches: Sequence[Match]) -> Table:
    """The history; what was typed stands beside a title that it was matched with."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, title="history", title_justify="left", title_style="bold", padding=(0, 2, 0, 0))
    table.add_column("#", justify="right", style="dim")
    table.add_column("title", overflow="fold", ratio=1)
    table.add_column("id", style="cyan", overflow="fold")
    table.add_column("from", style="dim", overflow="fold")
    for place, match in enumerate(matches, start=1):
        origin = "" if match.is_id else f"“{match.word}” ({match.score:.0f} %)"
        table.add_row(str(place), Text(match.title), Text(match.item_id), Text(origin))
    return table
