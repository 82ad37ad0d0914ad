"""Text and behaviour in one vector: weighted concatenation, or text moved towards behaviour by a contrastive head.

Text alone puts items close that *read* alike; who uses them is in the train matrix.

- `concat` joins unit vectors, ``[sqrt(1-w) text, sqrt(w) behaviour]``, so that a squared distance is ``(1-w)`` times
  the text's plus ``w`` times the behaviour's. Nothing is learned. A new item has no behaviour and stands apart from
  the others in that half of the space.
- `fit_alignment` learns a head on the text vectors by symmetric InfoNCE against the behaviour vectors, so that a
  *new* item, too, goes where its text says that its users are. QARM (Luo et al. 2024) and OneRec (Deng et al. 2025)
  tune the content model itself on pairs of items that the same users have; LETTER (Wang et al. 2024) has such a loss
  between quantised text and collaborative vectors inside the RQ-VAE. We follow QARM's order (align, then quantise),
  with two departures: the encoder stays frozen and a small head learns, which takes seconds; and an item's partner is
  its own behaviour vector, as in LETTER, instead of another item. The head is ``x + W2 relu(W1 x)`` with ``W2`` zero
  at the start: it begins as the text and moves as far as behaviour has something to say (OneRec keeps the text's
  meaning by a second loss, captions).

A tenth of the items is held out of the head's training; the epoch with the lowest loss on them is kept, which is what
matters for new items. Held-out items are train items: no valid or test event takes part.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from llmrec.config import Config
from llmrec.errors import DataError, InputError
from llmrec.sid_vocab.vectors import normalise

_FEWEST = 20  # items with behaviour below which a held-out tenth says nothing
_MOST_HELD_OUT = 2048  # bounds the held-out similarities to 16 MB
_NAMES = ("first", "bias", "second", "behaviour")


class AlignConfig(Config):
    """How the contrastive head is trained."""

    hidden_size: int = Field(default=256, ge=1)
    """Width of the head's hidden layer."""
    temperature: float = Field(default=0.07, gt=0)
    """Of the similarities (CLIP's start value)."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Of AdamW."""
    batch_size: int = Field(default=512, ge=2)
    """Items a step; the others of a batch are an item's negatives."""
    epochs: int = Field(default=200, ge=1)
    """At most this many."""
    patience: int = Field(default=10, ge=1)
    """Stop after this many epochs without a lower loss on the held-out items."""
    seed: int = Field(default=0, ge=0)
    """Of start values, order and the choice of held-out items."""


@dataclass(frozen=True)
class Fused:
    """Vectors to quantise."""

    vectors: np.ndarray
    """(n_items, dim) float32 unit rows."""
    notes: tuple[str, ...] = ()
    """Items without behaviour, what the head learned."""


