"""A conversation with a server, as the terminal and the chat page hold it: what was chosen, said and answered."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from llmrec.serve.client import Chunk, Client


@dataclass
class Talk:
    """One conversation; items are what the server calls them (``item_id``, ``title``)."""

    client: Client
    temperature: float = 0.0
    """0 writes the most probable words."""
    max_tokens: int = 256
    """Longest answer."""
    history: list[dict[str, Any]] = field(default_factory=list)
    """Items chosen so far, oldest first."""
    messages: list[dict[str, Any]] = field(default_factory=list)
    """As the server gets them."""
    told: list[dict[str, Any]] = field(default_factory=list)
    """The history as the model last heard it in this conversation."""

    def choose(self, words: Sequence[str]) -> None:
        """Make the items nearest to `words`, ids or titles, the history.

        Raises:
            InputError: nothing is close to one of them.
        """
        self.history = [self.client.find(word)[0] for word in words]

    def recommend(self, k: int, *, explain: int = 0) -> dict[str, Any]:
        """The next `k` items for the history, the first `explain` of them with reasons."""
        return self.client.recommend([item["item_id"] for item in self.history], k, explain=explain)

    def say(self, text: str) -> Iterator[Chunk]:
        """Send `text`, before it the history where that has changed, and give the answer as it comes."""
        parts: list[dict[str, Any]] = []
        if self.history and self.history != self.told:
            parts.append({"type": "text", "text": "Here are the items I chose, oldest first:"})
            parts += [{"type": "item", "item_id": item["item_id"]} for item in self.history]
            parts.append({"type": "text", "text": "\n"})
        message = {"role": "user", "content": [*parts, {"type": "text", "text": text}]}
        content, items = "", []
        for chunk in self.client.chat(
            [*self.messages, message], temperature=self.temperature, max_tokens=self.max_tokens
        ):
            yield chunk
            content += chunk.content
            items += chunk.items
        self.told = list(self.history)
        self.messages += [message, {"role": "assistant", "content": content, "items": items}]

    def clear(self) -> None:
        """Begin a new conversation; the history stays."""
        self.messages, self.told = [], []
