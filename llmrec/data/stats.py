"""The figures one wants to see before training on a data set, and the two curves that explain most of them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from llmrec.data.dataset import Dataset


@dataclass(frozen=True)
class Quantiles:
    """Distribution of a length."""

    mean: float
    min: int
    p25: int
    median: int
    p75: int
    p95: int
    max: int

    @classmethod
    def of(cls, values: np.ndarray) -> Quantiles:
        """Quantiles of a non-empty array; each is a value that occurs."""
        low, p25, median, p75, p95, high = np.quantile(values, [0, 0.25, 0.5, 0.75, 0.95, 1], method="inverted_cdf")
        mean = round(float(values.mean()), 2)
        return cls(mean, int(low), int(p25), int(median), int(p75), int(p95), int(high))

    def __str__(self) -> str:
        return (
            f"min {self.min:,}, quartiles {self.p25:,} / {self.median:,} / {self.p75:,}, 95 % {self.p95:,}, "
            f"max {self.max:,}, mean {self.mean:,.1f}"
        )


@dataclass(frozen=True)
class DataStats:
    """Figures of a data set. Shares are of 1; lengths of text are characters of what an encoder reads."""

    name: str
    loo_sha256: str
    events: int
    users: int
    participating_users: int
    items: int
    """Items of the evaluation catalogue."""
    catalog_items: int
    """Items that the catalogue describes."""
    unknown_items: int
    """Items with events that the catalogue lacks."""
    density: float
    """Share of the pairs (participating user, item) with at least one event."""
    sequence_length: Quantiles
    """Events per participating user."""
    item_events: Quantiles
    """Events per item of the evaluation catalogue."""
    repeat_share: float
    """Share of events whose user met the item before."""
    repeat_target_share: float
    """Share of the test targets that are in their history: filtered evaluation cannot hit them."""
    tie_share: float
    """Share of events with the same time as another event of their user: there the order of the file decides."""
    top_tenth_share: float
    """Share of events that the tenth of the items with the most events gets."""
    cold_items: int
    """Items that are seen only as targets."""
    cold_target_share: float
    """Share of the test targets that are cold items: no method which needs train events can hit them."""
    shared_titles: int
    """Items whose title another item has too."""
    text_length: Quantiles

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON, quantiles as nested mappings."""
        return dataclasses.asdict(self)

    def rows(self) -> list[tuple[str, str]]:
        """Name and value for a table that people read."""
        return [
            ("events", f"{self.events:,}"),
            ("users", f"{self.users:,}, of whom {self.participating_users:,} with at least 3 events take part"),
            (
                "items with events",
                f"{self.items:,}" + (f", {self.unknown_items:,} without text" * bool(self.unknown_items)),
            ),
            ("items in the catalogue", f"{self.catalog_items:,}"),
            ("density", f"{self.density:.3%}"),
            ("events per user", str(self.sequence_length)),
            ("events per item", str(self.item_events)),
            ("repeats", f"{self.repeat_share:.1%} of events, {self.repeat_target_share:.1%} of test targets"),
            ("ties in time", f"{self.tie_share:.1%} of events"),
            ("most popular tenth of items", f"{self.top_tenth_share:.1%} of events"),
            ("cold items", f"{self.cold_items:,}, {self.cold_target_share:.1%} of test targets"),
            ("titles of several items", f"{self.shared_titles:,} items"),
            ("characters of text per item", str(self.text_length)),
            ("check value (loo_sha256)", self.loo_sha256),
        ]


