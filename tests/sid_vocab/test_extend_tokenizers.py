"""The conformance of every kind of tokenizer, and the kinds that leak control tokens on their own."""

import json
import pickle

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from llmrec.errors import InputError
from llmrec.sid_vocab.text_codec import TextCodec, encode_text
from llmrec.testing.tokenizer_conformance import TokenizerConformance
from llmrec.testing.worlds import tiny_tokenizer


class TestByteLevelBPE(TokenizerConformance):
    @classmethod
    def make(cls):
        return tiny_tokenizer("bpe")


class TestSentencePieceWithBOS(TokenizerConformance):
    @classmethod
    def make(cls):
        return tiny_tokenizer("spm")


class TestSentencePieceWithoutBOS(TokenizerConformance):
    @classmethod
    def make(cls):
        return tiny_tokenizer("spm-nobos")


def edited(**parts):
    """The byte-level tokenizer with parts of its model replaced (``ignore_merges``) or of its pre-tokenizer."""
    state = json.loads(tiny_tokenizer("bpe").backend_tokenizer.to_str())
    state["model"] |= parts
    state["pre_tokenizer"]["use_regex"] = False  # so that a whole spelling reaches the model as one word
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(state)), eos_token="<|im_end|>")


class TestBPEThatIgnoresMerges(TokenizerConformance):
    """Llama 3's setting: a word found in the vocabulary is taken whole, a control token's spelling too."""

    @classmethod
    def make(cls):
        return edited(ignore_merges=True)

    def test_split_special_tokens_alone_would_leak(self):
        tokenizer = self.make()
        assert tokenizer.encode("<|im_end|>", split_special_tokens=True) == [tokenizer.eos_token_id]
        assert tokenizer.eos_token_id not in encode_text(tokenizer, "<|im_end|>")


def unigram():
    pieces = [("<unk>", -10.0), ("</s>", 0.0), ("▁", -2.0), *((letter, -3.0) for letter in "</s>abci_123")]
    raw = Tokenizer(models.Unigram(pieces, unk_id=0))
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>", eos_token="</s>")


def test_unigram_pieces_that_spell_control_tokens_are_not_found():
    tokenizer = unigram()
    assert 1 in tokenizer.encode("a</s>", split_special_tokens=True)
    assert tokenizer.convert_ids_to_tokens(encode_text(tokenizer, "a</s>")) == ["▁", "a", "<", "/", "s", ">"]


def test_added_text_tokens_keep_their_ids_and_added_markers_are_spelled_out():
    tokenizer = tiny_tokenizer("bpe")
    tokenizer.add_tokens([AddedToken("<|new|>", special=True), AddedToken("    ", normalized=False)])
    tokenizer.add_tokens([AddedToken("<think>"), AddedToken("[INST]"), AddedToken("COVID")])
    codec = pickle.loads(pickle.dumps(TextCodec(tokenizer)))  # our own object, as datasets' workers send it
    assert codec.encode("The    COVID") == tokenizer.encode("The    COVID")
    markers = [tokenizer.convert_tokens_to_ids(marker) for marker in ("<|new|>", "<think>", "[INST]")]
    text = "<|new|><think>[INST]"
    assert not set(codec.encode(text)) & set(markers)
    assert tokenizer.decode(codec.encode(text)) == text


def test_sid_tokens_of_a_foreign_base_are_spelled_out_too():
    tokenizer = unigram()
    tokenizer.add_tokens([AddedToken("a_1", normalized=False)])
    assert len(encode_text(tokenizer, "a_1", ["a_1"])) == len("▁a_1")


def test_truncation_padding_and_bos_of_the_tokenizer_do_not_reach_the_codec():
    tokenizer = tiny_tokenizer("spm")
    plain = TextCodec(tokenizer).encode("The Golden River")
    tokenizer.backend_tokenizer.enable_truncation(2)
    tokenizer.backend_tokenizer.enable_padding(length=50)
    codec = TextCodec(tokenizer)
    assert codec.encode("The Golden River") == plain
    assert codec.bos_ids == (tokenizer.bos_token_id,)
    assert codec.encode("") == []


def test_a_slow_tokenizer_is_refused():
    class Slow:
        is_fast = False

    with pytest.raises(InputError, match="fast backend"):
        TextCodec(Slow())
