"""Several rewards as one: the built-in ones by name, their settings in a recipe, and how they are added up.

    rewards:
      parts:
        hit: {}
        prefix_depth: {weight: 0.3}
        my_shop.rewards:OnOffer: {weight: 0.1}    # one's own, as module:name
      normalise: group

The sum is weighted. With ``normalise: group`` each reward is first brought to mean 0 and spread 1 *within its group*
(GDPO, arXiv:2601.05242): rewards of any scale then count as their weights say, and different mixtures do not collapse
into one value. With ``none`` the raw values are added, and a reward counts as much as it spreads. Both are TRL's
(`multi_objective_aggregation`), so that TRL's own trainer does the same as `RewardSet.total`. Mind that a spread of
almost nothing becomes 1 with ``group``: noise in a reward that is nearly solved counts in full.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pydantic import Field, field_validator

from llmrec.config import Config, build_config
from llmrec.errors import InputError
from llmrec.train.rewards.answer_format import AnswerFormat
from llmrec.train.rewards.base import Reward, RewardConfig, Values, checked
from llmrec.train.rewards.best_beam import BestBeam
from llmrec.train.rewards.context import RewardContext
from llmrec.train.rewards.diversity import Diversity
from llmrec.train.rewards.grounded import Grounded
from llmrec.train.rewards.hit import Hit
from llmrec.train.rewards.legal import Legal
from llmrec.train.rewards.ndcg import ListNDCG
from llmrec.train.rewards.novelty import Novelty
from llmrec.train.rewards.path_consistency import PathConsistency
from llmrec.train.rewards.popularity import PopularityOnly
from llmrec.train.rewards.popularity_debias import PopularityDebias
from llmrec.train.rewards.prefix_depth import PrefixDepth
from llmrec.train.rewards.rank import RankAware
from llmrec.train.rewards.scored import Preference, Teacher
from llmrec.train.rewards.subsequence import CommonSubsequence
from llmrec.train.rewards.text_similarity import TextSimilarity

REWARDS: dict[str, type[Reward]] = {
    "hit": Hit,
    "prefix_depth": PrefixDepth,
    "rank": RankAware,
    "ndcg": ListNDCG,
    "common_subsequence": CommonSubsequence,
    "best_beam": BestBeam,
    "legal": Legal,
    "format": AnswerFormat,
    "path_consistency": PathConsistency,
    "grounded": Grounded,
    "teacher": Teacher,
    "preference": Preference,
    "text_similarity": TextSimilarity,
    "diversity": Diversity,
    "novelty": Novelty,
    "popularity_debias": PopularityDebias,
    "popularity_only": PopularityOnly,
}
"""Built-in rewards by name: those that know the target, those about form, those about what an item is like."""

RewardFunction = Callable[..., Values]
"""A callable of TRL's signature."""

_SPREAD_FLOOR = 1e-4  # TRL's


class RewardsConfig(Config):
    """The ``rewards:`` part of a recipe."""

    parts: dict[str, dict[str, Any]] = Field(default={"hit": {}})
    """Rewards by name (`REWARDS`, or ``module:name``) with their settings, ``weight`` among them."""
    normalise: Literal["none", "group"] = "group"
    """What is done to each reward before the weighted sum; see the module."""

    @field_validator("parts")
    @classmethod
    def _known_rewards(cls, parts: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        problems = [] if parts else [f"no reward is named; known are {', '.join(REWARDS)}"]
        for name, settings in parts.items():
            if ":" in name:
                continue
            if name not in REWARDS:
                near = difflib.get_close_matches(name, REWARDS, n=1)
                advice = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(REWARDS)}"
                problems.append(f"{name!r} is no reward; {advice}")
                continue
            try:
                build_config(REWARDS[name].config_class, settings, source=f"reward {name}")
            except InputError as error:
                problems.append(error.message.replace("\n  - ", " "))
        if problems:
            raise ValueError("; ".join(problems))
        return parts

    def config_of(self, name: str) -> Any:
        """The settings of the built-in reward `name`, defaults included."""
        return build_config(REWARDS[name].config_class, self.parts[name], source=f"reward {name}")

    def needs(self) -> set[str]:
        """Fields of `RewardContext` that the built-in rewards of this run need."""
        return {field for name in self.parts if name in REWARDS for field in REWARDS[name].needs}