def data_stats(dataset: Dataset) -> DataStats:
    """Compute the figures; repeats and ties count all events, the rest the participating users."""
    split, frame, catalog = dataset.split, dataset.interactions.frame, dataset.catalog
    lengths = np.array([len(sequence) for sequence in split.sequences])
    popularity = item_popularity(dataset)
    pairs = sum(len(np.unique(sequence)) for sequence in split.sequences)
    tenth = max(1, round(len(popularity) / 10))
    titles = catalog.frame["title"].str.strip_chars()
    distinct = frame.select("user_id", "item_id").n_unique()
    return DataStats(
        name=dataset.name,
        loo_sha256=split.loo_sha256,
        events=frame.height,
        users=split.counts.users,
        participating_users=len(split.users),
        items=len(split.items),
        catalog_items=catalog.num_items,
        unknown_items=dataset.report.unknown_items,
        density=pairs / (len(split.users) * len(split.items)),
        sequence_length=Quantiles.of(lengths),
        item_events=Quantiles.of(popularity),
        repeat_share=1 - distinct / frame.height,
        repeat_target_share=float(np.mean([sequence[-1] in sequence[:-1] for sequence in split.sequences])),
        tie_share=frame.select(pl.struct("user_id", "timestamp").is_duplicated().mean()).item(),
        top_tenth_share=float(popularity[:tenth].sum() / popularity.sum()),
        cold_items=len(split.cold_items()),
        cold_target_share=float(np.isin(split.targets("test"), split.cold_items()).mean()),
        shared_titles=int((titles.is_duplicated() & (titles != "")).sum()),
        text_length=Quantiles.of(np.array([len(text) for text in catalog.texts()])),
    )


def item_popularity(dataset: Dataset) -> np.ndarray:
    """Events per item of the evaluation catalogue, most first: (num_items,) int64."""
    events = np.concatenate(dataset.split.sequences)
    return np.sort(np.bincount(events, minlength=len(dataset.split.items)))[::-1]


def draw_curves(dataset: Dataset, path: Path) -> None:
    """Draw the length curve (how many users have at least n events) and the popularity curve into one PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, NullFormatter

    lengths = np.sort([len(sequence) for sequence in dataset.split.sequences])
    popularity = item_popularity(dataset)
    figure = Figure(figsize=(10, 4), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)

    # 1. Lengths: users with at least n events, over n.
    steps = np.unique(lengths)
    left.plot(steps, len(lengths) - np.searchsorted(lengths, steps), color="#2563a6", linewidth=2)
    median = int(np.median(lengths))
    left.axvline(median, color="#888888", linewidth=1, linestyle=":")
    left.annotate(
        f"median {median:,}", (median, 1), xycoords=("data", "axes fraction"), xytext=(5, -14),
        textcoords="offset points", color="#555555", fontsize=9,
    )  # fmt: skip
    left.set(xscale="log", xlabel="events n", ylabel="users with at least n events", title="Length of histories")
    left.set_ylim(0, len(lengths) * 1.06)

    # 2. Popularity: events of an item, over its rank.
    ranks = np.arange(1, len(popularity) + 1)
    right.plot(ranks, popularity, color="#b8501e", linewidth=2)
    tenth = max(1, round(len(popularity) / 10))
    right.axvspan(1, tenth, color="#b8501e", alpha=0.08, linewidth=0)
    share = popularity[:tenth].sum() / popularity.sum()
    right.annotate(
        f"the top tenth gets\n{share:.0%} of events", (tenth, 1), xycoords=("data", "axes fraction"),
        xytext=(-6, -8), textcoords="offset points", ha="right", va="top", color="#555555", fontsize=9,
    )  # fmt: skip
    right.set(xscale="log", yscale="log", xlabel="items by popularity (rank)", ylabel="events of the item")
    right.set(title="Popularity of items", xlim=(1, len(popularity)), ylim=(0.8, popularity[0] * 4))

    plain = FuncFormatter(lambda value, _: f"{value:,.0f}")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#e6e6e6", linewidth=0.6)
        axes.set_axisbelow(True)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(plain)
            axis.set_minor_formatter(NullFormatter())
    # A log axis of less than a decade has too few labels: name round values instead.
    low, high = int(steps[0]), int(steps[-1])
    round_values = [v * 10**e for e in range(7) for v in (1, 2, 5) if low <= v * 10**e <= high]
    left.set_xticks(round_values or [low])
    figure.suptitle(
        f"{dataset.name}: {len(dataset.split.users):,} users, {len(dataset.split.items):,} items, "
        f"{int(lengths.sum()):,} events",
        fontsize=11,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
