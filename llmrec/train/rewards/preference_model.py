"""A learned preference score over (user vector, item vector), with its own held-out AUC: the model of `Preference`.

Item vectors come from train behaviour (`cooccurrence_embeddings`), a user is the mean of the vectors of the history,
and a network of one hidden layer over user, item and their product tells the next item from negatives. Negatives are
drawn as often as items are met, so that the score says what the user likes beyond what everybody takes: popularity
cannot help it. The last train event of every user is held out of vectors and weights; the AUC is over these against
negatives.

The idea is the P-score of OneRec's technical report (arXiv:2506.13695), at the scale of a train set of interactions.
torch is imported when a model is fitted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import Field

from llmrec.baselines import cooccurrence_embeddings
from llmrec.config import Config
from llmrec.errors import InputError


class PreferenceModelConfig(Config):
    """Settings of `fit_preference`."""

    embedding_size: int = Field(default=64, ge=2)
    """Numbers of a user or item vector."""
    hidden_size: int = Field(default=32, ge=1)
    """Hidden units."""
    num_negatives: int = Field(default=4, ge=1)
    """Per positive."""
    epochs: int = Field(default=5, ge=1)
    """Passes over all positions of all train sequences."""
    batch_size: int = Field(default=512, ge=1)
    """Pairs of a step."""
    learning_rate: float = Field(default=3e-3, gt=0)
    """Of Adam."""
    min_auc: float = Field(default=0.55, ge=0, le=1)
    """A model that orders held-out pairs worse is refused: it would reward noise."""
    seed: int = 0
    """Of vectors, negatives, weights and order."""


@dataclass(frozen=True, eq=False)
class PreferenceModel:
    """A fitted score. Items are indexed as in the sequences that it was fitted on.

    Attributes:
        vectors: (num_items, d) float32 unit rows; zero rows for items that were not met.
        first: (3, d, hidden) float32 weights of user, item and their product.
        bias: (hidden,) float32.
        second: (hidden,) float32.
        auc: probability that a held-out positive scores above a negative.
        num_held_out: held-out positives behind `auc`.
    """

    vectors: np.ndarray
    first: np.ndarray
    bias: np.ndarray
    second: np.ndarray
    auc: float
    num_held_out: int

    def scores(self, histories: Sequence[np.ndarray]) -> np.ndarray:
        """(len(histories), num_items); -inf for items that were not met."""
        met = self.vectors.any(axis=1)
        scores = np.full((len(histories), len(self.vectors)), -np.inf)
        for row, history in enumerate(histories):
            scores[row, met] = self.pairs(user_vector(self.vectors, history), self.vectors[met])
        return scores

    def pairs(self, user: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Scores (n,) of `items` (n, d) for one user (d,), or for as many users (n, d)."""
        of_user, of_item, of_product = self.first
        hidden = user @ of_user + items @ of_item + (user * items) @ of_product + self.bias
        score: np.ndarray = np.maximum(hidden, 0.0) @ self.second
        return score


def user_vector(vectors: np.ndarray, history: np.ndarray) -> np.ndarray:
    """The mean of the history's vectors at length 1, (d,); zero without a history."""
    mean = vectors[history].sum(axis=0) if len(history) else np.zeros(vectors.shape[1], vectors.dtype)
    unit: np.ndarray = mean / max(float(np.linalg.norm(mean)), 1e-12)
    return unit


