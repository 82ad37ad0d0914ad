"""Every built-in quantiser survives its file, and damaged or foreign files are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pydantic import Field, TypeAdapter

from llmrec.config import Config, build_config
from llmrec.errors import ConfigError, InputError, MismatchError
from llmrec.sid_vocab.behaviour_signal import BehaviourSignal
from llmrec.sid_vocab.quantizer import FittedQuantizer
from llmrec.sid_vocab.quantizer_files import FILE, load_quantizer, save_quantizer
from llmrec.sid_vocab.quantizers import QUANTIZERS, QuantizerConfig, fit_quantizer, make_quantizer
from llmrec.sid_vocab.rq_kmeans import RQKMeansConfig
from llmrec.sid_vocab.table import SIDTable
from llmrec.testing.quantizer_conformance import SMALL_QUANTIZERS


def vectors(seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(6, 12))[np.arange(90) % 6] + 0.3 * rng.normal(size=(90, 12))).astype(np.float32)


def config_of(name: str) -> QuantizerConfig:
    return TypeAdapter(QuantizerConfig).validate_python(SMALL_QUANTIZERS[name])


def fit(name: str) -> FittedQuantizer:
    """Fitted to `vectors`, whose last columns are their behaviour where the quantiser asks for it."""
    return fit_quantizer(config_of(name), vectors(), BehaviourSignal(vectors()[:, 8:], np.empty((0, 2), np.int64)))


def table_of(fitted: FittedQuantizer) -> SIDTable:
    return SIDTable(
        item_ids=tuple(map(str, range(90))),
        codes=fitted.encode_jointly(vectors()),
        codebook_sizes=tuple(len(book) for book in fitted.codebooks),
        codebooks=fitted.codebooks,
    )


@pytest.mark.parametrize("name", QUANTIZERS)
def test_a_saved_quantizer_encodes_new_items_alike(name: str, tmp_path: Path) -> None:
    config, fitted = config_of(name), fit(name)
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


@pytest.mark.parametrize("name", QUANTIZERS)
def test_a_file_cut_in_half_is_refused(name: str, tmp_path: Path) -> None:
    fitted = fit(name)
    save_quantizer(tmp_path, config_of(name), fitted)
    content = (tmp_path / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="cannot be read") as caught:
        load_quantizer(tmp_path, table_of(fitted))
    assert "copy the folder again" in str(caught.value)
    table_of(fitted).save(tmp_path)
    books = tmp_path / "codebooks" / "codebooks.safetensors"
    books.write_bytes(books.read_bytes()[: books.stat().st_size // 2])
    with pytest.raises(InputError, match=r"SID table in .* cannot be read"):
        SIDTable.load(tmp_path)


def test_every_built_in_has_a_config_and_the_name_tells_which() -> None:
    assert {config_of(name).name for name in QUANTIZERS} == set(QUANTIZERS)
    assert TypeAdapter(QuantizerConfig).validate_python({"codebook_size": 4}) == RQKMeansConfig(codebook_size=4)


class Recipe(Config):
    quantizer: QuantizerConfig = Field(default_factory=RQKMeansConfig)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"name": "rq-kmean"}, "quantizer: no quantizer is called 'rq-kmean'; did you mean 'rq-kmeans'?"),
        ({"name": "x"}, "quantizer: no quantizer is called 'x'; there are rq-kmeans, balanced-rq-kmeans, sinkhorn"),
        (7, "quantizer: a quantizer is a group of settings, not 7"),
        ({"codebook_sise": 8}, "quantizer.codebook_sise: unknown key; did you mean 'codebook_size'"),
        ({"name": "fsq", "grid": [1]}, "quantizer.grid.0: input should be greater than or equal to 2"),
        ({"name": "fsq", "gird": [3]}, "quantizer.gird: unknown key; did you mean 'grid'?"),
        ({"name": "fsq", "epoch": 3}, "quantizer.epoch: unknown key; there are for fsq name, num_levels, grid"),
        ({"name": "rq-vae", "hidden_size": 3}, "quantizer.hidden_size: unknown key; did you mean 'hidden_sizes'?"),
        ({"name": "rq-vae", "alignmnt": 3}, "quantizer.alignmnt: unknown key; did you mean 'alignment'?"),
        ({"name": "rq-opq", "num_levels": 2, "product_levels": 2}, "quantizer: product_levels 2 leaves no residual"),
    ],
)
def test_mistakes_in_a_recipe_name_the_key_alone(given: object, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_config(Recipe, {"quantizer": given}, source="recipe")
    assert message in str(caught.value)
    assert "1 problem:" in str(caught.value)


def test_all_mistakes_of_a_quantizer_come_together() -> None:
    with pytest.raises(ConfigError) as caught:
        build_config(Recipe, {"quantizer": {"name": "rq-vae", "epoch": 1, "latent_size": 0}}, source="recipe")
    assert caught.value.problems == (
        "quantizer.latent_size: input should be greater than or equal to 1 (given 0)",
        "quantizer.epoch: unknown key; did you mean 'epochs'?",
    )


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
