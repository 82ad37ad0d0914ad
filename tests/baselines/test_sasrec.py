"""SASRec learns an order, repeats itself for a seed, chooses its checkpoint on valid and sees no future."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec.baselines import SASRec, SASRecConfig, Validation
from llmrec.baselines.sasrec import cut_windows
from llmrec.baselines.sasrec_network import SASRecNetwork
from llmrec.errors import InputError

NUM_ITEMS = 14  # item 13 is never seen in train
TINY = {
    "embedding_size": 16,
    "history_window": 6,
    "epochs": 30,
    "learning_rate": 5e-3,
    "batch_size": 8,
    "dropout": 0.1,
}


def walks(count: int = 48, seed: int = 0) -> list[np.ndarray]:
    """Walks of 4 to 11 steps on a ring of 13 items, steps of 1 for even users and 2 for odd ones.

    The last item alone does not tell what comes next: the model has to look at the one before.
    """
    rng = np.random.default_rng(seed)
    return [
        ((rng.integers(0, 13) + np.arange(rng.integers(4, 12)) * (1 + user % 2)) % 13).astype(np.int32)
        for user in range(count)
    ]


@pytest.fixture(scope="module")
def fitted():
    return SASRec(SASRecConfig(**TINY)).fit(walks(), NUM_ITEMS)


def test_learns_to_continue_by_order(fitted) -> None:
    fresh = walks(40, seed=9)
    scores = fitted.scores([walk[:-1] for walk in fresh])
    # Half could be guessed from the last item alone.
    assert (scores.argmax(axis=1) == [walk[-1] for walk in fresh]).mean() > 0.8
    assert fitted.losses[-1] < 0.5 * fitted.losses[0]
    assert (fitted.epoch, fitted.valid_ndcg) == (30, ())


def test_behaviour_vectors(fitted) -> None:
    vectors = fitted.item_embeddings()
    assert (vectors.shape, vectors.dtype) == ((NUM_ITEMS, 16), np.float32)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), [1.0] * 13 + [0.0], atol=1e-5)


def test_scores_do_not_depend_on_the_batch_or_on_events_before_the_window(fitted) -> None:
    histories = [np.array([3, 4, 5]), np.array([], dtype=np.int32), np.array([1, 2, 3, 4, 5, 6, 7, 8]), np.array([9])]
    together = fitted.scores(histories)
    assert together.shape == (4, NUM_ITEMS)
    for row, history in enumerate(histories):
        np.testing.assert_allclose(fitted.scores([history])[0], together[row], atol=1e-5)
    np.testing.assert_allclose(fitted.scores([np.array([0, 0, 3, 4, 5, 6, 7, 8])])[0], together[2], atol=1e-5)
    assert fitted.scores([]).shape == (0, NUM_ITEMS)


def test_same_seed_same_model_and_the_callers_random_state_stays() -> None:
    short = SASRecConfig(**{**TINY, "epochs": 2})
    before = torch.random.get_rng_state()
    one, two = (SASRec(short).fit(walks(), NUM_ITEMS) for _ in range(2))
    assert torch.equal(before, torch.random.get_rng_state())
    other = SASRec(short.model_copy(update={"seed": 1})).fit(walks(), NUM_ITEMS)
    histories = [np.array([1, 2])]
    np.testing.assert_array_equal(one.scores(histories), two.scores(histories))
    assert not np.allclose(one.scores(histories), other.scores(histories))


def test_checkpoint_is_the_best_valid_epoch_and_training_stops() -> None:
    """Validation on reversed walks gets worse while the model learns, so that an early epoch is kept."""
    train = walks()
    backwards = [walk[:0:-1] for walk in train]
    validation = Validation(backwards, np.array([walk[0] for walk in train]), filtered=False)
    seen: list[tuple[int, int, float]] = []
    config = SASRecConfig(**{**TINY, "patience": 3})
    model = SASRec(config).fit(train, NUM_ITEMS, validation=validation, progress=lambda *call: seen.append(call))
    assert model.epoch == 1 + int(np.argmax(model.valid_ndcg))
    assert len(model.valid_ndcg) == model.epoch + 3 < 30
    assert seen == [(epoch, 30, value) for epoch, value in enumerate(model.valid_ndcg, start=1)]
    # What was kept is that epoch's model: training for as many epochs without validation gives the same scores.
    alone = SASRec(config.model_copy(update={"epochs": model.epoch})).fit(train, NUM_ITEMS)
    np.testing.assert_array_equal(alone.scores(backwards), model.scores(backwards))


def test_progress_without_validation_reports_nan() -> None:
    seen: list[float] = []
    SASRec(SASRecConfig(**{**TINY, "epochs": 1})).fit(walks(4), NUM_ITEMS, progress=lambda *call: seen.append(call[2]))
    assert len(seen) == 1
    assert math.isnan(seen[0])


def test_no_position_sees_the_future_or_the_padding() -> None:
    torch.manual_seed(0)
    network = SASRecNetwork(NUM_ITEMS, 16, 6, num_layers=2, num_heads=2, dropout=0.0).eval()
    items, real = torch.randint(0, NUM_ITEMS, (3, 6)), torch.ones(3, 6, dtype=torch.bool)
    real[:, :2] = False
    changed = items.clone()
    changed[:, :2] = (changed[:, :2] + 1) % NUM_ITEMS  # padding
    changed[:, 5] = (changed[:, 5] + 1) % NUM_ITEMS  # the future of positions 2 to 4
    with torch.no_grad():
        one, two = network(items, real), network(changed, real)
    torch.testing.assert_close(one[:, 2:5], two[:, 2:5])
    assert not torch.allclose(one[:, 5], two[:, 5])


@settings(deadline=None)  # a busy machine is no failure
@given(st.integers(0, 40), st.integers(1, 7), st.integers(0, 1000))
def test_windows_predict_every_event_but_the_first_once(length: int, window: int, seed: int) -> None:
    sequence = np.arange(length)
    pieces = list(cut_windows(sequence, window, np.random.default_rng(seed)))
    assert [event for piece in pieces for event in piece[1:]] == list(range(1, length))
    assert all(2 <= len(piece) <= window + 1 for piece in pieces)
    assert all((np.diff(piece) == 1).all() for piece in pieces)
    if 2 <= length <= window + 1:
        assert len(pieces) == 1


def test_what_cannot_be_trained_is_refused() -> None:
    with pytest.raises(InputError, match="no next item"):
        SASRec().fit([np.array([1]), np.array([2])], NUM_ITEMS)
    with pytest.raises(InputError, match="3 heads"):
        SASRec(SASRecConfig(num_heads=3))