def fit_preference(
    train: Sequence[np.ndarray], num_items: int, config: PreferenceModelConfig | None = None
) -> PreferenceModel:
    """Fit and judge a model on train sequences.

    Args:
        train: per user, item indices in order (``Split.train()``).
        num_items: size of the catalogue that they index.
        config: settings.

    Raises:
        InputError: nothing can be held out, or the held-out AUC is below `PreferenceModelConfig.min_auc`.
    """
    config = config or PreferenceModelConfig()
    rng = np.random.default_rng(config.seed)
    kept = [sequence[:-1] if len(sequence) >= 3 else sequence for sequence in train]
    vectors = cooccurrence_embeddings(kept, num_items, config.embedding_size, config.seed)
    counts = np.bincount(np.concatenate(kept), minlength=num_items)
    met = counts > 0

    # 1. One (user, next item) per position; users as they were before it.
    owners = np.repeat(np.arange(len(kept)), [max(len(sequence) - 1, 0) for sequence in kept])
    users = np.concatenate([vectors[:0], *(np.cumsum(vectors[sequence], axis=0)[:-1] for sequence in kept)])
    users /= np.linalg.norm(users, axis=1, keepdims=True).clip(min=1e-12)
    items = np.concatenate([np.zeros(0, np.int64), *(sequence[1:] for sequence in kept)])
    held = [row for row, sequence in enumerate(train) if len(sequence) >= 3 and met[sequence[-1]]]
    if not held or not len(items):
        raise InputError(
            "No preference score can be learned: no user has three train events, the last of an item met elsewhere.",
            hint="leave the reward 'preference' out",
        )
    # 2. Weights, then the AUC on what was held out. Only the judge's negatives know the held-out events.
    first, bias, second = _train(vectors, users, items, owners, _Negatives(kept, counts, rng), config)
    bare = PreferenceModel(vectors, first, bias, second, auc=float("nan"), num_held_out=len(held))
    judges = np.array([user_vector(vectors, kept[row]) for row in held])
    positive = bare.pairs(judges, vectors[[train[row][-1] for row in held]])
    negatives = _Negatives(train, counts, rng)(np.array(held), config.num_negatives)
    wins = [
        (positive > (score := bare.pairs(judges, vectors[column]))).mean() + (positive == score).mean() / 2
        for column in negatives.T
    ]
    auc = float(np.mean(wins))
    if auc < config.min_auc:
        raise InputError(
            f"The learned preference score orders held-out pairs with an AUC of {auc:.3f} ({len(held)} users); at "
            f"least {config.min_auc} is asked for.",
            hint="leave the reward 'preference' out, train it longer (epochs), or lower min_auc on purpose",
        )
    return PreferenceModel(vectors, first, bias, second, auc, len(held))


class _Negatives:
    """Draws items as often as they are met, none of the user's own where the catalogue allows it."""

    def __init__(self, train: Sequence[np.ndarray], counts: np.ndarray, rng: np.random.Generator) -> None:
        self._own = [set(sequence.tolist()) for sequence in train]
        self._share = counts / counts.sum()
        self._rng = rng

    def __call__(self, owners: np.ndarray, count: int) -> np.ndarray:
        """(len(owners), count) items."""
        drawn = self._rng.choice(len(self._share), size=(len(owners), count), p=self._share)
        for _ in range(10):  # a tenth of the catalogue in a history leaves 1e-10 of collisions
            own = np.array(
                [[item in self._own[owner] for item in row] for owner, row in zip(owners, drawn, strict=True)]
            )
            if not own.any():
                break
            drawn[own] = self._rng.choice(len(self._share), size=int(own.sum()), p=self._share)
        return drawn


def _train(
    vectors: np.ndarray,
    users: np.ndarray,
    items: np.ndarray,
    owners: np.ndarray,
    draw: _Negatives,
    config: PreferenceModelConfig,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Fit the network by binary cross-entropy; returns `first`, `bias`, `second`."""
    import torch
    from torch.nn.functional import binary_cross_entropy_with_logits as cross_entropy

    generator = torch.Generator().manual_seed(config.seed)
    size, hidden = vectors.shape[1], config.hidden_size
    first = (torch.randn(3, size, hidden, generator=generator) / size**0.5).requires_grad_()
    bias = torch.zeros(hidden, requires_grad=True)
    second = (torch.randn(hidden, generator=generator) / hidden**0.5).requires_grad_()
    optimizer = torch.optim.Adam([first, bias, second], lr=config.learning_rate)
    table, of_user = torch.from_numpy(vectors), torch.from_numpy(users)
    for _ in range(config.epochs):
        candidates = torch.from_numpy(np.concatenate([items[:, None], draw(owners, config.num_negatives)], axis=1))
        order = torch.randperm(len(items), generator=generator)
        for batch in torch.split(order, config.batch_size):
            user, item = of_user[batch][:, None], table[candidates[batch]]
            hidden_units = (user @ first[0] + item @ first[1] + (user * item) @ first[2] + bias).relu()
            logits = hidden_units @ second
            labels = torch.zeros_like(logits)
            labels[:, 0] = 1.0
            loss = cross_entropy(logits, labels, pos_weight=torch.tensor(float(config.num_negatives)))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return first.detach().numpy(), bias.detach().numpy(), second.detach().numpy()
