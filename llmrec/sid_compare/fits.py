"""Fit the tokenizers and measure their tables, each in a folder of its own that its content names.

fits/<key>/recipe.yaml   name, data, sid: `llmrec sid report` and `llmrec sid assign` take this folder
fits/<key>/sid/          the table, its quantiser, report.json
fits/<key>/measured.json seconds, and what behaviour and categories say about the codes
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import yaml
from rich.console import Console

from llmrec.pipeline_parts import sid_parts
from llmrec.sid_compare.config import Arm, content_key
from llmrec.sid_vocab.table import SIDTable
from llmrec.stages import StageCache, quiet_libraries

if TYPE_CHECKING:
    from llmrec.data.dataset import Dataset
    from llmrec.pipeline_config import PipelineConfig

MEASURES_VERSION = 1  # raise it when the same table is measured differently


@dataclass(frozen=True)
class Fit:
    """A fitted tokenizer."""

    folder: Path
    table: SIDTable
    health: Mapping[str, Any]
    """`HealthReport.as_dict`."""
    measured: Mapping[str, Any]
    """``fit_s`` (behaviour vectors, quantiser, collisions), ``text_s`` (item texts to vectors, near 0 where they were
    kept), ``prefix_lift``, ``category_lift`` and ``pairs`` of `llmrec.sid_vocab.health`."""


def fit_arm(arm: Arm, dataset: Dataset, root: Path, console: Console) -> Fit:
    """Fit `arm` below `root`, unless that was done.

    Raises:
        DataError, InputError: see `llmrec.sid_vocab.build.build_table`.
    """
    parts = {**sid_parts(cast("PipelineConfig", arm), dataset), "measures": MEASURES_VERSION}  # reads arm.sid alone
    folder = root / "fits" / content_key(parts)
    sid, measured = folder / "sid", folder / "measured.json"

    def work(key: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        recipe = {"name": arm.name, "data": arm.data.model_dump(mode="json"), "sid": arm.sid.model_dump(mode="json")}
        (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
        measured.write_text(json.dumps(_fit(arm, dataset, sid), indent=2) + "\n", encoding="utf-8")

    StageCache(folder, console).run("sid", parts, [sid, measured], work)
    return Fit(
        folder,
        SIDTable.load(sid),
        json.loads((sid / "report.json").read_text(encoding="utf-8")),
        json.loads(measured.read_text(encoding="utf-8")),
    )


def _fit(arm: Arm, dataset: Dataset, folder: Path) -> dict[str, Any]:
    from llmrec.folders import written_beside
    from llmrec.sid_vocab.build import build_table_of
    from llmrec.sid_vocab.health import measure_meaning
    from llmrec.sid_vocab.report import as_plain

    quiet_libraries()
    start = time.perf_counter()
    _keep_text_vectors(arm, dataset)
    text_s = time.perf_counter() - start
    start = time.perf_counter()
    made = build_table_of(arm.sid, dataset)
    fit_s = time.perf_counter() - start
    with written_beside(folder, overwrite=True) as beside:
        made.save(beside)
    meaning = as_plain(measure_meaning(made.table, dataset.split, dataset.catalog))
    kept = {name: meaning[name] for name in ("pairs", "prefix_lift", "category_lift")}
    return {"fit_s": round(fit_s, 2), "text_s": round(text_s, 2), **kept}


def _keep_text_vectors(arm: Arm, dataset: Dataset) -> None:
    """Put the item texts' vectors into their cache, so that the first tokenizer's fit does not bear them alone."""
    from llmrec.sid_vocab.embeddings import embed_items
    from llmrec.sid_vocab.vector_cache import default_cache

    embeddings = arm.sid.embeddings
    if arm.sid.index is None and embeddings.source in ("text", "lm"):
        text_alone = embeddings.model_copy(update={"fusion": "none", "behaviour_weight": 0.0})
        embed_items(text_alone, dataset.catalog.item_ids, dataset.catalog.texts(), cache=default_cache())