@dataclass(frozen=True, eq=False)
class AlignmentHead:
    """A fitted head; kept with a SID table, it puts new items into the space of its codebooks."""

    first: np.ndarray
    """(dim, hidden_size) float32."""
    bias: np.ndarray
    """(hidden_size,) float32."""
    second: np.ndarray
    """(hidden_size, dim) float32."""
    behaviour: np.ndarray
    """(behaviour size, dim) float32: takes behaviour vectors into the same space."""

    def text(self, vectors: np.ndarray) -> np.ndarray:
        """(n, dim) text vectors to (n, dim) float32 unit vectors; in float64, so that rows do not depend on others.

        Raises:
            InputError: vectors of another width than the head's.
        """
        if vectors.shape[1] != len(self.first):
            raise InputError(
                f"The alignment head takes vectors of {len(self.first)} numbers, these have {vectors.shape[1]}.",
                hint="embed with the same encoder as at the fit",
            )
        rows = normalise(vectors).astype(np.float64)
        return normalise(rows + np.maximum(rows @ self.first + self.bias, 0) @ self.second)

    def acts(self, behaviour: np.ndarray) -> np.ndarray:
        """(n, behaviour size) to (n, dim) float32 unit vectors; zero rows stay zero."""
        return normalise(normalise(behaviour).astype(np.float64) @ self.behaviour)

    def save(self, path: Path) -> None:
        """Write the head as safetensors."""
        from safetensors.numpy import save_file

        save_file({"first": self.first, "bias": self.bias, "second": self.second, "behaviour": self.behaviour}, path)

    @classmethod
    def load(cls, path: Path) -> AlignmentHead:
        """Read what `save` wrote.

        Raises:
            InputError: the file is missing, cut short or holds something else.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            found = load_file(path)
        except (OSError, SafetensorError) as error:
            raise InputError(
                f"The alignment head {path} cannot be read: {error}", hint="restore the file, or fit the SIDs again"
            ) from error
        if set(found) != set(_NAMES):
            raise InputError(f"{path} holds {', '.join(sorted(found))} instead of an alignment head.")
        return cls(**found)


@dataclass(frozen=True)
class Alignment:
    """A fitted head and how well it does on items that it was not fitted to."""

    head: AlignmentHead
    epoch: int
    """The epoch kept, counted from 1."""
    held_out_loss: float
    """Symmetric InfoNCE (nats) of the held-out items among each other."""
    chance: float
    """The same for vectors that know nothing: the logarithm of the number of held-out items."""

    @property
    def note(self) -> str:
        """One line for the report."""
        figures = f"loss of held-out items {self.held_out_loss:.2f}, by chance {self.chance:.2f}, epoch {self.epoch}"
        learned = "text was aligned to behaviour" if self.held_out_loss < self.chance else "alignment learned nothing"
        return f"{learned} ({figures})"


def concat(vectors: np.ndarray, behaviour: np.ndarray, weight: float) -> Fused:
    """(n_items, dim + size) float32 unit vectors ``[sqrt(1-w) vector, sqrt(w) behaviour]`` of normalised parts.

    An item without behaviour (a zero row) keeps its text alone at full length, ``[vector, 0]``: its place among the
    others is then decided by text, and the result still has no row near zero, even at weight 1.

    Raises:
        DataError: the numbers of rows differ, or behaviour holds NaN or infinity.
    """
    require_behaviour(behaviour, len(vectors))
    text, acts = normalise(vectors), normalise(behaviour)
    silent = np.logical_not(acts.any(axis=1))[:, None]
    text_share = np.where(silent, 1.0, np.sqrt(1 - weight))
    fused = np.concatenate([text * text_share, acts * np.sqrt(weight)], axis=1).astype(np.float32)
    return Fused(fused, _silent_note(silent))


def align(head: AlignmentHead, vectors: np.ndarray, behaviour: np.ndarray, weight: float) -> Fused:
    """(n_items, dim) float32 unit vectors: ``(1-w)`` aligned text ``+ w`` behaviour, both in the head's space.

    Weight 0 places every item, old or new, by its aligned text alone. An item without behaviour is always placed so.

    Raises:
        DataError: the numbers of rows differ, or behaviour holds NaN or infinity.
        InputError: vectors of another width than the head's.
    """
    require_behaviour(behaviour, len(vectors))
    text, acts = head.text(vectors), head.acts(behaviour)
    silent = np.logical_not(acts.any(axis=1))[:, None]
    mixed = np.where(silent, text, (1 - weight) * text + weight * acts)
    return Fused(normalise(mixed), _silent_note(silent))


def fit_alignment(vectors: np.ndarray, behaviour: np.ndarray, config: AlignConfig) -> Alignment:
    """Fit a head to the items that have behaviour; exact for a seed and a number of threads.

    Args:
        vectors: (n_items, dim) text vectors.
        behaviour: (n_items, size), zero rows for items without train events.
        config: the training.

    Raises:
        DataError: the numbers of rows differ, or behaviour holds NaN or infinity.
        InputError: fewer than 20 items have behaviour.
    """
    import torch
    from torch.nn import functional

    require_behaviour(behaviour, len(vectors))
    active = np.flatnonzero(behaviour.any(axis=1))
    if len(active) < _FEWEST:
        raise InputError(
            f"Only {len(active)} of {len(vectors)} items have train behaviour; an alignment needs {_FEWEST}.",
            hint="set fusion=concat or fusion=none",
        )
    rng = np.random.default_rng(config.seed)
    active = rng.permutation(active)
    held, learned = np.split(active, [min(len(active) // 10, _MOST_HELD_OUT)])
    text = torch.from_numpy(normalise(vectors))
    acts = torch.from_numpy(normalise(behaviour))
    dim, size = text.shape[1], acts.shape[1]

    def loss_of(rows: np.ndarray) -> Any:
        index = torch.from_numpy(rows)
        moved = text[index] + torch.relu(text[index] @ first + bias) @ second
        logits = functional.normalize(moved, dim=1) @ functional.normalize(acts[index] @ into, dim=1).T
        right = torch.arange(len(rows))
        logits = logits / config.temperature
        return (functional.cross_entropy(logits, right) + functional.cross_entropy(logits.T, right)) / 2

    with torch.random.fork_rng(devices=[]):  # the caller's random state stays as it was
        torch.manual_seed(config.seed)
        first = torch.nn.Parameter(torch.randn(dim, config.hidden_size) / math.sqrt(dim))
        bias = torch.nn.Parameter(torch.zeros(config.hidden_size))
        second = torch.nn.Parameter(torch.zeros(config.hidden_size, dim))
        into = torch.nn.Parameter(torch.randn(size, dim) / math.sqrt(size))
    weights = [first, bias, second, into]
    optimizer = torch.optim.AdamW(weights, lr=config.learning_rate)
    best, kept, epoch_kept = math.inf, copy.deepcopy(weights), 0
    for epoch in range(1, config.epochs + 1):
        order = rng.permutation(learned)
        for rows in np.array_split(order, math.ceil(len(order) / config.batch_size)):
            optimizer.zero_grad()
            loss_of(rows).backward()
            optimizer.step()
        with torch.no_grad():
            held_out_loss = float(loss_of(held))
        if held_out_loss < best:
            best, kept, epoch_kept = held_out_loss, copy.deepcopy(weights), epoch
        elif epoch - epoch_kept >= config.patience:
            break
    head = AlignmentHead(*(weight.detach().numpy() for weight in kept))
    return Alignment(head, epoch_kept, best, math.log(len(held)))


def require_behaviour(behaviour: np.ndarray, num_items: int) -> None:
    """Raise DataError with everything that is wrong with behaviour vectors for `num_items` items."""
    problems = []
    if behaviour.ndim != 2 or len(behaviour) != num_items:
        problems.append(f"shape {behaviour.shape} for {num_items} items")
    if not np.isfinite(behaviour).all():
        problems.append("NaN or infinity")
    if problems:
        raise DataError("The behaviour vectors cannot be used:", problems)


def _silent_note(silent: np.ndarray) -> tuple[str, ...]:
    count = int(silent.sum())
    return (f"{count} items without train behaviour are placed by text alone",) if count else ()
