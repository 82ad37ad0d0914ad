"""The held-out metric beside the reward: NDCG@10 on valid users, never on test, as the model will be served.

The users are chosen by hash and are the same at every evaluation, so that two evaluations are compared user by user.
Nothing is fitted on their targets; choosing a checkpoint by them is what the valid part is for.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llmrec import processes
from llmrec.data.split import Split
from llmrec.decode.searcher import Searcher
from llmrec.errors import InputError
from llmrec.metrics import per_user_metrics, ranks_from_lists
from llmrec.prompts.renderer import Renderer
from llmrec.prompts.task import hash_number
from llmrec.sid_vocab.table import ACTIVE

METRIC = "NDCG@10"
_CUTOFF = 10


@dataclass(frozen=True)
class HeldOut:
    """Valid users to be asked again and again.

    Attributes:
        searcher: of the model, normalised as it will be served.
        prompts: per user, in the serving form.
        excluded: per user the table rows of the history; empty where repeats may be recommended.
        targets: (users,) table rows.
        num_beams: width of the search.
    """

    searcher: Searcher
    prompts: tuple[np.ndarray, ...]
    excluded: tuple[np.ndarray, ...]
    targets: np.ndarray
    num_beams: int

    @classmethod
    def of_split(
        cls,
        searcher: Searcher,
        renderer: Renderer,
        split: Split,
        *,
        users: int,
        window: int,
        max_length: int | None,
        exclude_history: bool,
        num_beams: int = 20,
    ) -> HeldOut:
        """Choose `users` valid users by hash.

        Raises:
            InputError: no valid target has an active SID.
        """
        table = renderer.table
        row_of = {item: row for row, item in enumerate(table.item_ids) if table.status[row] == ACTIVE}
        targets = split.targets("valid")
        chosen = [user for user in range(len(split.users)) if split.items[targets[user]] in row_of]
        if not chosen:
            raise InputError("No valid target has an active SID: the run could not be watched.")
        chosen = sorted(chosen, key=lambda user: hash_number(split.users[user]))[:users]
        histories = [[split.items[item] for item in split.history(user, "valid")] for user in chosen]
        return cls(
            searcher=searcher,
            prompts=tuple(
                renderer.sequence(history, window=window, max_length=max_length).input_ids for history in histories
            ),
            excluded=tuple(
                np.array([row_of[item] for item in history if item in row_of and exclude_history], dtype=np.int64)
                for history in histories
            ),
            targets=np.array([row_of[split.items[targets[user]]] for user in chosen]),
            num_beams=max(num_beams, _CUTOFF),
        )

    def measure(self) -> np.ndarray:
        """(users,) `METRIC` of every user; items that share a SID share its places. Processes share the work."""
        mine = slice(processes.index(), None, processes.count())
        values = np.empty(len(self.targets))
        for process, found in enumerate(processes.gathered(self._measure(mine))):
            values[process :: processes.count()] = found
        return values

    def _measure(self, users: slice) -> np.ndarray:
        if not len(self.targets[users]):  # more processes than users
            return np.zeros(0)
        found = self.searcher.beam(
            self.prompts[users], num_beams=self.num_beams, top_k=_CUTOFF, excluded=list(self.excluded[users])
        )
        lists = [[result.buckets[place] for place in dict.fromkeys(result.bucket_of.tolist())] for result in found]
        values: np.ndarray = per_user_metrics(ranks_from_lists(lists, self.targets[users]))[METRIC]
        return values


def remember(path: Path, values: np.ndarray) -> None:
    """Keep the values before the first step, for a resumed run to compare with."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        np.save(file, values, allow_pickle=False)


def remembered(path: Path) -> np.ndarray | None:
    """What `remember` has kept."""
    if not path.exists():
        return None
    values: np.ndarray = np.load(path, allow_pickle=False)
    return values
