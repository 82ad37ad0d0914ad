"""A conversation as the model sees it: several turns of words and items, in the tokenizer's own chat template.

As in `Renderer.render`, the template is applied to markers and never to content. What people wrote is encoded as plain
characters, so nothing in it becomes a control token or a SID; items that a client names by id become SIDs straight from
the table. A served prompt ends where the assistant's answer begins, as a training row of the same turns does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jinja2 import TemplateError

from llmrec.errors import InputError
from llmrec.prompts.chat import CHAT_DATE
from llmrec.prompts.renderer import Renderer
from llmrec.prompts.templates import mark, split_marks
from llmrec.sid_vocab.table import SIDTable

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True)
class Words:
    """Plain text."""

    text: str


@dataclass(frozen=True)
class Item:
    """An item, shown to the model as its SID."""

    item_id: str


Piece = Words | Item


@dataclass(frozen=True)
class Turn:
    """One message."""

    role: Role
    pieces: tuple[Piece, ...]


def chat_prompt(renderer: Renderer, tokenizer: Any, turns: Sequence[Turn]) -> np.ndarray:
    """(length,) int64: the ids of the conversation up to where the assistant answers.

    Raises:
        InputError: an item has no SID, or the model's chat template refuses the order of roles.
    """
    marked = [{"role": turn.role, "content": mark(str(place))} for place, turn in enumerate(turns)]
    marked.append({"role": "assistant", "content": mark("answer")})
    fallback = None if tokenizer.chat_template else renderer.templates.chat_fallback
    fixed_date: Callable[[str], str] = lambda _format: CHAT_DATE  # noqa: E731 - typed, and nothing else to say
    try:
        text = tokenizer.apply_chat_template(
            marked, tokenize=False, chat_template=fallback, date_string=CHAT_DATE, strftime_now=fixed_date
        )
    except TemplateError as error:
        roles = ", ".join(turn.role for turn in turns)
        raise InputError(
            f"The model's chat template refuses messages of the roles {roles}: {error}",
            hint="most templates want user and assistant in turn, the user first, after at most one system message",
        ) from error
    pieces = split_marks(str(text))
    places = [piece.variable for piece in pieces if piece.variable]
    if places != [*map(str, range(len(turns))), "answer"]:
        raise InputError(
            "The model's chat template does not print every message once and in order.",
            hint="send the messages as one user message",
        )
    ids: list[int] = list(renderer.codec.bos_ids) if not tokenizer.chat_template else []
    for piece in pieces:
        if piece.variable == "answer":
            break
        if piece.variable:
            ids += encode_pieces(renderer, turns[int(piece.variable)].pieces)
        else:
            ids += renderer.codec.role(piece.literal)
    return np.array(ids, np.int64)


def text_prompt(renderer: Renderer, pieces: Sequence[Piece]) -> np.ndarray:
    """(length,) int64: plain text to go on from, behind BOS where the tokenizer adds one."""
    first, *rest = pieces
    if isinstance(first, Words):
        pieces = [Words(renderer.codec.prefix + first.text), *rest]
    return np.array([*renderer.codec.bos_ids, *encode_pieces(renderer, pieces)], np.int64)


def encode_pieces(renderer: Renderer, pieces: Sequence[Piece]) -> list[int]:
    """The ids of words as plain characters and of items as SIDs. Raises InputError for an item without a SID."""
    ids: list[int] = []
    for piece in pieces:
        if isinstance(piece, Words):
            ids += renderer.codec.text(piece.text)
        else:
            ids += _sid(renderer.table, piece.item_id)
    return ids


def _sid(table: SIDTable, item_id: str) -> list[int]:
    codes = table.codes[table.row(item_id)].tolist()
    return [int(ids[code]) for ids, code in zip(table.token_ids or (), codes, strict=True)]
