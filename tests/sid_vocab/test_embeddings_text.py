"""Text vectors of sentence encoders and pooled language models, kept on disk by content and resumed after a kill."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from llmrec.config import build_config
from llmrec.errors import ConfigError, DataError, InputError
from llmrec.sid_vocab.embeddings import EmbeddingConfig, embed_items
from llmrec.sid_vocab.pooled_lm import PooledLM
from llmrec.sid_vocab.text_encoder import Encoded
from llmrec.sid_vocab.text_vectors import TextVectors, embed_texts
from llmrec.sid_vocab.vector_cache import VectorCache, text_key
from llmrec.testing.worlds import tiny_items, tiny_model, tiny_tokenizer

TITLES = [item["title"] for item in tiny_items(20)]
IDS = [str(row) for row in range(20)]


class Counted:
    """An encoder that counts its texts, and is killed after some of them."""

    reference = "counted"

    def __init__(self, identity: str = "ab" * 32, dies_after: int = 10**9) -> None:
        self.name, self.left, self.seen = identity, dies_after, 0

    def identity(self) -> str:
        return self.name

    def encode(self, texts: Sequence[str]) -> Encoded:
        self.left -= len(texts)
        if self.left < 0:
            raise KeyboardInterrupt
        self.seen += len(texts)
        vectors = np.array([[len(text), *text.encode()[:3]] for text in texts], np.float32)
        return Encoded(vectors, np.array([len(text) > 17 for text in texts]))


def run(encoder: Counted, texts: Sequence[str], cache: Path | None, **settings: int) -> TextVectors:
    ids = [f"item {row}" for row in range(len(texts))]
    return embed_texts(encoder, ids, texts, 2, cache=cache, shard_texts=settings.get("shard_texts", 4))


def test_a_second_run_encodes_nothing_and_gives_the_same(tmp_path: Path) -> None:
    texts = [*TITLES, TITLES[3]]
    bare = run(Counted(), texts, None)
    one, two = (run(Counted(), texts, tmp_path) for _ in range(2))
    assert (bare.encoded, one.encoded, two.encoded) == (20, 20, 0)
    for made in (one, two):
        np.testing.assert_array_equal(made.vectors, bare.vectors)
        assert made.notes == bare.notes
    count = sum(len(text) > 17 for text in texts)
    assert count
    assert bare.notes == (f"{count} texts are longer than counted reads and were cut",)


def test_a_killed_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    killed = Counted(dies_after=11)
    with pytest.raises(KeyboardInterrupt):
        run(killed, TITLES, tmp_path)
    assert killed.seen == 10
    resumed = Counted()
    made = run(resumed, TITLES, tmp_path)
    assert resumed.seen == 12  # two shards of four were kept, the third was not full
    np.testing.assert_array_equal(made.vectors, run(Counted(), TITLES, None).vectors)
    assert not list(tmp_path.rglob(".writing-*"))


def test_a_changed_item_list_is_never_served_by_old_vectors(tmp_path: Path) -> None:
    run(Counted(), TITLES, tmp_path)
    changed = [*TITLES[:5][::-1], "A title that is new", TITLES[7] + "!"]
    encoder = Counted()
    made = run(encoder, changed, tmp_path)
    assert encoder.seen == 2
    np.testing.assert_array_equal(made.vectors, run(Counted(), changed, None).vectors)
    other = Counted(identity="cd" * 32)
    assert run(other, TITLES, tmp_path).encoded == 20  # another encoder shares nothing
    assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == 2


@pytest.mark.parametrize("harm", ["cut", "flip", "other"])
def test_a_damaged_file_is_noticed_and_made_again(tmp_path: Path, harm: str) -> None:
    expected = run(Counted(), TITLES, tmp_path)
    shard = sorted(tmp_path.rglob("*.safetensors"))[1]
    raw = bytearray(shard.read_bytes())
    if harm == "cut":
        raw = raw[: len(raw) // 2]
    elif harm == "flip":
        raw[-1] ^= 1
    else:
        raw = bytearray(b"nothing of ours")
    shard.write_bytes(bytes(raw))
    made = run(Counted(), TITLES, tmp_path)
    assert made.encoded == 4
    np.testing.assert_array_equal(made.vectors, expected.vectors)
    assert made.notes[-1].startswith("1 damaged files of kept vectors were not used")


def test_vectors_that_cannot_be_used_are_not_kept(tmp_path: Path) -> None:
    class Broken(Counted):
        def encode(self, texts: Sequence[str]) -> Encoded:
            made = super().encode(texts)
            made.vectors[[text == TITLES[4] for text in texts]] = np.nan
            made.vectors[[text == TITLES[5] for text in texts]] = 0
            return made

    with pytest.raises(DataError, match=r"NaN or infinity, first: 'item 4'|are zero, first: 'item 5'"):
        run(Broken(), TITLES, tmp_path)
    known = VectorCache(tmp_path, "ab" * 32, "counted").read({text_key(t): row for row, t in enumerate(TITLES)})
    assert not {4, 5} & set(known.rows.tolist())


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="point LLMREC_CACHE to another folder"):
        run(Counted(), TITLES, tmp_path / "file")


@pytest.fixture(scope="module", params=["bpe", "spm"])
def lm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("lm")
    tokenizer = tiny_tokenizer(request.param)
    tiny_model(tokenizer, "llama" if request.param == "bpe" else "gemma2").save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def pooled_by_hand(encoder: PooledLM, text: str, pooling: str, max_length: int) -> np.ndarray:
    """One text alone, without padding."""
    import torch

    ids = encoder.tokenizer(text)["input_ids"][:max_length]
    with torch.no_grad():
        states = encoder.model(input_ids=torch.tensor([ids])).last_hidden_state[0]
    pooled = states.mean(dim=0) if pooling == "mean" else states[-1]
    return (pooled / pooled.norm()).numpy()


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_pooled_states_of_any_causal_lm(lm: str, pooling: str) -> None:
    encoder = PooledLM(lm, pooling, max_length=9)
    texts = [*TITLES[:6], "The Silent River " * 20]
    made = embed_texts(encoder, IDS[:7], texts, batch_size=3)
    assert made.vectors.shape == (7, 32)
    for row, text in enumerate(texts):
        np.testing.assert_allclose(made.vectors[row], pooled_by_hand(encoder, text, pooling, 9), atol=1e-5)
    lengths = [len(encoder.tokenizer(text)["input_ids"]) for text in texts]
    cut = sum(length > 9 for length in lengths)
    assert cut >= 1
    assert made.notes == (f"{cut} texts are longer than {lm} reads and were cut",)


def test_the_identity_follows_weights_and_settings(lm: str, tmp_path: Path) -> None:
    same, other = PooledLM(lm, "mean", 16).identity(), PooledLM(lm, "last", 16).identity()
    assert same == PooledLM(lm, "mean", 16).identity()
    tokenizer = tiny_tokenizer("bpe")
    tiny_model(tokenizer, seed=1).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert len({same, other, PooledLM(lm, "mean", 17).identity(), PooledLM(str(tmp_path)).identity()}) == 4


def test_a_config_with_a_language_model(lm: str, tmp_path: Path) -> None:
    config = EmbeddingConfig(source="lm", encoder=lm, pooling="last", batch_size=8)
    made = embed_items(config, IDS, TITLES, cache=tmp_path / "kept")
    again = embed_items(config, IDS[::-1], TITLES[::-1], cache=tmp_path / "kept")
    np.testing.assert_array_equal(again.vectors[::-1], made.vectors)
    assert list((tmp_path / "kept").rglob("about.json"))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="cannot be loaded"):
        PooledLM(str(tmp_path))
    with pytest.raises(ConfigError, match="needs a causal language model"):
        build_config(EmbeddingConfig, {"source": "lm"}, source="recipe")
