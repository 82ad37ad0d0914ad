"""The table of paired tests: the first model against every other, per mode, on the same users.

Sign flips on NDCG@10; exact McNemar on Recall@10, or sign flips there, too, where shared SIDs make hits fractional.
Holm's adjustment runs over all tests of a mode.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from llmrec.eval.config import Mode
from llmrec.metrics import PerUser, holm, mcnemar_exact, sign_flip_test


def paired_tests(values: Mapping[Mode, Mapping[str, PerUser]], *, seed: int) -> list[dict[str, Any]]:
    """Rows of the table, one per mode, other model and metric.

    Args:
        values: mode to model to per-user metrics, all of the same users in the same order; the first model is tested
            against the others.
        seed: of the sign flips.
    """
    table: list[dict[str, Any]] = []
    for mode, models in values.items():
        rows: list[dict[str, Any]] = []
        names = list(models)
        for other in names[1:]:
            for metric in ("NDCG@10", "Recall@10"):
                ours, theirs = models[names[0]][metric], models[other][metric]
                hits = metric == "Recall@10" and bool(np.isin(np.concatenate([ours, theirs]), (0, 1)).all())
                test = mcnemar_exact(ours, theirs) if hits else sign_flip_test(ours, theirs, seed=seed)
                rows.append(
                    {
                        "mode": mode,
                        "model": names[0],
                        "against": other,
                        "metric": metric,
                        "test": "exact McNemar" if hits else "sign flip",
                        "difference": test.difference,
                        "p_value": test.p_value,
                        "num_different": test.num_different,
                    }
                )
        for row, adjusted in zip(rows, holm([row["p_value"] for row in rows]), strict=True):
            row["p_holm"] = float(adjusted)
        table += rows
    return table
