"""Sampling without replacement: how often items come, and the gradient estimates, against a small tree enumerated."""

from __future__ import annotations

from itertools import combinations, permutations
from typing import Any

import numpy as np
import pytest
import torch

from llmrec.decode.sample import SampleResult, sample_items
from llmrec.train.grpo.estimators import ESTIMATORS, GroupWeights, has_variance, importance, unordered_set
from tests.decode.table_expander import TableExpander, random_trie

ITEMS, DRAWN, SAMPLES = 9, 3, 3000


class Tree:
    """A tree of 9 items whose nodes have logits, what they give exactly, and samples of it."""

    def __init__(self, spread: float = 1.2) -> None:
        self.trie = random_trie(num_items=ITEMS, codebook_sizes=(3, 2, 2), seed=4)
        self.expander = TableExpander(self.trie, spread=spread, seed=2)
        self.rewards = np.random.default_rng(5).normal(size=ITEMS) * 2
        self.log_p, self.jacobian = self._exact()

    def _exact(self) -> tuple[np.ndarray, np.ndarray]:
        """(items,) log-probabilities and (items, logits) their gradient, from autograd over every item of the tree."""
        logits = [torch.tensor(level, requires_grad=True) for level in self.expander.logits[0]]
        log_p: dict[int, Any] = {0: torch.zeros((), dtype=torch.float64)}
        for level in range(self.trie.num_levels):
            grown: dict[int, Any] = {}
            for node, before in log_p.items():
                children = self.trie.children(level, np.array([node])).node
                gains = torch.log_softmax(logits[level + 1][children], 0)
                grown.update(zip(children.tolist(), before + gains, strict=True))
            log_p = grown
        rows = []
        for item in range(ITEMS):
            leaf = int(self.trie.leaf_of[item])
            rows.append(log_p[leaf] - np.log(len(self.trie.members(leaf))))
        grads = [torch.autograd.grad(row, logits[1:], retain_graph=True, allow_unused=True) for row in rows]
        jacobian = [np.concatenate([_or_zeros(*each) for each in zip(grad, logits[1:], strict=True)]) for grad in grads]
        return np.array([row.item() for row in rows]), np.array(jacobian)

    @property
    def gradient(self) -> np.ndarray:
        """Of the mean reward, by enumeration: sum of p R grad log p."""
        gradient: np.ndarray = (np.exp(self.log_p) * self.rewards) @ self.jacobian
        return gradient

    def samples(self, count: int, top_k: int = DRAWN) -> list[SampleResult]:
        return [sample_items(self.expander, [None], top_k=top_k, seed=1, prompt_ids=[i])[0] for i in range(count)]

    def estimates(self, samples: list[SampleResult], name: str) -> np.ndarray:
        """(samples, logits)."""
        estimator = ESTIMATORS[name]
        return np.array([
            estimator(sample).coefficients(self.rewards[sample.items]) @ self.jacobian[sample.items]
            for sample in samples
        ])  # fmt: skip


def _or_zeros(gradient: Any, like: Any) -> np.ndarray:
    found: np.ndarray = (torch.zeros_like(like) if gradient is None else gradient).detach().numpy()
    return found


@pytest.fixture(scope="module")
def tree() -> Tree:
    return Tree()


@pytest.fixture(scope="module")
def samples(tree: Tree) -> list[SampleResult]:
    return tree.samples(SAMPLES)


def set_probabilities(p: np.ndarray, size: int) -> dict[frozenset[int], float]:
    """Probability of every set drawn one after the other without replacement."""
    found = {}
    for members in combinations(range(len(p)), size):
        total = 0.0
        for order in permutations(members):
            left, value = 1.0, 1.0
            for item in order:
                value, left = value * p[item] / left, left - p[item]
            total += value
        found[frozenset(members)] = total
    return found


def test_sets_are_as_frequent_as_enumeration_says(tree: Tree, samples: list[SampleResult]) -> None:
    exact = set_probabilities(np.exp(tree.log_p), DRAWN)
    assert sum(exact.values()) == pytest.approx(1)
    seen = dict.fromkeys(exact, 0)
    for sample in samples:
        assert len(set(sample.items.tolist())) == DRAWN
        seen[frozenset(sample.items.tolist())] += 1
    expected = SAMPLES * np.array(list(exact.values()))
    error = (np.array(list(seen.values())) - expected) / np.sqrt(expected + 1)
    assert np.abs(error).max() < 4.5
    assert (error**2).mean() < 1.6


