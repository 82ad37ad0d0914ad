"""The context of a run, and the preference model with its held-out AUC; train events alone."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from llmrec.baselines import make_baseline
from llmrec.data.dataset import Dataset
from llmrec.errors import InputError
from llmrec.sid_vocab.table import SIDTable
from llmrec.testing.reward_conformance import RewardConformance
from llmrec.train.rewards.build import build_context
from llmrec.train.rewards.compose import RewardsConfig, make_rewards
from llmrec.train.rewards.preference_model import PreferenceModelConfig, fit_preference, user_vector

SMALL = {"model": {"embedding_size": 16, "hidden_size": 8, "epochs": 20}}


@pytest.fixture(scope="module")
def table(tiny_dataset: Dataset) -> SIDTable:
    numbers = np.arange(len(tiny_dataset.catalog.item_ids))[::-1]  # rows are not in the order of the split
    return SIDTable(
        item_ids=tuple(tiny_dataset.catalog.item_ids[number] for number in numbers),
        codes=np.stack([numbers % 6, numbers // 6], axis=1).astype(np.int32),
        codebook_sizes=(6, 10),
        token_ids=(np.arange(100, 106), np.arange(200, 210)),
    )


def test_only_what_is_needed_is_built(tiny_dataset: Dataset, table: SIDTable) -> None:
    bare = build_context(RewardsConfig(), table, tiny_dataset.split, stop_ids=[0], closing_ids=[7])
    assert (bare.train_counts, bare.text_vectors, bare.teacher, bare.preference) == (None, None, None, None)
    assert (bare.closing_ids, bare.stop_ids) == ((7,), {0})
    with pytest.raises(InputError, match="no text vectors"):
        build_context(RewardsConfig(parts={"text_similarity": {}}), table, tiny_dataset.split)


def test_a_run_with_everything(tiny_dataset: Dataset, table: SIDTable) -> None:
    split = tiny_dataset.split
    config = RewardsConfig(
        parts={"hit": {}, "novelty": {}, "text_similarity": {}, "teacher": {"baseline": "ease"}, "preference": SMALL}
    )
    vectors = np.eye(table.num_items)
    context = build_context(config, table, split, text_vectors=vectors)
    counts = dict(zip(split.items, split.train_counts(), strict=True))
    assert context.train_counts is not None
    assert context.train_counts.tolist() == [counts.get(item_id, 0) for item_id in table.item_ids]

    history = split.train()[3]
    rows = np.array([table.row(split.items[item]) for item in history])
    assert context.teacher is not None
    (ours,) = context.teacher.scores([rows])
    (theirs,) = make_baseline("ease").fit(split.train(), len(split.items)).scores([history])
    for item_id, score in zip(split.items, theirs, strict=True):
        assert ours[table.row(item_id)] == score
    unknown = sorted(set(table.item_ids) - set(split.items))
    assert all(ours[table.row(item_id)] == -np.inf for item_id in unknown)

    ids = table.sid_token_ids()[rows[-2:]].tolist()
    columns = {"target": [split.items[history[-1]]] * 2, "history": [[split.items[item] for item in history[:-1]]] * 2}
    parts = make_rewards(config, context).parts(ids, **columns)
    assert np.isfinite(parts).all()
    assert (parts[1] == 1).all()  # the target


def test_items_outside_the_evaluation_catalogue_are_not_judged(tiny_dataset: Dataset, table: SIDTable) -> None:
    split = dataclasses.replace(
        tiny_dataset.split,
        items=(*tiny_dataset.split.items[:-1], "gone"),  # the table knows no "gone", the split no longer its last item
    )
    context = build_context(RewardsConfig(parts={"teacher": {}, "novelty": {}}), table, split)
    lost = table.row(tiny_dataset.split.items[-1])
    assert context.teacher is not None
    assert context.train_counts is not None
    (scores,) = context.teacher.scores([np.array([lost])])
    assert scores[lost] == -np.inf
    assert context.train_counts[lost] == 0


def pattern(num_users: int, seed: int) -> list[np.ndarray]:
    """Users who stay within one of four kinds of ten items."""
    rng = np.random.default_rng(seed)
    return [rng.choice(10, size=8, replace=False) + 10 * (user % 4) for user in range(num_users)]


def test_the_auc_says_whether_there_is_something_to_learn() -> None:
    config = PreferenceModelConfig(embedding_size=8, hidden_size=8, epochs=20)
    model = fit_preference(pattern(120, 0), 45, config)
    assert model.auc > 0.8
    assert model.num_held_out == 120
    scores = model.scores([np.array([3, 4]), np.array([], dtype=np.int64)])
    assert scores.shape == (2, 45)
    assert scores[0, :10].min() > scores[0, 10:40].max()
    assert (scores[:, 40:] == -np.inf).all()
    assert np.isfinite(scores[1, :40]).all()
    again = fit_preference(pattern(120, 0), 45, config)
    np.testing.assert_array_equal(again.first, model.first)
    assert again.auc == model.auc

    noise = np.random.default_rng(1)
    without = [noise.choice(40, size=8, replace=False) for _ in range(120)]
    with pytest.raises(InputError, match=r"AUC of 0\.[45]\d\d \(120 users\)"):
        fit_preference(without, 40, config)


def test_the_held_out_event_moves_nothing() -> None:
    config = PreferenceModelConfig(embedding_size=8, epochs=2, min_auc=0)
    train = pattern(60, 0)
    changed = [np.concatenate([sequence[:-1], [39 - sequence[-1]]]) for sequence in train]
    one, two = fit_preference(train, 40, config), fit_preference(changed, 40, config)
    for ours, theirs in ((one.vectors, two.vectors), (one.first, two.first), (one.second, two.second)):
        np.testing.assert_array_equal(ours, theirs)
    assert one.auc > two.auc


def test_nothing_to_hold_out_is_refused() -> None:
    with pytest.raises(InputError, match="three train events"):
        fit_preference([np.array([0, 1]), np.array([1, 2])], 3, PreferenceModelConfig(embedding_size=2))


def test_a_user_is_a_unit_vector() -> None:
    vectors = np.array([[1.0, 0], [0, 1]], dtype=np.float32)
    assert user_vector(vectors, np.array([0, 1])) == pytest.approx([0.5**0.5] * 2)
    assert user_vector(vectors, np.array([], dtype=np.int64)).tolist() == [0, 0]


def test_the_conformance_class_asks_for_a_reward() -> None:
    with pytest.raises(NotImplementedError):
        RewardConformance().make()
