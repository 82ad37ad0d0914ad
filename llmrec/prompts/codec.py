"""Segments to token ids and back, each on its own, whatever the tokenizer puts around a string or finds inside it.

`llmrec.sid_vocab.text_codec` keeps control tokens and SIDs out of text. What is left for a prompt made of segments is
the prefix space: SentencePiece puts one before *every* string, so that "Title:" + " The River" would get two spaces and
a word cut into two segments a space inside. `SegmentCodec` works on a copy of the backend that adds no prefix (and
strips none in decoding), so that each segment becomes the pieces of exactly its own characters; the renderer puts the
one prefix space that the checkpoint is used to before the first words of a row.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from llmrec.errors import InputError
from llmrec.sid_vocab.text_codec import TextCodec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class SegmentCodec:
    """Encodes the segments of a prompt with a Hugging Face tokenizer's own pieces.

    Args:
        tokenizer: a fast tokenizer, already extended by the SID tokens; it is not changed.
        sid_tokens: the SID tokens' spellings.

    Attributes:
        bos_ids: ids the tokenizer puts before a sequence on its own, ``()`` if none.
        prefix: the space that SentencePiece puts before a text, or ``""``.
        eos_id, eos_token: end of a text; None for a tokenizer without one.

    Raises:
        InputError: the tokenizer has no fast backend.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, sid_tokens: Iterable[str]) -> None:
        from tokenizers import Tokenizer
        from transformers import PreTrainedTokenizerFast

        if not tokenizer.is_fast:
            raise InputError(
                f"{type(tokenizer).__name__} is a slow tokenizer; prompts need its fast form (tokenizer.json)",
                hint="load it with AutoTokenizer.from_pretrained, or convert it once and save the result",
            )
        state = json.loads(tokenizer.backend_tokenizer.to_str())
        self.prefix = " " if _adds_prefix(state["normalizer"]) or _adds_prefix(state["pre_tokenizer"]) else ""
        for part in ("normalizer", "pre_tokenizer", "decoder"):
            state[part] = _without_prefix(state[part])
        state["truncation"] = state["padding"] = None
        self._full = Tokenizer.from_str(json.dumps(state))
        text_codec = TextCodec(PreTrainedTokenizerFast(tokenizer_object=self._full), sid_tokens)
        self._text = lru_cache(maxsize=65_536)(lambda text: tuple(text_codec.encode(text)))  # titles come again
        self._role = lru_cache(maxsize=1024)(lambda text: tuple(self._full.encode(text, add_special_tokens=False).ids))
        self.bos_ids = text_codec.bos_ids
        self.eos_id: int | None = tokenizer.eos_token_id
        self.eos_token: str | None = tokenizer.eos_token
        special = {token["content"]: int(token["id"]) for token in state["added_tokens"] if token["special"]}
        self._stop_ids = frozenset(special.values()) | frozenset(tokenizer.all_special_ids)
        self._markers = tuple(special)

    def text(self, text: str) -> tuple[int, ...]:
        """Ids of `text` as plain characters: no BOS, no prefix space, no control token, no SID token."""
        return self._text(text)

    def role(self, text: str) -> tuple[int, ...]:
        """Ids of chat-template text, in which control tokens are recognised. Never for text of items or users."""
        return self._role(text)

    def decode(self, token_ids: Iterable[int]) -> str:
        """The characters of `token_ids`, a leading space included: the inverse of `text` for a lossless tokenizer."""
        return str(self._full.decode(list(token_ids), skip_special_tokens=False))

    def until_stop(self, token_ids: Sequence[int]) -> list[int]:
        """`token_ids` up to the first special token (end of turn, EOS, padding), without it."""
        ids = [int(token_id) for token_id in token_ids]
        end = next((place for place, token_id in enumerate(ids) if token_id in self._stop_ids), len(ids))
        return ids[:end]

    def split_after_marker(self, text: str) -> tuple[str, str] | None:
        """Cut role text behind its first special token; None where it holds none."""
        found = [(text.index(marker), -len(marker)) for marker in self._markers if marker in text]
        if not found:
            return None
        start, negative_length = min(found)
        return text[: start - negative_length], text[start - negative_length :]


_PREFIXERS = {"Metaspace": ("prepend_scheme", "never"), "ByteLevel": ("add_prefix_space", False)}


def _adds_prefix(part: dict[str, Any] | None) -> bool:
    """Whether a normalizer or pre-tokenizer (its JSON) puts a space before a text."""
    if part is None:
        return False
    if part["type"] == "Sequence":
        return any(_adds_prefix(child) for child in part[_list_key(part)])
    if part["type"] in _PREFIXERS:
        key, off = _PREFIXERS[part["type"]]
        return bool(part.get(key, off) != off)
    return bool(part["type"] == "Prepend")


def _without_prefix(part: dict[str, Any] | None) -> dict[str, Any] | None:
    """A copy that neither adds a prefix space nor, in a decoder, strips one."""
    if part is None or part["type"] == "Prepend" or (part["type"] == "Strip" and part.get("content") == " "):
        return None
    if part["type"] == "Sequence":
        key = _list_key(part)
        kept = [child for child in map(_without_prefix, part[key]) if child is not None]
        return {**part, key: kept} if kept else None
    if part["type"] in _PREFIXERS:
        key, off = _PREFIXERS[part["type"]]
        return {**part, key: off}
    return dict(part)


def _list_key(part: dict[str, Any]) -> str:
    return next(name for name in ("normalizers", "pretokenizers", "decoders") if name in part)
