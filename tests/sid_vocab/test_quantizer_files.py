"""Every built-in quantiser survives its file, and damaged or foreign files are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pydantic import Field, TypeAdapter

from llmrec.config import Config, build_config
from llmrec.errors import ConfigError, InputError, MismatchError
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


def test_every_built_in_has_a_config_and_the_name_tells_which() -> None:
    assert {config_of(name).name for name in QUANTIZERS} == set(QUANTIZERS)
    assert TypeAdapter(QuantizerConfig).validate_python({"codebook_size": 4}) == RQKMeansConfig(codebook_size=4)


class Recipe(Config):
    quantizer: QuantizerConfig = Field(default_factory=RQKMeansConfig)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"name": "rq-kmean"}, "quantizer: no quantizer is called 'rq-kmean'; there are rq-kmeans, balanced-rq-kmeans"),
        (7, "quantizer: a quantizer is a group of settings, not 7"),
        ({"codebook_sise": 8}, "quantizer.codebook_sise: unknown key; did you mean 'codebook_size'"),
        ({"name": "fsq", "grid": [1]}, "quantizer.grid.0: input should be greater than or equal to 2"),
        ({"name": "opq", "product_levels": 2}, "quantizer.product_levels: unknown key"),
    ],
)
def test_mistakes_in_a_recipe_name_the_key_alone(given: object, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_config(Recipe, {"quantizer": given}, source="recipe")
    assert message in str(caught.value)
    assert "1 problem:" in str(caught.value)


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
