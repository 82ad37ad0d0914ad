"""Item and user text to token ids, such that nothing in the text can become a control token or a SID.

A title may contain ``<|im_end|>`` or ``<a_1>``. Transformers' ``split_special_tokens=True`` spells out the first, but
not the second: it covers special tokens alone, and SID tokens are added tokens that are not special. So the codec
works on a copy of the tokenizer's backend from which

1. added tokens are removed that are special, or SIDs, or written as a marker in brackets (``<think>``, ``<tool_call>``
   and ``[INST]`` are ordinary added tokens in some public tokenizers and control tokens in all but name), and
2. the same spellings are taken out of the model's own vocabulary and merges, from where a Unigram model, or BPE with
   ``ignore_merges`` (Llama 3), would still find them.

Other added tokens (Gemma's and GPT-NeoX's runs of spaces, words a domain tokenizer added) stay: they are text.
The copy depends on the base tokenizer alone, so an extended tokenizer, saved and loaded, encodes text as the base did.

Prefix space: each text is encoded as if it opened a sequence. A SentencePiece tokenizer (Llama 2, Gemma's kin) puts its
``▁`` in front of every text, byte-level BPE (Qwen, Llama 3, SmolLM) puts nothing; neither looks at what precedes the
text in the prompt. Two texts encoded apart may therefore differ from their concatenation, and the renderer's segments
are the unit in training and in serving alike.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from llmrec.errors import InputError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

_BRACKETS = {"<": ">", "[": "]"}


class TextCodec:
    """Encodes text with a tokenizer's ordinary tokens alone.

    Args:
        tokenizer: a fast tokenizer, before or after the SID tokens were added; it is not changed, and later changes to
            it are not seen.
        sid_tokens: the SID tokens' spellings, ``<a_0>`` and so on; empty for a tokenizer without SIDs.

    Attributes:
        bos_ids: ids the tokenizer puts in front of a sequence on its own, ``()`` if none. Never part of `encode`.

    Raises:
        InputError: the tokenizer has no fast backend.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, sid_tokens: Iterable[str] = ()) -> None:
        backend = _backend(tokenizer)
        self.bos_ids: tuple[int, ...] = _leading_ids(backend)
        self._backend: Tokenizer = _text_only(backend, frozenset(sid_tokens))
        # An added token that stays moves down where a marker before it is gone: copy's id -> the tokenizer's.
        self._moved: dict[int, int] = {}
        for moved, token in self._backend.get_added_tokens_decoder().items():
            original = backend.token_to_id(token.content)
            if original is not None and original != moved:
                self._moved[moved] = original

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`: no BOS or EOS, no control token, no SID; ``[]`` for an empty text."""
        return self._original(self._backend.encode(text, add_special_tokens=False).ids)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` for many texts at once, in their order; on all cores, unless ``TOKENIZERS_PARALLELISM=false``."""
        encodings = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [self._original(encoding.ids) for encoding in encodings]

    def _original(self, ids: list[int]) -> list[int]:
        return [self._moved.get(token_id, token_id) for token_id in ids] if self._moved else ids


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str, sid_tokens: Iterable[str] = ()) -> list[int]:
    """`TextCodec.encode` for a single text; builds a codec on every call, so keep a `TextCodec` for many texts."""
    return TextCodec(tokenizer, sid_tokens).encode(text)


def _backend(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    if not tokenizer.is_fast:
        raise InputError(
            f"The tokenizer {type(tokenizer).__name__} has no fast backend (tokenizer.json).",
            hint="load it with AutoTokenizer.from_pretrained, or convert it once and save the result",
        )
    backend: Tokenizer = tokenizer.backend_tokenizer
    return backend


def _leading_ids(backend: Tokenizer) -> tuple[int, ...]:
    # The post-processor marks what it added itself; an EOS behind the text is marked too, so stop at the first text id.
    encoding = backend.encode("a", add_special_tokens=True)
    leading: list[int] = []
    for token_id, added in zip(encoding.ids, encoding.special_tokens_mask, strict=True):
        if not added:
            break
        leading.append(token_id)
    return tuple(leading)


def _is_marker(token: dict[str, Any], sid_tokens: frozenset[str]) -> bool:
    content: str = token["content"]
    bare = content.strip(" ▁")
    bracketed = len(bare) > 1 and _BRACKETS.get(bare[0]) == bare[-1]
    return bool(token["special"]) or content in sid_tokens or bracketed


def _text_only(backend: Tokenizer, sid_tokens: frozenset[str]) -> Tokenizer:
    """A copy of `backend` that cannot emit the markers among its added tokens."""
    from tokenizers import Tokenizer

    state: dict[str, Any] = json.loads(backend.to_str())
    markers = [token for token in state["added_tokens"] if _is_marker(token, sid_tokens)]
    state["added_tokens"] = [token for token in state["added_tokens"] if not _is_marker(token, sid_tokens)]
    state["truncation"] = state["padding"] = state["post_processor"] = None
    model = state["model"]
    # The unknown token and byte pieces (<0x0A>) stay where they are: the model builds on them, and they stand for text.
    text_pieces = {model.get("unk_token"), *(f"<0x{byte:02X}>" for byte in range(256))}
    markers_in_model = ({token["content"] for token in markers} | sid_tokens) - text_pieces
    if isinstance(model["vocab"], list):  # Unigram: (piece, score) pairs, the unknown piece by number
        model["vocab"] = [
            (_unreachable(number) if piece in markers_in_model and number != model.get("unk_id") else piece, score)
            for number, (piece, score) in enumerate(model["vocab"])
        ]
    else:
        model["vocab"] = {
            _unreachable(number) if piece in markers_in_model else piece: number
            for piece, number in model["vocab"].items()
        }
    if model.get("merges"):
        model["merges"] = [
            [left, right]
            for left, right in (merge if isinstance(merge, list) else merge.split(" ") for merge in model["merges"])
            if not markers_in_model.intersection((left, right, left + right))
        ]
    return Tokenizer.from_str(json.dumps(state))


def _unreachable(number: int) -> str:
    # Drawn afresh for every piece, so that no text can spell it; no id depends on the name.
    return f"{secrets.token_hex(16)}-{number}"
