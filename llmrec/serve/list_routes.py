"""`/v1/recommendations`, `/v1/score`, `/v1/items/{id}`, `/v1/models`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Path, Query, Request

from llmrec.recommendation import ItemFilter, Recommendations
from llmrec.serve.catalog import CatalogVersion
from llmrec.serve.explaining import explain_items
from llmrec.serve.problems import ApiProblem
from llmrec.serve.schemas import (
    FindAnswer,
    FoundItem,
    ItemAnswer,
    ItemExplanation,
    ItemScore,
    Model,
    ModelList,
    RecommendationAnswer,
    RecommendationRequest,
    RecommendedItem,
    ScoreAnswer,
    ScoreRequest,
    ThoughtAnswer,
)
from llmrec.serve.server import Server
from llmrec.serve.thinking import think_first
from llmrec.serve.works import ListSettings, ListWork, ScoreWork
from llmrec.sid_vocab.table import ACTIVE


def list_router(server: Server) -> APIRouter:
    """The routes over `server`."""
    router = APIRouter(prefix="/v1")

    @router.post("/recommendations", tags=["recommend"], summary="The next items for a history")
    async def recommendations(request: Request, body: RecommendationRequest) -> RecommendationAnswer:
        with server.catalog.use() as version:
            _check(server, body)
            wanted, note = ItemFilter(tuple(body.exclude)), ""
            if body.filters or body.allow is not None:  # compares every item of the catalogue
                wanted, note = await asyncio.to_thread(_filter, version, body)
            if body.think:
                found = await think_first(server, request, version, body, wanted)
            else:
                serving = version.recommender.checkpoint.card.serving
                beams = body.num_beams or max(serving.num_beams, min(body.k, version.num_items))
                settings = ListSettings(beams, body.search, body.normalise, body.exclude_history, body.diversity)
                found = await server.run(request, ListWork(version, settings, body.k, tuple(body.history), wanted))
            server.metrics.items.inc(len(found))
            named = [item.item_id for item in found.items[: body.explain]]
            explained = await explain_items(server, request, version, body.history, named)
            return _answer(version, found, note, explained)

    @router.post("/score", tags=["recommend"], summary="Log-probabilities of given items, for re-ranking")
    async def score(request: Request, body: ScoreRequest) -> ScoreAnswer:
        server.require_lengths(history=body.history, items=body.items)
        with server.catalog.use() as version:
            recommender = version.recommender
            recommender.titles.require_known(body.items)
            normalise = body.normalise or recommender.checkpoint.card.serving.normalise
            scores = []
            if body.items:
                work = ScoreWork(version, normalise, tuple(body.history), tuple(body.items))
                scores = (await server.run(request, work)).tolist()
            return ScoreAnswer(
                scores=[ItemScore(item_id=item, score=one) for item, one in zip(body.items, scores, strict=True)],
                normalise=normalise,
                catalog_version=version.id,
            )

    @router.get("/items/{item_id}", tags=["catalogue"], summary="What is known about an item")
    async def item(item_id: Annotated[str, Path(min_length=1, max_length=512)]) -> ItemAnswer:
        version = server.catalog.current
        recommender = version.recommender
        table, catalog = recommender.checkpoint.table, recommender.checkpoint.catalog
        if not recommender.knows_any([item_id]):
            hint = recommender.titles.near_misses(item_id)
            raise ApiProblem(404, f"There is no item {item_id!r}.", hint=hint, param="item_id", code="unknown_item")
        known = catalog.attribute_values(item_id) if item_id in catalog else {}
        return ItemAnswer(
            item_id=item_id,
            title=recommender.titles.title(item_id),
            sid=table.text(item_id),
            retired=bool(table.status[table.row(item_id)] != ACTIVE),
            attributes={name: list(values) for name, values in known.items()},
            catalog_version=version.id,
        )

    @router.get("/items", tags=["catalogue"], summary="Find an item by an id or most of a title")
    async def find(find: Annotated[str, Query(min_length=1, max_length=200, examples=["silent river"])]) -> FindAnswer:
        version = server.catalog.current
        # Every title is compared: tens of milliseconds for a large catalogue, not to be spent in the event loop.
        found = await asyncio.to_thread(version.recommender.titles.resolve, [find])
        items = [FoundItem(item_id=one.item_id, title=one.title, similarity=one.score) for one in found]
        return FindAnswer(items=items, catalog_version=version.id)

    @router.get("/models", tags=["OpenAI"], summary="The model that is served")
    async def models() -> ModelList:
        version = server.catalog.current
        checkpoint = version.recommender.checkpoint
        serving = checkpoint.card.serving
        return ModelList(
            data=[
                Model(
                    id=server.settings.name,
                    created=int(version.since),
                    catalog_version=version.id,
                    num_items=version.num_items,
                    attributes=list(checkpoint.catalog.attributes),
                    window=serving.window,
                    num_beams=serving.num_beams,
                    normalise=serving.normalise,
                )
            ]
        )

    return router


def _check(server: Server, body: RecommendationRequest) -> None:
    """What would cost too much or cannot work, before anything is queued."""
    server.require_lengths(history=body.history, exclude=body.exclude, allow=body.allow)
    server.require_at_most("k", body.k, server.limits.k)
    server.require_at_most("explain", body.explain, server.limits.explanations)
    server.require_at_most("max_thought_tokens", body.max_thought_tokens or 0, server.limits.thought_tokens)
    if body.num_beams is not None:
        server.require_at_most("num_beams", body.num_beams, server.limits.num_beams)
        if body.num_beams < body.k:
            raise ApiProblem(
                400,
                f"num_beams: a beam of {body.num_beams} cannot find k={body.k} items.",
                hint="num_beams is k or more",
                param="num_beams",
            )


def _filter(version: CatalogVersion, body: RecommendationRequest) -> tuple[ItemFilter, str]:
    """The request's filter, and a note where it allows items that do not exist."""
    allowed = body.allow
    note = ""
    if allowed is not None:
        unknown = [item_id for item_id in allowed if not version.recommender.knows_any([item_id])]
        note = f"{len(unknown)} of {len(allowed)} allowed items have no SID" if unknown else ""
    if body.filters:
        fitting = version.attributes.items(tuple(body.filters))
        allowed = list(fitting) if allowed is None else [item_id for item_id in allowed if item_id in fitting]
    return ItemFilter(tuple(body.exclude), allowed), note


def _answer(
    version: CatalogVersion, found: Recommendations, note: str, explained: Sequence[ItemExplanation]
) -> RecommendationAnswer:
    items = [RecommendedItem(item_id=o.item_id, title=o.title, sid=o.sid, score=o.score) for o in found]
    for item, explanation in zip(items, explained, strict=False):  # the best ones only
        item.explanation = explanation
    return RecommendationAnswer(
        items=items,
        search=found.search,
        normalise=found.normalise,
        num_beams=found.num_beams,
        unknown_items=list(found.unknown_items),
        truncated_items=found.truncated_items,
        notes=[*found.notes, *([note] if note else [])],
        thought=ThoughtAnswer(**found.thought.as_json()) if found.thought else None,
        catalog_version=version.id,
    )
