"""What a run starts from, and what its stages depend on: shared by the pipeline, its preview and the comparisons."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmrec.data.assets import sha256_file
from llmrec.sid_vocab import build

if TYPE_CHECKING:
    from llmrec.data.dataset import Dataset
    from llmrec.pipeline_config import PipelineConfig
    from llmrec.sid_vocab.extend import Extension
    from llmrec.sid_vocab.rows import Init
    from llmrec.sid_vocab.table import SIDTable

TRAIN_VERSION = 1  # raise it when the same settings train another model, so that cached stages run anew
EVAL_VERSION = 1  # likewise for evaluations


def extended_base(
    config: PipelineConfig, dataset: Dataset, table: SIDTable, init: Init | None = None
) -> tuple[Any, Extension]:
    """The recipe's base with untrained rows for the tokens of `table`; `init` replaces the recipe's."""
    from llmrec.sid_vocab.extend import extend_vocabulary
    from llmrec.train.base import make_base

    catalog = dataset.catalog
    model, tokenizer = make_base(config.base, catalog.texts(), config.seed)
    extension = extend_vocabulary(
        model,
        tokenizer,
        table,
        init=init or config.init,
        item_texts={item_id: catalog.title(item_id) for item_id in catalog.item_ids},
        seed=config.seed,
        pad_to_multiple=config.pad_to_multiple,
        grow=not config.spare_rows_only,
    )
    return model, extension


def sid_parts(config: PipelineConfig, dataset: Dataset) -> dict[str, Any]:
    """What the SIDs of a run depend on; a run whose stage ``sid`` was made of these has the SIDs of `config`."""
    sid = config.sid
    own_files = {sid.index.path} if sid.index else {sid.embeddings.path, sid.embeddings.ids}
    return {
        "sid": sid.model_dump(mode="json"),
        "sid_files": {name: sha256_file(Path(name).expanduser()) for name in sorted(filter(None, own_files))},
        "data": dataset.fingerprint,
        "version": build.VERSION,
    }


def file_stamps(folder: Path) -> dict[str, str]:
    """Size and time of a local base's files: hashing gigabytes at each start would take longer than it saves."""
    stats = {path.name: path.stat() for path in sorted(folder.glob("*")) if path.is_file()}
    return {name: f"{stat.st_size} bytes, time {stat.st_mtime_ns}" for name, stat in stats.items()}
