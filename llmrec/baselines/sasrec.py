"""SASRec: next-item prediction by causal self-attention (Kang and McAuley 2018).

Departures: the loss is the full-softmax cross-entropy over all items instead of one sampled negative, which is worth
more than any change of architecture (Klenitskiy and Vasilev 2023); blocks are pre-norm; a train sequence longer than
the window is cut into windows at an offset drawn anew each epoch, so that early events are learned too.

The checkpoint is the epoch of the best valid NDCG@10 where a `Validation` is given, the last epoch otherwise.
Results are exact for a seed and a number of threads. torch is imported when a model is fitted.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from pydantic import Field

from llmrec.baselines.base import Progress, Validation, train_matrix
from llmrec.config import Config
from llmrec.errors import InputError
from llmrec.metrics import per_user_metrics, rank_of_target

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

    from llmrec.baselines.sasrec_network import SASRecNetwork

_SCORED_AT_ONCE = 512  # histories; bounds the scores in memory to 25 MB at 12,000 items


class SASRecConfig(Config):
    """Settings of SASRec."""

    embedding_size: int = Field(default=64, ge=1)
    """Width of the network; `num_heads` divides it."""
    num_layers: int = Field(default=2, ge=1)
    """Attention blocks."""
    num_heads: int = Field(default=2, ge=1)
    """Attention heads of a block."""
    history_window: int = Field(default=50, ge=1)
    """How many of the latest history items the network sees."""
    dropout: float = Field(default=0.3, ge=0, lt=1)
    """On inputs and both branches of a block."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Of Adam."""
    batch_size: int = Field(default=64, ge=1)
    """Windows a step."""
    epochs: int = Field(default=80, ge=1)
    """At most this many; validation may stop earlier."""
    patience: int = Field(default=8, ge=1)
    """Stop after this many epochs without a better valid NDCG@10."""
    seed: int = 0
    """Of initial weights, order, window offsets and dropout."""


@dataclass(frozen=True)
class SASRecModel:
    """Fitted SASRec.

    Attributes:
        network: in evaluation mode.
        trained: (num_items,) bool, items with a train event.
        config: its settings.
        losses: mean train loss (nats) of each epoch run.
        valid_ndcg: valid NDCG@10 of each epoch run; empty without validation.
        epoch: the epoch kept, counted from 1.
    """

    network: SASRecNetwork
    trained: np.ndarray
    config: SASRecConfig
    losses: tuple[float, ...]
    valid_ndcg: tuple[float, ...]
    epoch: int

    def scores(self, histories: Sequence[np.ndarray]) -> np.ndarray:
        """Logits of the next item: (len(histories), num_items) float32."""
        return _scores(self.network, histories, self.config.history_window)

    def item_embeddings(self) -> np.ndarray:
        """Behaviour vectors (num_items, embedding_size) float32, rows of length 1; zero for items without train events.

        An untrained row holds its random start pushed away from every history: noise, not behaviour.
        """
        vectors = self.network.items.weight.detach().numpy().astype(np.float32)
        vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(min=1e-12)
        return np.where(self.trained[:, None], vectors, np.float32(0))


class SASRec:
    """See the module's docstring."""

    config_class: ClassVar[type[Config]] = SASRecConfig

    def __init__(self, config: SASRecConfig | None = None) -> None:
        self.config = config or SASRecConfig()
        if self.config.embedding_size % self.config.num_heads:
            raise InputError(
                f"embedding_size {self.config.embedding_size} does not divide into {self.config.num_heads} heads",
                hint="choose num_heads as a divisor of embedding_size",
            )

    def fit(
        self,
        train: Sequence[np.ndarray],
        num_items: int,
        *,
        validation: Validation | None = None,
        progress: Progress | None = None,
    ) -> SASRecModel:
        """Train, and keep the best epoch; see `llmrec.baselines.base.Baseline.fit`.

        Raises:
            InputError: also when no train sequence has two events, so that there is no next item to learn.
        """
        import torch

        from llmrec.baselines.sasrec_network import SASRecNetwork

        config = self.config
        trained = np.asarray(train_matrix(train, num_items).sum(axis=0)).ravel() > 0
        if max(len(sequence) for sequence in train) < 2:
            raise InputError("no train sequence has two events, so there is no next item to learn")
        rng = np.random.default_rng(config.seed)
        with torch.random.fork_rng(devices=[]):  # the caller's random state stays as it was
            torch.manual_seed(config.seed)
            network = SASRecNetwork(
                num_items,
                config.embedding_size,
                config.history_window,
                config.num_layers,
                config.num_heads,
                config.dropout,
            )
            optimizer = torch.optim.Adam(network.parameters(), lr=config.learning_rate)
            losses: list[float] = []
            valid_ndcg: list[float] = []
            best_state, best_epoch = None, 0
            for epoch in range(1, config.epochs + 1):
                losses.append(_train_epoch(network, optimizer, train, config, rng))
                if validation is not None:
                    valid_ndcg.append(_valid_ndcg(network, validation, config.history_window))
                    if best_state is None or valid_ndcg[-1] > valid_ndcg[best_epoch - 1]:
                        best_state, best_epoch = copy.deepcopy(network.state_dict()), epoch
                if progress is not None:
                    progress(epoch, config.epochs, valid_ndcg[-1] if valid_ndcg else math.nan)
                if best_state is not None and epoch - best_epoch >= config.patience:
                    break
        if best_state is not None:
            network.load_state_dict(best_state)
        network.eval()
        return SASRecModel(
            network, trained, config, tuple(losses), tuple(valid_ndcg), best_epoch if best_state else len(losses)
        )


