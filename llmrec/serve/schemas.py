"""Requests and answers of the recommender's own endpoints, as `/docs` shows them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from llmrec.decode.result import Normalise
from llmrec.decode.thought import ThoughtEnd
from llmrec.prompts.grounding import Kind
from llmrec.recommendation import Search
from llmrec.serve.attribute_filter import AttributeFilter
from llmrec.serve.settings import MOST_IDS

ItemId = Annotated[str, StringConstraints(min_length=1, max_length=512)]
ItemIds = Annotated[list[ItemId], Field(max_length=MOST_IDS)]
"""Bounded here and not only by `Limits`: reading a list to its end holds up everybody else's requests."""


class Body(BaseModel):
    """A request: unknown fields are errors, so that a typing mistake is not silently ignored."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class Answer(BaseModel):
    """An answer."""

    model_config = ConfigDict(use_attribute_docstrings=True)


class RecommendationRequest(Body):
    """What to recommend next, and to whom."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"history": ["50", "181"], "k": 5},
                {
                    "history": ["50", "181"],
                    "k": 10,
                    "exclude": ["1"],
                    "filters": [{"attribute": "genres", "any_of": ["Western", "Drama"]}],
                    "explain": 1,
                },
                {"history": ["50", "181"], "k": 5, "think": True, "max_thought_tokens": 64},
            ]
        }
    )

    history: ItemIds = []
    """Item ids, oldest first. Empty: what the model expects of anybody."""
    k: int = Field(default=10, ge=1)
    """Items wanted."""
    exclude: ItemIds = []
    """Items that may not be returned; unknown ids are harmless."""
    exclude_history: bool = True
    """Whether items of the history may not be returned."""
    allow: ItemIds | None = None
    """The only items that may be returned; unknown ids are counted in `notes`."""
    filters: list[AttributeFilter] = Field(default=[], max_length=20)
    """Conditions on the catalogue's attributes, all of which an item must fulfil."""
    num_beams: int | None = Field(default=None, ge=1)
    """Width of the beam, at least k; by default the checkpoint's."""
    search: Search = "beam"
    """`beam`, or `exact` for the true top-k at a higher and varying cost."""
    normalise: Normalise | None = None
    """Over what log-probabilities are normalised; by default the checkpoint's."""
    diversity: float = Field(default=0.0, ge=0, le=100, allow_inf_nan=False)
    """What an item pays, in nats, for each better one of the same first code; 0 for a plain list. For beams only."""
    explain: int = Field(default=0, ge=0)
    """How many of the best items to explain in the model's words."""
    think: bool = False
    """Whether to think before the search; for checkpoints that were taught to."""
    max_thought_tokens: int | None = Field(default=None, ge=1)
    """Budget of the thought; by default that of the gate which says whether thinking pays."""
    sure_margin: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """Where the best SID of a plain search is ahead by so many nats, its list is the answer and nothing is thought."""

    @model_validator(mode="after")
    def _thoughts_fit(self) -> RecommendationRequest:
        if not self.think and (self.max_thought_tokens is not None or self.sure_margin is not None):
            raise ValueError("max_thought_tokens and sure_margin go with think: true")
        if self.think and (self.search != "beam" or self.diversity):
            raise ValueError("think: behind a thought stands a plain beam; leave search and diversity out")
        return self


class ItemExplanation(Answer):
    """Why an item fits, in the model's words, checked against the catalogue."""

    text: str
    named_items: list[str]
    """Items that the text names."""
    unknown_names: list[str]
    """Titles and SIDs in it that the catalogue lacks."""
    outside_history: list[str]
    """Items that it names and that are neither explained nor in the history."""
    untrue_attributes: list[str]
    """What it says of the item and the catalogue does not bear out, as `attribute: value`."""
    finished: bool
    """False where the text was cut off."""