def test_the_unordered_set_gradient_is_that_of_the_enumeration(tree: Tree, samples: list[SampleResult]) -> None:
    found = tree.estimates(samples, "unordered_set")
    error = np.abs(found.mean(axis=0) - tree.gradient) / (found.std(axis=0) / np.sqrt(SAMPLES) + 1e-12)
    assert error.max() < 4


def test_the_normalised_gradient_is_close_and_its_bias_falls_with_the_items_drawn(
    tree: Tree, samples: list[SampleResult]
) -> None:
    size = np.linalg.norm(tree.gradient)
    few = np.linalg.norm(tree.estimates(samples, "importance").mean(axis=0) - tree.gradient) / size
    more = tree.samples(SAMPLES, top_k=6)
    many = np.linalg.norm(tree.estimates(more, "importance").mean(axis=0) - tree.gradient) / size
    assert few < 0.35
    assert many < 0.1
    assert many < few / 2


def test_a_plain_mean_over_distinct_items_is_not_the_gradient(tree: Tree, samples: list[SampleResult]) -> None:
    found = np.array([
        GroupWeights.equal(DRAWN).coefficients(tree.rewards[sample.items]) @ tree.jacobian[sample.items]
        for sample in samples
    ])  # fmt: skip
    distance = np.linalg.norm(found.mean(axis=0) - tree.gradient) / np.linalg.norm(tree.gradient)
    error = np.linalg.norm(found.std(axis=0) / np.sqrt(SAMPLES)) / np.linalg.norm(tree.gradient)
    assert distance > 5 * error
    importance_distance = np.linalg.norm(tree.estimates(samples, "importance").mean(axis=0) - tree.gradient)
    assert distance > 1.5 * importance_distance / np.linalg.norm(tree.gradient)


def test_leave_one_out_ratios_equal_those_of_enumerated_sets(tree: Tree) -> None:
    p = np.exp(tree.log_p)
    (sample,) = tree.samples(1)
    members = frozenset(sample.items.tolist())
    group = unordered_set(sample)
    whole = set_probabilities(p, DRAWN)[members]
    for place, item in enumerate(sample.items.tolist()):
        without = np.delete(p, item) / (1 - p[item])
        renamed = {i: i - (i > item) for i in range(ITEMS) if i != item}
        rest = frozenset(renamed[i] for i in members - {item})
        ratio = set_probabilities(without, DRAWN - 1)[rest] / whole
        assert group.weights[place] == pytest.approx(p[item] * ratio, rel=1e-6)
    np.testing.assert_allclose(group.weights.sum(), 1, rtol=1e-8)
    np.testing.assert_allclose(group.baseline.sum(axis=1), 1, rtol=1e-8)


@pytest.mark.parametrize("spread", [1.0, 12.0])
def test_of_all_items_both_are_the_exact_gradient(spread: float) -> None:
    tree = Tree(spread)
    (sample,) = tree.samples(1, top_k=ITEMS)
    for name in ESTIMATORS:
        np.testing.assert_allclose(tree.estimates([sample], name)[0], tree.gradient, atol=1e-6)


def test_the_same_reward_for_all_gives_no_advantage_and_is_told(samples: list[SampleResult]) -> None:
    same = np.full(DRAWN, 0.7)
    assert not has_variance(same)
    assert not has_variance(np.array([1.0]))
    assert has_variance(np.array([0.0, 0.0, 1.0]))
    for make in ESTIMATORS.values():
        np.testing.assert_allclose(make(samples[0]).advantages(same, scale=True), 0, atol=1e-6)


def test_with_equal_weights_advantages_are_grpos() -> None:
    rewards = np.array([1.0, 0.0, 0.0, 1.0])
    found = GroupWeights.equal(4).advantages(rewards, scale=True)
    np.testing.assert_allclose(found, (rewards - 0.5) / (0.5 + 1e-4))
    np.testing.assert_allclose(GroupWeights.equal(4).advantages(rewards, scale=False), rewards - 0.5)


def test_weights_stay_finite_where_the_policy_is_sure(samples: list[SampleResult]) -> None:
    log_p = np.array([-1e-9, -30.0, -60.0])
    sample = SampleResult(np.arange(3), log_p, log_p, np.array([1.0, -29.0, -61.0]), -62.0, "legal", 1)
    for make in (importance, unordered_set):
        group = make(sample)
        assert np.isfinite(group.weights).all()
        assert np.isfinite(group.baseline).all()
        assert group.weights.sum() == pytest.approx(1, abs=1e-6)
