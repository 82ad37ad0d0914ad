"""What every kind of tokenizer must do once it is extended: subclass `TokenizerConformance` and say how to make one.

Example:
    >>> class TestMine(TokenizerConformance):
    ...     @classmethod
    ...     def make(cls):
    ...         return AutoTokenizer.from_pretrained("folder/of/mine")
"""

from __future__ import annotations

import tempfile
import unicodedata
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmrec.sid_vocab.extend import Extension, extend_vocabulary, sid_tokens
from llmrec.sid_vocab.table import SIDTable
from llmrec.sid_vocab.text_codec import TextCodec
from llmrec.testing.worlds import tiny_items, tiny_model

MARKERS = ("<a_1>", "<b_0>", "<a_1><b_2><c_0>", "<|im_end|>", "<|im_start|>", "</s>", "<s>", "<|endoftext|>", "<think>")
"""Spellings that item and user text may contain and that must stay text."""

_plain = st.text(max_size=30).filter(lambda text: not any(marker in text for marker in MARKERS))
_hostile = st.lists(st.one_of(st.sampled_from(MARKERS), st.text(max_size=6), st.just(" ")), max_size=6).map("".join)

# Every subclass runs the inherited method on a world of its own; hypothesis warns of that because a failing example
# of one subclass is replayed on the others, which is wanted here.
_settings = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.differing_executors])


@dataclass(frozen=True)
class TokenizerWorld:
    """One tokenizer before and after its extension."""

    base: Any
    """As the base model has it."""
    extension: Extension
    """What extending a copy of it gave."""
    tokenizers: tuple[Any, Any]
    """The extended tokenizer, and the same after ``save_pretrained`` and ``AutoTokenizer.from_pretrained``."""
    codecs: tuple[TextCodec, TextCodec]
    """A codec of each of the two."""


class TokenizerConformance:
    """SIDs are exactly their tokens, text is what it was before, nothing in a text becomes a marker."""

    @classmethod
    def make(cls) -> Any:
        """A fresh tokenizer without SID tokens; to be overridden."""
        raise NotImplementedError

    @pytest.fixture(scope="class")
    @classmethod
    def world(cls) -> TokenizerWorld:
        """The tokenizer under test, extended by 12 tokens of three levels, the last a suffix."""
        from transformers import AutoTokenizer

        items = tiny_items(20)
        codes = np.stack([np.arange(20) // 5, np.arange(20) % 5, np.zeros(20, int)], axis=1)
        table = SIDTable(tuple(item["item_id"] for item in items), codes, codebook_sizes=(4, 5, 3), has_suffix=True)
        tokenizer = cls.make()
        extension = extend_vocabulary(tiny_model(tokenizer), tokenizer, table, init="mean")
        with tempfile.TemporaryDirectory() as folder:
            tokenizer.save_pretrained(folder)
            reloaded = AutoTokenizer.from_pretrained(folder)
        tokens = sid_tokens(table)
        return TokenizerWorld(
            base=cls.make(),
            extension=extension,
            tokenizers=(tokenizer, reloaded),
            codecs=(TextCodec(tokenizer, tokens), TextCodec(reloaded, tokens)),
        )

    def test_every_sid_is_exactly_its_tokens(self, world: TokenizerWorld) -> None:
        """The string form of a SID gives its token ids, nothing between, and decodes to itself."""
        table = world.extension.table
        for tokenizer in world.tokenizers:
            for item_id, ids in zip(table.item_ids, table.sid_token_ids().tolist(), strict=True):
                assert tokenizer.encode(table.text(item_id), add_special_tokens=False) == ids
                assert tokenizer.decode(ids, skip_special_tokens=True) == table.text(item_id)

    def test_a_history_decodes_back(self, world: TokenizerWorld) -> None:
        """Many SIDs in a row are one token each, and every token has its own id."""
        table = world.extension.table
        text = "".join(table.text(item_id) for item_id in table.item_ids)
        for tokenizer in world.tokenizers:
            ids = tokenizer.encode(text, add_special_tokens=False)
            assert ids == table.sid_token_ids().ravel().tolist()
            assert tokenizer.decode(ids) == text
            assert len(set(tokenizer.convert_tokens_to_ids(sid_tokens(table)))) == table.num_tokens

    def test_sid_tokens_are_not_special(self, world: TokenizerWorld) -> None:
        """They do not vanish with ``skip_special_tokens`` and do not count as control tokens."""
        for tokenizer in world.tokenizers:
            assert not set(tokenizer.all_special_ids) & set(world.extension.table.sid_token_ids().ravel().tolist())
            assert tokenizer.all_special_tokens == world.base.all_special_tokens

    @_settings
    @given(text=_plain)
    def test_text_is_encoded_and_decoded_as_before_the_extension(self, world: TokenizerWorld, text: str) -> None:
        """A text without markers gives the base tokenizer's ids, through the tokenizer and through the codec."""
        for tokenizer, codec in zip(world.tokenizers, world.codecs, strict=True):
            ids = world.base.encode(text)
            assert tokenizer.encode(text) == ids
            assert tokenizer.decode(ids) == world.base.decode(ids)
            assert codec.encode(text) == world.base.encode(text, add_special_tokens=False)

    @_settings
    @given(text=_hostile)
    def test_markers_in_a_text_stay_text(self, world: TokenizerWorld, text: str) -> None:
        """Through the codec no control token and no SID comes out, and the characters are kept."""
        forbidden = set(world.base.all_special_ids) | set(range(world.extension.first_row, len(world.tokenizers[0])))
        if world.base.unk_token_id is not None:  # the unknown token stands for characters, not for control
            forbidden.discard(world.base.unk_token_id)
        expected = TextCodec(world.base).encode(text)
        for tokenizer, codec in zip(world.tokenizers, world.codecs, strict=True):
            ids = codec.encode(text)
            assert not forbidden & set(ids)
            assert ids == expected
            assert codec.encode_batch([text, "a", text]) == [ids, codec.encode("a"), ids]
            decoded = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
            assert _characters(decoded) == _characters(text)

    def test_bos_is_what_the_tokenizer_puts_in_front(self, world: TokenizerWorld) -> None:
        """``bos_ids`` and `encode` add up to the tokenizer's own encoding of a plain text."""
        for tokenizer, codec in zip(world.tokenizers, world.codecs, strict=True):
            ids = tokenizer.encode("The Golden River")
            assert ids[: len(codec.bos_ids)] == list(codec.bos_ids)
            assert ids[len(codec.bos_ids) :][: len(codec.encode("The Golden River"))] == codec.encode(
                "The Golden River"
            )


def _characters(text: str) -> str:
    # SentencePiece writes a space as U+2581 and may add one in front; public tokenizers normalise to NFC.
    return unicodedata.normalize("NFC", text.replace("▁", " ")).lstrip(" ")
