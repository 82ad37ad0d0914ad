"""From groups to what one forward reads: rewards, advantages, and the trees of what is left to learn from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from llmrec.train.grpo.config import GRPOStageConfig
from llmrec.train.grpo.estimators import has_variance
from llmrec.train.grpo.rollouts import Group, Row, Written
from llmrec.train.monitor.record import drawn_items
from llmrec.train.prefix_tree import TreeRow
from llmrec.train.rewards.compose import RewardSet


@dataclass(frozen=True)
class Paid:
    """A group and its rewards.

    Attributes:
        row: of the data set.
        group: what was drawn.
        parts: (m, rewards), NaN where one does not apply.
        total: (m,) what is learned from; an item that no reward applies to has the group's mean.
    """

    row: Row
    group: Group
    parts: np.ndarray
    total: np.ndarray

    @property
    def kept(self) -> bool:
        """Whether there is anything to learn from the group."""
        return has_variance(self.total)


@dataclass(frozen=True)
class Batch:
    """The groups of one forward.

    Attributes:
        tree: prompts with the completions to score: those of groups with variance, then the target where it is wanted.
        rollout: (rows,) places of the groups' completions among all of them.
        target: (prompts,) places of the targets; empty without an anchor.
        advantages: (rows,).
        weight: (rows,) of each item within its group.
        mask: (rows, longest) int64, tokens of the groups' completions that are learned from.
    """

    tree: list[TreeRow]
    rollout: Tensor
    target: Tensor
    advantages: Tensor
    weight: Tensor
    mask: Tensor


def pay(rewards: RewardSet, rows: Sequence[Row], groups: Sequence[Group]) -> list[Paid]:
    """Give every group its rewards, in one call for all of them."""
    sizes = [len(group.items) for group in groups]
    columns = {
        name: [row[name] for row, size in zip(rows, sizes, strict=True) for _ in range(size)]
        for name in ("row_id", "target", "history", "continuation")
    }
    if written := [group.written for group in groups if group.written]:
        columns["beams"] = [list(beams) for each in written for beams in each.beams]
    columns["log_probability"] = np.concatenate([group.log_probabilities for group in groups]).tolist()
    ids = [completion.tolist() for group in groups for completion in group.completions]
    parts = rewards.parts(ids, **columns)
    cuts = np.cumsum(sizes)[:-1]
    totals = rewards.total(parts, np.split(np.arange(len(ids)), cuts))
    return [
        Paid(row, group, own, _filled(total, group))
        for row, group, own, total in zip(rows, groups, np.split(parts, cuts), np.split(totals, cuts), strict=True)
    ]


def make_batch(
    paid: Sequence[Paid], settings: GRPOStageConfig, sid_of: Mapping[str, np.ndarray], device: torch.device
) -> Batch:
    """The batch of some prompts; groups without variance are left out, their targets are not."""
    tree: list[TreeRow] = []
    rollout: list[int] = []
    target: list[int] = []
    kept = [one for one in paid if one.kept]
    place = 0
    masks: list[np.ndarray] = []
    for one in paid:
        completions, text, learned = _to_score(one.group) if one.kept else ([], [], [])
        masks += learned
        rollout += range(place, place + len(completions))
        if settings.anchor:
            target.append(place + len(completions))
            completions.append(sid_of[one.row["target"]])
            text.append(0)
        if completions:
            tree.append(TreeRow(one.row["prompt_ids"], completions, one.group.allowed, text))
            place += len(completions)
    longest = max(map(len, masks), default=0)
    mask = np.array([np.pad(each, (0, longest - len(each))) for each in masks]).reshape(len(masks), longest)
    advantages = [one.group.weights.advantages(one.total, scale=settings.scale_rewards) for one in kept]
    return Batch(
        tree=tree,
        rollout=torch.tensor(rollout, dtype=torch.long, device=device),
        target=torch.tensor(target, dtype=torch.long, device=device),
        advantages=_tensor(advantages, device),
        weight=_tensor([one.group.weights.weights for one in kept], device),
        mask=torch.tensor(mask, dtype=torch.long, device=device),
    )


def record(paid: Sequence[Paid], rewards: RewardSet, percentile: np.ndarray) -> dict[str, float]:
    """The monitor's fields of a rollout, of what the policy named itself; rewards are means by the items' weights.

    Args:
        percentile: (n_items,) popularity of the table's rows.
    """
    there = [one for one in paid if len(one.group.named[0])]
    named = [one.group.named for one in paid]
    pairs = [(one.parts, weights) for one, (_, weights) in zip(paid, named, strict=True) if len(weights)]
    means = np.mean([weights @ np.nan_to_num(parts[: len(weights)]) for parts, weights in pairs], axis=0)
    masses = [one.group.legal_mass for one in there if one.group.legal_mass is not None]
    kept = sum(one.kept for one in paid)
    return {
        "reward": float(means @ np.array(rewards.weights)),
        **{f"reward/{name}": float(mean) for name, mean in zip(rewards.names, means, strict=True)},
        "zero_variance": 1 - kept / len(paid),
        "groups": float(len(paid)),
        "dropped": float(len(paid) - kept),
        "legal_rate": float(np.concatenate([one.group.legal for one in there]).mean()),
        **({"legal_mass": float(np.mean(masses))} if masses else {}),
        **_written([one.group.written for one in paid if one.group.written]),
        **drawn_items([items for items, _ in named], [weights for _, weights in named], percentile),
    }


def _written(groups: Sequence[Written]) -> dict[str, float]:
    """How long thoughts are, and how many of them the policy ended itself."""
    if not groups:
        return {}
    tokens = [mask[:text].sum() for each in groups for mask, text in zip(each.learned, each.text, strict=True)]
    closed = np.concatenate([each.closed for each in groups])
    return {"thought_tokens": float(np.mean(tokens)), "thoughts_closed": float(closed.mean())}


def _to_score(group: Group) -> tuple[list[np.ndarray], list[int], list[np.ndarray]]:
    """Completions up to the last token that is learned from, how many of their tokens are text, and which count."""
    if group.written is None:
        return list(group.completions), [0] * len(group.items), [np.ones(len(each), bool) for each in group.completions]
    ends = [int(np.flatnonzero(learned)[-1]) + 1 for learned in group.written.learned]
    completions = [each[:end] for each, end in zip(group.completions, ends, strict=True)]
    text = np.minimum(group.written.text, ends).tolist()
    return completions, text, [learned[:end] for learned, end in zip(group.written.learned, ends, strict=True)]


def _filled(total: np.ndarray, group: Group) -> np.ndarray:
    """`total` with the weighted mean of the others where no reward applies, so that such an item has no advantage."""
    there = ~np.isnan(total)
    filled: np.ndarray = np.nan_to_num(total)
    if there.all() or not there.any():
        return filled
    weights = group.weights.weights[there]
    filled = np.where(there, total, weights @ total[there] / weights.sum())
    return filled


def _tensor(arrays: Sequence[np.ndarray], device: torch.device) -> Tensor:
    flat = np.concatenate([np.zeros(0), *arrays])
    return torch.tensor(flat, dtype=torch.float32, device=device)
