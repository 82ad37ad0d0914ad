"""Requests and answers in OpenAI's form, with items as structured references besides their titles in the text.

An answer's `items` say which stretches of `content` are titles: ``content[start:end]`` is the title of `item_id`. Sent
back in a later request, such a message reaches the model with the item's SID in that place, as the model wrote it.
A user's message may name items the same way, or as content parts: ``{"type": "item", "item_id": "50"}``.
"""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field, model_validator

from llmrec.serve.conversation import Item, Piece, Turn, Words
from llmrec.serve.schemas import Answer, Body, ItemId

FinishReason = Literal["stop", "length"]
MAX_MESSAGES, MAX_TEXT = 200, 200_000


class ItemReference(Answer):
    """An item in a text."""

    model_config = ConfigDict(extra="ignore")  # a client sends back all that it got, the title and the score too

    item_id: ItemId
    title: str = ""
    """``content[start:end]``."""
    sid: str = ""
    """Its Semantic ID, readable."""
    score: float | None = None
    """Log-probability of the item where it stands."""
    start: int = Field(ge=0)
    """Place of the title's first character in the content; in a stream, in all that was sent so far."""
    end: int = Field(ge=0)
    """Behind the title's last character."""


class TextPart(Body):
    """Words of a message."""

    type: Literal["text"]
    text: str = Field(max_length=MAX_TEXT)


class ItemPart(Body):
    """An item of a message, by its id."""

    type: Literal["item"]
    item_id: ItemId


class Message(Body):
    """One turn of a conversation."""

    # Clients send back an answer's message with all its fields (refusal, tool_calls … of OpenAI's own), empty.
    model_config = ConfigDict(extra="ignore")

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart | ItemPart] = Field(max_length=MAX_TEXT)
    """Words, or words and items in parts."""
    items: list[ItemReference] | None = Field(default=None, max_length=1000)
    """Stretches of a text content that name items, as an answer has them."""

    @model_validator(mode="after")
    def _items_fit(self) -> Message:
        if not self.items:
            return self
        if not isinstance(self.content, str):
            raise ValueError("items go with a content of text; with parts, name items as parts")
        end = 0
        for item in self.items:
            if not end <= item.start <= item.end <= len(self.content):
                raise ValueError("items overlap, are out of order, or lie outside the content")
            end = item.end
        return self

    def turn(self) -> Turn:
        """The message for `chat_prompt`."""
        role = "system" if self.role == "developer" else self.role
        return Turn(role, tuple(self._pieces()))

    def _pieces(self) -> list[Piece]:
        if not isinstance(self.content, str):
            return [Words(part.text) if isinstance(part, TextPart) else Item(part.item_id) for part in self.content]
        pieces: list[Piece] = []
        end = 0
        for item in self.items or ():
            pieces += [Words(self.content[end : item.start]), Item(item.item_id)]
            end = item.end
        pieces.append(Words(self.content[end:]))
        return [piece for piece in pieces if piece != Words("")]


class StreamOptions(Body):
    """OpenAI's options of a stream."""

    include_usage: bool = False
    """Whether a last chunk tells the tokens used."""


class Generation(Body):
    """What chat and completion requests share."""

    model: str = Field(max_length=512)
    """The name that `/v1/models` gives."""
    max_tokens: int | None = Field(default=None, ge=1)
    """Tokens of the answer; an item's SID counts its levels."""
    temperature: float = Field(default=0.0, ge=0, le=2, allow_inf_nan=False)
    """0 takes the most probable token. Items are always searched for, never sampled."""
    top_p: float = Field(default=1.0, gt=0, le=1, allow_inf_nan=False)
    """Tokens are drawn from the most probable ones that together have this probability."""
    seed: int | None = Field(default=None, ge=0, lt=2**63)
    """Repeats a drawn answer."""
    stop: str | list[str] | None = Field(default=None, max_length=64)
    """Words before which the answer ends."""
    n: Literal[1] = 1
    """One answer."""
    stream: bool = False
    """Whether to send the answer as it is written (server-sent events)."""
    stream_options: StreamOptions | None = None
    user: str | None = None
    """Accepted as OpenAI does; not used."""
    exclude: list[ItemId] = Field(default=[])
    """Items that the answer may not name. (Not OpenAI's.)"""

    @model_validator(mode="after")
    def _stops_are_words(self) -> Generation:
        if any(not 0 < len(stop) <= 64 for stop in self.stops) or len(self.stops) > 4:
            raise ValueError("stop: up to 4 texts of 1 to 64 characters")
        return self

    @property
    def stops(self) -> tuple[str, ...]:
        """`stop` as a tuple."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


class ChatRequest(Generation):
    """OpenAI's chat completion."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "model": "llmrec",
                    "messages": [
                        {
                            "role": "user",
                            "content": [
                                {"type": "text", "text": "Here are the items I chose, oldest first:"},
                                {"type": "item", "item_id": "50"},
                                {"type": "item", "item_id": "181"},
                                {"type": "text", "text": "\nWhich item should I choose next?"},
                            ],
                        }
                    ],
                    "max_tokens": 64,
                }
            ]
        }
    )

    messages: list[Message] = Field(min_length=1, max_length=MAX_MESSAGES)
    """The conversation, oldest first; the last message is the user's."""
    max_completion_tokens: int | None = Field(default=None, ge=1)
    """OpenAI's newer name of `max_tokens`."""


class CompletionRequest(Generation):
    """OpenAI's older text completion."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"model": "llmrec", "prompt": "The film is", "max_tokens": 16}]}
    )

    prompt: str = Field(min_length=1, max_length=MAX_TEXT)
    """Plain text that the model goes on from."""
    echo: Literal[False] = False


class Usage(Answer):
    """Tokens read and written."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ChatAnswerMessage(Answer):
    """The assistant's turn."""

    role: Literal["assistant"] = "assistant"
    content: str
    """Words, with items as titles."""
    items: list[ItemReference]
    """The items among them."""


class ChatChoice(Answer):
    """The one answer."""

    index: Literal[0] = 0
    message: ChatAnswerMessage
    finish_reason: FinishReason


class ChatAnswer(Answer):
    """OpenAI's chat completion."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    catalog_version: str
    """The table that it was made with. (Not OpenAI's.)"""


class CompletionChoice(Answer):
    """The one answer."""

    index: Literal[0] = 0
    text: str
    items: list[ItemReference]
    finish_reason: FinishReason


class CompletionAnswer(Answer):
    """OpenAI's text completion."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage
    catalog_version: str