@dataclass(frozen=True, eq=False)
class RewardSet:
    """Rewards that are paid together."""

    rewards: tuple[RewardFunction, ...]
    names: tuple[str, ...]
    weights: tuple[float, ...]
    normalise: Literal["none", "group"]

    def trl_arguments(self) -> tuple[list[RewardFunction], dict[str, Any]]:
        """`reward_funcs` of TRL's GRPOTrainer, and what its GRPOConfig needs besides."""
        aggregation = {"none": "sum_then_normalize", "group": "normalize_then_sum"}[self.normalise]
        return list(self.rewards), {
            "reward_weights": list(self.weights),
            "multi_objective_aggregation": aggregation,
        }

    def parts(self, completion_ids: Sequence[Sequence[int]], **columns: Any) -> np.ndarray:
        """(completions, rewards) float64, NaN where a reward does not apply; for use without TRL's trainer."""
        empty = [""] * len(completion_ids)
        values = [
            reward(prompts=empty, completions=empty, completion_ids=completion_ids, **columns)
            for reward in self.rewards
        ]
        return np.array(values, dtype=np.float64).reshape(len(self.rewards), len(completion_ids)).T

    def total(self, parts: np.ndarray, groups: Sequence[np.ndarray]) -> np.ndarray:
        """The weighted sum of `parts` per completion, normalised as this set says; NaN where no reward applies.

        Args:
            parts: (completions, rewards).
            groups: places of the completions of each group.
        """
        scaled = parts.copy()
        if self.normalise == "group":
            for group in groups:
                scaled[group] = _standard(parts[group])
        total: np.ndarray = np.nansum(scaled * np.asarray(self.weights), axis=1)
        return np.where(np.isnan(parts).all(axis=1), np.nan, total)


def make_rewards(config: RewardsConfig, context: RewardContext) -> RewardSet:
    """The rewards that `config` names, over `context`.

    Raises:
        InputError: the context lacks what a reward needs, or ``module:name`` is not a reward.
    """
    rewards: list[RewardFunction] = []
    weights: list[float] = []
    for name, settings in config.parts.items():
        if name in REWARDS:
            reward = REWARDS[name](context, config.config_of(name))
            rewards.append(reward)
            weights.append(reward.config.weight)
        else:
            function, weight = _third_party(name, settings, context)
            rewards.append(function)
            weights.append(weight)
    return RewardSet(tuple(rewards), tuple(config.parts), tuple(weights), config.normalise)


class CheckedFunction:
    """A plain function of TRL's signature whose values are checked as those of `Reward` are."""

    def __init__(self, name: str, function: Callable[..., Sequence[float | None]]) -> None:
        self.__name__ = name
        self._function = function

    def __call__(self, **columns: Any) -> Values:
        """TRL's call. Raises InputError for a wrong length, NaN or infinity."""
        return checked(self.__name__, self._function(**columns), len(columns["completion_ids"]))


def _third_party(name: str, settings: Mapping[str, Any], context: RewardContext) -> tuple[RewardFunction, float]:
    """A `Reward` class or a plain function from ``module:name``, and its weight."""
    module, _, attribute = name.partition(":")
    try:
        found = vars(importlib.import_module(module))[attribute]
    except (ImportError, KeyError, ValueError) as error:
        raise InputError(
            f"The reward {name!r} cannot be imported: {error}", hint="write it as package.module:name"
        ) from error
    if isinstance(found, type) and issubclass(found, Reward):
        reward = found(context, build_config(found.config_class, settings, source=f"reward {name}"))
        return reward, float(reward.config.weight)
    if not callable(found):
        raise InputError(f"The reward {name!r} is {found!r}, which cannot be called.")
    return CheckedFunction(attribute, found), build_config(RewardConfig, settings, source=f"reward {name}").weight


def _standard(values: np.ndarray) -> np.ndarray:
    """Columns at mean 0 and spread 1 (n - 1 in the variance), NaN left out; a column without spread becomes 0."""
    there = ~np.isnan(values)
    count = there.sum(axis=0)
    mean = np.where(there, values, 0.0).sum(axis=0) / np.maximum(count, 1)
    square = np.where(there, (values - mean) ** 2, 0.0).sum(axis=0)
    standard: np.ndarray = (values - mean) / (np.sqrt(square / np.maximum(count - 1, 1)) + _SPREAD_FLOOR)
    return standard
