"""Every built-in quantiser survives its file, and damaged or foreign files are refused."""

from __future__ import annotations

import typing
from pathlib import Path

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from llmrec.errors import InputError, MismatchError
from llmrec.sid_vocab.quantizer import QUANTIZERS, FittedQuantizer, QuantizerConfig, make_quantizer
from llmrec.sid_vocab.quantizer_files import FILE, load_quantizer, save_quantizer
from llmrec.sid_vocab.rq_kmeans import RQKMeansConfig
from llmrec.sid_vocab.table import SIDTable

SMALL: dict[str, dict[str, object]] = {name: {"num_levels": 3, "codebook_size": 8} for name in QUANTIZERS} | {
    "fsq": {"num_levels": 2, "grid": [4, 2]},
    "rq-vae": {"num_levels": 3, "codebook_size": 8, "latent_size": 6, "hidden_sizes": [16], "epochs": 3},
}


def vectors(seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(6, 12))[np.arange(90) % 6] + 0.3 * rng.normal(size=(90, 12))).astype(np.float32)


def config_of(name: str) -> QuantizerConfig:
    return TypeAdapter(QuantizerConfig).validate_python({"name": name, **SMALL[name]})


def table_of(fitted: FittedQuantizer) -> SIDTable:
    return SIDTable(
        item_ids=tuple(map(str, range(90))),
        codes=fitted.encode_jointly(vectors()),
        codebook_sizes=tuple(len(book) for book in fitted.codebooks),
        codebooks=fitted.codebooks,
    )


@pytest.mark.parametrize("name", QUANTIZERS)
def test_a_saved_quantizer_encodes_new_items_alike(name: str, tmp_path: Path) -> None:
    config = config_of(name)
    fitted = make_quantizer(config).fit(vectors())
    save_quantizer(tmp_path, config, fitted)
    loaded = load_quantizer(tmp_path, table_of(fitted))
    new = vectors(seed=5)
    codes = fitted.encode(new)
    np.testing.assert_array_equal(loaded.encode(new), codes)
    np.testing.assert_array_equal(loaded.encode_jointly(new), fitted.encode_jointly(new))
    np.testing.assert_array_equal(loaded.reconstruct(codes), fitted.reconstruct(codes))
    joint = fitted.encode_jointly(new)
    assert joint.shape == codes.shape
    assert joint.dtype == np.int32
    assert config.codebook_sizes == tuple(len(book) for book in fitted.codebooks)


def test_every_built_in_is_in_the_union_and_has_its_name() -> None:
    union = typing.get_args(typing.get_args(QuantizerConfig)[0])
    names = {
        name for tagged in union for name in typing.get_args(typing.get_args(tagged)[0].model_fields["name"].annotation)
    }
    assert names == set(QUANTIZERS)
    assert TypeAdapter(QuantizerConfig).validate_python({"codebook_size": 4}) == RQKMeansConfig(codebook_size=4)
    with pytest.raises(ValidationError, match="balanced-rq-kmeans"):
        TypeAdapter(QuantizerConfig).validate_python({"name": "rq-kmean"})


def test_damaged_missing_and_foreign_files_are_refused(tmp_path: Path) -> None:
    config = RQKMeansConfig(num_levels=2, codebook_size=4)
    fitted = make_quantizer(config).fit(vectors())
    table = table_of(fitted)
    with pytest.raises(InputError, match="is missing"):
        load_quantizer(tmp_path, table)
    other = make_quantizer(config.model_copy(update={"seed": 1})).fit(vectors())
    save_quantizer(tmp_path, config, other)
    with pytest.raises(MismatchError, match="not the one of this SID table"):
        load_quantizer(tmp_path, table)
    save_quantizer(tmp_path, config.model_copy(update={"num_levels": 3}), fitted)
    with pytest.raises(InputError, match="lacks codebook_2"):
        load_quantizer(tmp_path, table)
    save_quantizer(tmp_path, config, fitted)
    content = (tmp_path / FILE).read_bytes()
    for cut in (len(content) // 2, 4):
        (tmp_path / FILE).write_bytes(content[:cut])
        with pytest.raises(InputError, match="cannot be read"):
            load_quantizer(tmp_path, table)