def _train_epoch(
    network: SASRecNetwork,
    optimizer: Optimizer,
    train: Sequence[np.ndarray],
    config: SASRecConfig,
    rng: np.random.Generator,
) -> float:
    """One pass over all windows; returns the mean loss of a predicted item."""
    from torch.nn import functional

    network.train()
    windows = [window for sequence in train for window in cut_windows(sequence, config.history_window, rng)]
    order = rng.permutation(len(windows))
    total, predicted = 0.0, 0
    for start in range(0, len(order), config.batch_size):
        batch = [windows[index] for index in order[start : start + config.batch_size]]
        inputs, real = _right_aligned([window[:-1] for window in batch])
        targets, _ = _right_aligned([window[1:] for window in batch])
        loss = functional.cross_entropy(network.logits(network(inputs, real)[real]), targets[real])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        total += float(loss.detach()) * int(real.sum())
        predicted += int(real.sum())
    return total / predicted


def cut_windows(sequence: np.ndarray, window: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Cut a sequence into pieces of at most ``window + 1`` events, so that each event but the first is predicted once.

    Neighbouring pieces share one event (the last target of one is the first input of the next). Sequences that fit
    stay whole; in others the cuts shift by a random offset.
    """
    inputs = len(sequence) - 1
    first = inputs if inputs <= window else int(rng.integers(1, window + 1))
    start, end = 0, first
    while start < inputs:
        yield sequence[start : end + 1]
        start, end = end, min(end + window, inputs)


def _right_aligned(sequences: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
    """Left-pad with index 0: (batch, longest) int64 items and bool marks of the real ones; at least one column."""
    import torch

    longest = max(1, *(len(sequence) for sequence in sequences))
    items = np.zeros((len(sequences), longest), dtype=np.int64)
    real = np.zeros((len(sequences), longest), dtype=bool)
    for row, sequence in enumerate(sequences):
        items[row, longest - len(sequence) :] = sequence
        real[row, longest - len(sequence) :] = True
    return torch.from_numpy(items), torch.from_numpy(real)


def _scores(network: SASRecNetwork, histories: Sequence[np.ndarray], window: int) -> np.ndarray:
    import torch

    network.eval()
    parts = [np.zeros((0, network.items.num_embeddings), dtype=np.float32)]
    with torch.no_grad():
        for start in range(0, len(histories), _SCORED_AT_ONCE):
            inputs, real = _right_aligned([history[-window:] for history in histories[start : start + _SCORED_AT_ONCE]])
            parts.append(network.logits(network(inputs, real)[:, -1]).numpy())
    return np.concatenate(parts)


def _valid_ndcg(network: SASRecNetwork, validation: Validation, window: int) -> float:
    values = []
    for start in range(0, len(validation.histories), _SCORED_AT_ONCE):
        histories = validation.histories[start : start + _SCORED_AT_ONCE]
        placement = rank_of_target(
            _scores(network, histories, window),
            validation.targets[start : start + _SCORED_AT_ONCE],
            histories if validation.filtered else None,
        )
        values.append(per_user_metrics(placement)["NDCG@10"])
    return float(np.concatenate(values).mean())
