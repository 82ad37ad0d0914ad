"""Lists behind a thought, as `Recommender.recommend(think=...)` gives them, step by step beside everything else."""

from __future__ import annotations

from functools import partial

from starlette.requests import Request

from llmrec.recommendation import MAX_THOUGHT_TOKENS, ItemFilter, Recommendations, ThoughtOptions
from llmrec.serve.catalog import CatalogVersion
from llmrec.serve.schemas import RecommendationRequest
from llmrec.serve.server import Server
from llmrec.thinking import ThinkingRequest


async def think_first(
    server: Server, request: Request, version: CatalogVersion, body: RecommendationRequest, wanted: ItemFilter
) -> Recommendations:
    """The list behind a thought.

    Raises:
        InputError: as `Recommender.thinking` does.
    """
    budget = min(MAX_THOUGHT_TOKENS, server.limits.thought_tokens)
    asked = ThinkingRequest(
        tuple(body.history),
        body.k,
        ThoughtOptions(body.max_thought_tokens or budget, body.sure_margin),
        wanted,
        body.exclude_history,
        body.num_beams,
        body.normalise,
    )
    found: Recommendations
    (found,) = await server.follow(request, [partial(version.recommender.thinking, asked)])
    if found.thought:
        server.metrics.tokens.inc(found.thought.tokens)
    return found
