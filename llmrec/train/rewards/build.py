"""Build the `RewardContext` of a run: what its rewards need and nothing else, all of it from train alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from llmrec.baselines import Scorer, make_baseline
from llmrec.data.split import Split
from llmrec.errors import InputError
from llmrec.sid_vocab.table import SIDTable
from llmrec.train.rewards.compose import RewardsConfig
from llmrec.train.rewards.context import GroundingCheck, RewardContext
from llmrec.train.rewards.preference_model import fit_preference


@dataclass(frozen=True, eq=False)
class TableScorer:
    """A model of the evaluation catalogue (`Split.items`) that speaks of table rows.

    Attributes:
        scorer: the model.
        index: (n_items,) index into `Split.items` of each table row; -1 for a row that is not there.
    """

    scorer: Scorer
    index: np.ndarray

    def scores(self, histories: Sequence[np.ndarray]) -> np.ndarray:
        """(len(histories), n_items); -inf for items outside the evaluation catalogue, which histories skip."""
        known = [self.index[history] for history in histories]
        scores = np.asarray(self.scorer.scores([history[history >= 0] for history in known]), dtype=np.float64)
        return np.where(self.index >= 0, scores[:, self.index], -np.inf)


def build_context(
    config: RewardsConfig,
    table: SIDTable,
    split: Split,
    *,
    closing_ids: Sequence[int] = (),
    stop_ids: Iterable[int] = (),
    text_vectors: np.ndarray | None = None,
    grounding: GroundingCheck | None = None,
) -> RewardContext:
    """The context for the rewards that `config` names.

    Args:
        config: decides what is built; a teacher and a preference model are fitted here.
        table: with token ids.
        split: popularity, teacher and preference come from its train part.
        closing_ids: tokens that end a thought; ``()`` where completions have none.
        stop_ids: EOS, padding.
        text_vectors: (table.num_items, dim) unit vectors, where a reward reads them.
        grounding: checks what thoughts say, where completions have one.

    Raises:
        InputError: vectors are needed and not given, or a model cannot be fitted.
    """
    needs = config.needs()
    if "text_vectors" in needs and text_vectors is None:
        raise InputError(
            "A reward of this run compares texts, and no text vectors are given.",
            hint="leave out 'text_similarity', or give the vectors that the SIDs were made of",
        )
    row_of = {item_id: row for row, item_id in enumerate(table.item_ids)}
    index = np.full(table.num_items, -1, dtype=np.int64)
    for place, item_id in enumerate(split.items):
        if item_id in row_of:
            index[row_of[item_id]] = place
    teacher = preference = None
    if "teacher" in needs:
        settings = config.config_of("teacher")
        baseline = make_baseline(settings.baseline, settings.settings)
        teacher = TableScorer(baseline.fit(split.train(), len(split.items)), index)
    if "preference" in needs:
        settings = config.config_of("preference")
        preference = TableScorer(fit_preference(split.train(), len(split.items), settings.model), index)
    counts = np.where(index >= 0, split.train_counts()[index], 0) if "train_counts" in needs else None
    return RewardContext(
        table,
        closing_ids=tuple(closing_ids),
        stop_ids=frozenset(stop_ids),
        train_counts=counts,
        text_vectors=text_vectors if "text_vectors" in needs else None,
        teacher=teacher,
        preference=preference,
        grounding=grounding,
    )
