"""`RewardSet` against the installed TRL: the sum that its trainer forms, the names that it gives."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from trl.trainer.utils import get_callable_name, is_async_callable, nanstd

from llmrec.testing.reward_conformance import reward_context
from llmrec.train.rewards.compose import RewardsConfig, RewardSet, make_rewards

_value = st.sampled_from([0.0, 0.25, 1.0, -1.0, float("nan")])
_matrix = st.lists(st.tuples(_value, _value, _value), min_size=8, max_size=8)


@settings(deadline=None)  # the first call of torch takes longer than the others
@given(_matrix, st.sampled_from(["none", "group"]))
def test_the_sum_is_trls(values: list[tuple[float, ...]], normalise: Literal["none", "group"]) -> None:
    weights = (1.0, -0.5, 2.0)
    ours = RewardSet((), ("a", "b", "c"), weights, normalise).total(np.array(values), [np.arange(4), np.arange(4, 8)])
    parts = torch.tensor(values, dtype=torch.float64)
    unscorable = torch.isnan(parts).all(dim=1)
    if normalise == "group":  # the lines of GRPOTrainer for "normalize_then_sum"
        grouped = parts.view(-1, 4, 3)
        mean, spread = torch.nanmean(grouped, dim=1, keepdim=True), nanstd(grouped, dim=1, keepdim=True)
        parts = ((grouped - mean) / (spread + 1e-4)).view(-1, 3)
    theirs = (parts * torch.tensor(weights, dtype=torch.float64)).nansum(dim=1)
    theirs[unscorable] = torch.nan
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-5, atol=1e-6)  # TRL's spread passes through float32


def test_trl_can_name_and_call_our_rewards() -> None:
    parts: dict[str, dict[str, float]] = {"hit": {}, "rank": {}, "novelty": {"weight": 0.5}}
    functions, arguments = make_rewards(RewardsConfig(parts=parts), reward_context()).trl_arguments()
    assert [get_callable_name(function) for function in functions] == ["hit", "rank", "novelty"]
    assert not any(is_async_callable(function) for function in functions)
    assert arguments["reward_weights"] == [1.0, 1.0, 0.5]
