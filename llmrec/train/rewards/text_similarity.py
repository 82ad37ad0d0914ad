"""Text similarity: the cosine of the answered item's text vector and the target's, negative ones counting 0.

A dense reward for misses that are at least about the same thing; no paper's own form is followed. The vectors may be
those that the SIDs were made of, or others of the catalogue. The target pays 1 exactly.

How it is hacked: by series and near-duplicates. Volume 2 for volume 3 pays almost everything, the item in the centre
of a genre pays well for the whole genre, and where texts are boilerplate, everything is similar: look at the mean
cosine of random pairs before trusting it."""

from __future__ import annotations

import numpy as np

from llmrec.train.rewards.base import RewardBatch
from llmrec.train.rewards.item_value import ItemValueReward


class TextSimilarity(ItemValueReward):
    """See the module's docstring."""

    name = "text_similarity"
    needs = ("text_vectors",)

    def item_values(self, batch: RewardBatch) -> list[np.ndarray]:
        """One array per different target."""
        vectors = self.context.text_vectors
        assert vectors is not None
        of_target = {row: np.clip(vectors @ vectors[row], 0.0, 1.0) for row in set(batch.targets)}
        return [of_target[row] for row in batch.targets]