class RecommendedItem(Answer):
    """One recommended item."""

    item_id: str
    title: str
    sid: str
    """Its Semantic ID, readable."""
    score: float
    """Log-probability after the history."""
    explanation: ItemExplanation | None = None


class Statements(Answer):
    """Statements of one kind."""

    stated: int
    true: float
    """The share of them that is true."""


class ThoughtAnswer(Answer):
    """What the model thought before the list, checked against the catalogue."""

    text: str
    """As the model wrote it, Semantic IDs in their notation; empty where the plain search was sure."""
    end: ThoughtEnd
    """`closed` by the model; cut off at a control token (`stop`), the budget (`length`) or the clock (`time`); or
    `sure`: nothing was thought."""
    tokens: int
    """Written, without the markers around the thought."""
    statements: dict[Kind, Statements]
    """What it states, by kind: `item` (SIDs begin a living item), `title` (exists, of such an item), `history` (is in
    the history) and `attribute` (holds in the catalogue)."""
    untrue: list[str]
    """The statements that are not true, and why."""


class RecommendationAnswer(Answer):
    """A list, best first."""

    items: list[RecommendedItem]
    search: Search
    normalise: Normalise
    num_beams: int
    """0 for an exact search."""
    unknown_items: list[str]
    """History items without a SID, which were skipped."""
    truncated_items: int
    """Oldest history items beyond the model's window; excluded all the same."""
    notes: list[str]
    """What to know about this list, in words."""
    thought: ThoughtAnswer | None = None
    """Where one was asked for."""
    catalog_version: str
    """The table that it was made with."""


class ScoreRequest(Body):
    """Items to rank after a history."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"history": ["50", "181"], "items": ["1", "172"]}]})

    history: ItemIds = []
    """Item ids, oldest first."""
    items: ItemIds
    """Items to score."""
    normalise: Normalise | None = None
    """As for recommendations."""


class ItemScore(Answer):
    """An item and its log-probability."""

    item_id: str
    score: float


class ScoreAnswer(Answer):
    """Scores in the order of the request."""

    scores: list[ItemScore]
    normalise: Normalise
    catalog_version: str


class ItemAnswer(Answer):
    """What the server knows about an item."""

    item_id: str
    title: str
    sid: str
    retired: bool
    """Retired items are not recommended, and still understood in histories."""
    attributes: dict[str, list[str]]
    catalog_version: str


class FoundItem(Answer):
    """An item that was found."""

    item_id: str
    title: str
    similarity: float
    """100 for an id or the very title."""


class FindAnswer(Answer):
    """Items by similarity of their titles, best first."""

    items: list[FoundItem]
    catalog_version: str


class Model(Answer):
    """The one model of this server."""

    id: str
    object: Literal["model"] = "model"
    created: int
    """Unix time of the current catalogue version."""
    owned_by: Literal["llmrec"] = "llmrec"
    catalog_version: str
    num_items: int
    """Items that may be recommended."""
    attributes: list[str]
    """What `filters` may name."""
    window: int
    """History items that the model sees."""
    num_beams: int
    """The beam's width by default."""
    normalise: Normalise


class ModelList(Answer):
    """OpenAI's list of models."""

    object: Literal["list"] = "list"
    data: list[Model]


class Health(Answer):
    """Whether the server can answer."""

    status: Literal["ok", "stopping"]
    catalog_version: str
    pending: int
    """Jobs that wait for the model."""
    streams: int
    """Texts being written."""


class SwapRequest(Body):
    """A newer table to recommend from."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"table": "/srv/tables/2025-06-01"}]})

    table: str = Field(min_length=1, max_length=4096)
    """A folder on the server's machine: a SID table that descends from the checkpoint's, and for the titles of added
    items a catalog.parquet."""


class SwapAnswer(Answer):
    """The version that new requests begin with."""

    catalog_version: str
    previous: str
    number: int
    num_items: int
    seconds: float
    """From the request to the swap; lists were answered all the while."""
