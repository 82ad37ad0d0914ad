"""Rollouts: the groups of items that a policy is trained on, from the constrained search.

`SampledItems` draws without replacement (`llmrec.decode.sample`) and keeps the draws' probabilities, which the
estimator needs. `BestBeams` takes the best beams: not draws, but hard negatives beside the target, as MiniOneRec and
ReRe train (a contrast, no estimate of the gradient of the mean reward). Every item exists: completions are read off the
trie, and a group is distinct. A third kind, whose completions begin with a thought and may name an item twice, is
`llmrec.train.grpo.thought_rollouts`.

What a prompt draws depends on the seed, the step's number and the prompt's, whatever else is in the batch: processes
and resumed runs draw the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from llmrec.decode.sample import SampleResult
from llmrec.decode.searcher import Searcher
from llmrec.decode.trie_filter import RowFilter
from llmrec.sid_vocab.table import ACTIVE, SIDTable
from llmrec.train.grpo.config import RolloutConfig
from llmrec.train.grpo.estimators import ESTIMATORS, GroupWeights

Row = Mapping[str, Any]
"""A row of the data set (`llmrec.train.grpo.prompts.Prompt.columns`)."""


@dataclass(frozen=True)
class Written:
    """What the completions of a group hold before their items.

    Attributes:
        text: (m,) tokens of each completion that stand before its SID.
        learned: m bool arrays, the tokens of each completion that are learned from; at least one of each.
        beams: m lists of item ids that were found behind the text, best first.
        closed: (m,) bool, whether the policy ended the text itself.
    """

    text: np.ndarray
    learned: tuple[np.ndarray, ...]
    beams: tuple[tuple[str, ...], ...]
    closed: np.ndarray


@dataclass(frozen=True)
class Group:
    """What one prompt was answered with.

    Attributes:
        items: (m,) table rows; distinct, but where `written` is there.
        completions: m arrays of token ids.
        weights: how the items count.
        log_probabilities: (m,) of the items, under the policy that wrote them.
        allowed: what could be drawn.
        legal: (m,) bool, whether the completion names a living item.
        legal_mass: probability the policy leaves to what could be drawn, of its codes; None where it is not known.
        added: items at the end that the policy did not name.
        written: of completions that begin with a text; None where they are SIDs alone.
    """

    items: np.ndarray
    completions: tuple[np.ndarray, ...]
    weights: GroupWeights
    log_probabilities: np.ndarray
    allowed: RowFilter | None
    legal: np.ndarray
    legal_mass: float | None = None
    added: int = 0
    written: Written | None = None

    @property
    def named(self) -> tuple[np.ndarray, np.ndarray]:
        """Items that the policy named itself, and their weights, summing to 1 where there are any."""
        count = len(self.items) - self.added
        weights = self.weights.weights[:count]
        return self.items[:count], weights / weights.sum() if count else weights


class Rollouts(Protocol):
    """Answers prompts with groups."""

    def draw(self, rows: Sequence[Row], seed: int) -> list[Group]:
        """A group per row.

        Args:
            rows: with ``number``, ``prompt_ids``, ``target`` and ``history``.
            seed: of this step.
        """
        ...


class Searched:
    """What all kinds share: prompts, filters and completions."""

    def __init__(self, searcher: Searcher, table: SIDTable, config: RolloutConfig) -> None:
        self._searcher = searcher
        self._table = table
        self._config = config
        self._sids = table.sid_token_ids()
        self._living = table.status == ACTIVE
        self._filters: dict[int, RowFilter | None] = {}

    def _asked(self, rows: Sequence[Row]) -> tuple[list[np.ndarray], list[RowFilter | None]]:
        prompts = [np.asarray(row["prompt_ids"], dtype=np.int64) for row in rows]
        return prompts, [self._allowed(row) for row in rows]

    def _allowed(self, row: Row) -> RowFilter | None:
        number = int(row["number"])
        if number not in self._filters:
            rows = [self._table.row(item_id) for item_id in row["history"]]
            exclude = self._config.exclude_history and bool(rows)
            self._filters[number] = self._searcher.trie.exclusion(rows) if exclude else None
        return self._filters[number]

    def _made(
        self,
        items: np.ndarray,
        weights: GroupWeights,
        log_probabilities: np.ndarray,
        allowed: RowFilter | None,
        **more: Any,
    ) -> Group:
        return Group(items, tuple(self._sids[items]), weights, log_probabilities, allowed, self._living[items], **more)


class SampledItems(Searched):
    """Distinct items without replacement, with their probabilities.

    Args:
        searcher: of the policy; a normalisation other than "legal" tells the mass of legal items, and changes no draw.
        table: with token ids.
        config: group size, temperature, estimator.
    """

    def draw(self, rows: Sequence[Row], seed: int) -> list[Group]:
        """See `Rollouts.draw`."""
        prompts, filters = self._asked(rows)
        samples = self._searcher.sample(
            prompts,
            top_k=self._config.group_size,
            seed=seed,
            temperature=self._config.temperature,
            prompt_ids=[int(row["number"]) for row in rows],
            excluded=filters,
        )
        return [self._group(sample, allowed) for sample, allowed in zip(samples, filters, strict=True)]

    def _group(self, sample: SampleResult, allowed: RowFilter | None) -> Group:
        weights = ESTIMATORS[self._config.estimator](sample)
        mass = None
        if self._config.temperature == 1.0 and sample.normalise != "legal" and len(sample.items):
            trie = self._searcher.trie
            sharing = np.array([len(trie.members(int(leaf), allowed)) for leaf in trie.leaf_of[sample.items]])
            drawn = sample.log_probabilities + np.log(sharing)  # of the SID, among what could be drawn
            mass = float(weights.weights @ np.exp(np.minimum(sample.scores - drawn, 0.0)))
        return self._made(sample.items, weights, sample.log_probabilities, allowed, legal_mass=mass)


class BestBeams(Searched):
    """The best beams, equally weighted, with the target where that is asked for.

    Args:
        searcher: of the policy.
        table: with token ids.
        config: group size and whether to add the target.
    """

    def draw(self, rows: Sequence[Row], seed: int) -> list[Group]:
        """See `Rollouts.draw`; nothing is drawn, and `seed` decides nothing."""
        prompts, filters = self._asked(rows)
        size = self._config.group_size
        found = self._searcher.beam(prompts, num_beams=size, top_k=size, excluded=filters)
        targets = [self._table.row(str(row["target"])) for row in rows]
        added = [
            place
            for place, (target, beams) in enumerate(zip(targets, found, strict=True))
            if self._config.add_target and target not in beams.items
        ]
        legal = self._searcher.normalise == "legal"  # elsewhere an item's score depends on no filter
        scores = self._searcher.score(
            [prompts[place] for place in added],
            [np.array([targets[place]]) for place in added],
            excluded=[filters[place] for place in added] if legal else None,
        )
        of_target = {place: float(score[0]) for place, score in zip(added, scores, strict=True)}
        groups = []
        for place, (beams, allowed) in enumerate(zip(found, filters, strict=True)):
            items, values = beams.items, beams.scores
            if place in of_target:
                items = np.append(items[: size - 1], targets[place])
                values = np.append(values[: size - 1], of_target[place])
            equal = GroupWeights.equal(len(items))
            groups.append(self._made(items, equal, values, allowed, added=int(place in of_target)))
        return groups


ROLLOUTS: dict[str, type[SampledItems] | type[BestBeams]] = {"sample": SampledItems, "beam": BestBeams}
"""Kinds of rollout by `RolloutConfig.kind`."""
