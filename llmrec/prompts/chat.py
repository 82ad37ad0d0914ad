"""The chat template's own words around a conversation, found by applying it to markers instead of content."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from llmrec.errors import InputError
from llmrec.prompts.templates import Piece, mark, split_marks

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHAT_DATE = "01 January 2025"
"""What templates that print today's date (Llama 3, SmolLM3) print instead, so that rows do not change by the day."""


@dataclass(frozen=True)
class ChatSkeleton:
    """What a chat template writes around one exchange.

    Attributes:
        before: literals, and the places of ``system`` and ``user`` contents, up to where the assistant's answer begins.
        after: what follows the answer (end of turn, line break).
    """

    before: tuple[Piece, ...]
    after: str


def chat_skeleton(
    tokenizer: PreTrainedTokenizerBase, *, with_system: bool, fallback: str | None = None
) -> ChatSkeleton:
    """Apply the tokenizer's chat template (or `fallback`) to marked messages and split the result.

    The prompt is taken from the complete conversation and not from ``add_generation_prompt``, because some templates
    write the two differently and a served prompt must be the beginning of a training row.

    Raises:
        InputError: the template refuses the roles, or does not print each content once and in order.
    """
    roles = [*(["system"] if with_system else []), "user", "assistant"]
    messages = [{"role": role, "content": mark(role)} for role in roles]
    fixed_date: Callable[[str], str] = lambda _format: CHAT_DATE  # noqa: E731 - typed, and nothing else to say
    options: dict[str, Any] = {"date_string": CHAT_DATE, "strftime_now": fixed_date}
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, chat_template=fallback, **options)
    except TemplateError as error:
        raise InputError(
            f"The tokenizer's chat template refuses the roles {', '.join(roles)}: {error}",
            hint="remove `system:` from the task's template, where it has one",
        ) from error
    pieces = split_marks(str(text))
    places = [place for place, piece in enumerate(pieces) if piece.variable]
    if [pieces[place].variable for place in places] != roles:
        raise InputError(
            f"The tokenizer's chat template does not print the contents of {', '.join(roles)} once each and in order.",
            hint="give the tokenizer another chat_template",
        )
    answer = places[-1]
    return ChatSkeleton(pieces[:answer], "".join(piece.literal for piece in pieces[answer + 1 :]))
