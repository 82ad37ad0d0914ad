"""Behaviour vectors: what the train interactions alone say about which items belong together.

Two sources, both from `llmrec.baselines`: a truncated SVD of the user-item matrix (seconds, no training), or the item
vectors of a SASRec trained for the purpose, as LETTER and LC-Rec's collaborative embeddings are (Wang et al. 2024;
Zheng et al. 2024). SASRec knows the order of events and takes minutes. `behaviour_signal` adds the pairs of items that
followed each other, for quantisers that learn from them.

No valid or test event may move a vector, not by one bit. Two things follow that a plain fit on the evaluation
catalogue would miss: items with a train event are fitted alone, in the order of their ids as text (a catalogue that
valid targets make longer would draw other start values, and one non-integer id would sort it anew), and SASRec runs a
fixed number of epochs (choosing the best one would look at valid targets).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from rich.console import Console
from rich.progress import Progress

from llmrec.baselines.cooccurrence import cooccurrence_embeddings
from llmrec.baselines.sasrec import SASRec, SASRecConfig
from llmrec.errors import InputError
from llmrec.sid_vocab.behaviour_signal import BehaviourSignal

BehaviourSource = Literal["cooccurrence", "sasrec"]


def behaviour_vectors(
    train: Sequence[np.ndarray],
    items: Sequence[str],
    item_ids: Sequence[str],
    *,
    source: BehaviourSource = "cooccurrence",
    size: int = 64,
    epochs: int = 40,
    seed: int = 0,
) -> np.ndarray:
    """Unit vectors of items with train events, zero rows for the others; SASRec's epochs show on standard error.

    Args:
        train: per user, indices into `items` (``Split.train()``).
        items: what the indices mean (``Split.items``).
        item_ids: (n_items,) row order of the result; items that only `items` has are fitted and left out.
        source: ``cooccurrence`` (`cooccurrence_embeddings`) or ``sasrec``.
        size: columns of the result; a co-occurrence matrix of fewer users or items than that gives as many as it has.
        epochs: of SASRec; ``cooccurrence`` has none.
        seed: of the start values.

    Returns:
        (n_items, size) float32.

    Raises:
        InputError: there is no train event, or for ``sasrec`` no train sequence of two events.
    """
    events = np.concatenate([np.empty(0, np.int64), *train])
    if not events.size:
        raise InputError("There is no train event, so there are no behaviour vectors.", hint="set fusion=none")
    seen = np.array(sorted(np.unique(events).tolist(), key=lambda index: items[index]))
    place_of = np.full(len(items), -1)
    place_of[seen] = np.arange(len(seen))
    dense = [place_of[sequence] for sequence in train]
    if source == "cooccurrence":
        fitted = cooccurrence_embeddings(dense, len(seen), min(size, len(train), len(seen)), seed)
    else:
        settings = SASRecConfig(embedding_size=size, epochs=epochs, seed=seed)
        with Progress(console=Console(stderr=True), transient=True) as progress:
            bar = progress.add_task("SASRec's item vectors", total=epochs)
            fitted = SASRec(settings).fit(dense, len(seen), progress=lambda *_: progress.advance(bar)).item_embeddings()
    row_of = {item_id: row for row, item_id in enumerate(item_ids)}
    known = [(place, row_of[items[index]]) for place, index in enumerate(seen) if items[index] in row_of]
    vectors = np.zeros((len(item_ids), fitted.shape[1]), np.float32)
    for place, row in known:
        vectors[row] = fitted[place]
    return vectors


def behaviour_signal(
    train: Sequence[np.ndarray],
    items: Sequence[str],
    item_ids: Sequence[str],
    *,
    source: BehaviourSource = "cooccurrence",
    size: int = 64,
    epochs: int = 40,
) -> BehaviourSignal:
    """`behaviour_vectors` with the pairs of `adjacent_pairs`; arguments and errors as there."""
    vectors = behaviour_vectors(train, items, item_ids, source=source, size=size, epochs=epochs)
    return BehaviourSignal(vectors, adjacent_pairs(train, items, item_ids))


def adjacent_pairs(train: Sequence[np.ndarray], items: Sequence[str], item_ids: Sequence[str]) -> np.ndarray:
    """(m, 2) int64 rows of `item_ids` that stand next to each other in a train sequence, in the order of the events.

    Repeats of one item and pairs with an item that only `items` has are left out; arguments as `behaviour_vectors`.
    """
    row_of = {item_id: row for row, item_id in enumerate(item_ids)}
    rows = np.array([row_of.get(item_id, -1) for item_id in items], dtype=np.int64)
    chains = [rows[sequence] for sequence in train if len(sequence) > 1]
    pairs = [np.stack([chain[:-1], chain[1:]], axis=1) for chain in chains]
    together = np.concatenate([np.empty((0, 2), np.int64), *pairs])
    known: np.ndarray = together[(together >= 0).all(axis=1) & (together[:, 0] != together[:, 1])]
    return known
