"""Settings of think data."""

from __future__ import annotations

from pydantic import Field, model_validator

from llmrec.config import Config


class ThinkDataConfig(Config):
    """Which train events are thought about, and what of a history leads to a target."""

    users: int | None = Field(default=None, ge=1)
    """So many users, by the hash of their id; None takes all."""
    recent_events: int | None = Field(default=2, ge=1)
    """Train events a user that are thought about, the most recent ones; None takes all."""
    min_history: int = Field(default=2, ge=1)
    """Events before an event that is thought about."""
    window: int = Field(default=50, ge=1)
    """Most recent items of the history that are looked at: those that serving shows."""
    evidence: int = Field(default=4, ge=1)
    """Items that are left of a history, the closest to the target."""
    prefix_depth: int = Field(default=1, ge=1)
    """Levels that two SIDs must share to be of one kind; ``prefix_depth`` of the task."""
    sid_weight: float = Field(default=1.0, ge=0)
    """Of the share of levels that history item and target have in common, in their closeness."""
    attribute_weight: float = Field(default=1.0, ge=0)
    """Of the attribute values in common, rare ones counting more."""
    vector_weight: float = Field(default=1.0, ge=0)
    """Of the cosine of item vectors; without vectors it counts nothing."""

    @model_validator(mode="after")
    def _something(self) -> ThinkDataConfig:
        if not self.sid_weight + self.attribute_weight + self.vector_weight:
            raise ValueError("all weights are 0: nothing makes an item of the history close to the target")
        return self
