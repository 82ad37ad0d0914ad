"""``bench serve`` judges rightly: it finds right answers right, wrong ones wrong, and does not lose count."""

import asyncio
from dataclasses import replace

import httpx
import pytest
from pydantic import SecretStr

from llmrec.bench import serve
from llmrec.bench.runner import load_targets
from llmrec.bench.serve_load import MIX, closed_loop, draw, fixed_rate, pools
from llmrec.bench.serve_world import NUM_ITEMS, make_world
from llmrec.recommender import Recommender
from llmrec.serve.app import create_app
from llmrec.serve.settings import ServeSettings


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("world"))


def test_answers_of_both_versions_are_compared_with_their_own(world):
    app = create_app(Recommender.load(world.checkpoint), ServeSettings(name="served", admin_key=SecretStr(serve._KEY)))
    pool = pools(NUM_ITEMS)
    asks = [*draw(pool, 15, seed=2), *pool["chats"][:1], *pool["malformed"]]

    async def load():
        async with app.router.lifespan_context(app):
            transport = httpx.ASGITransport(app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
                first = await fixed_rate(http, asks, 1000.0, lambda: None, seed=3)
                swapper = asyncio.create_task(serve._swap(http, world, 0.0))
                while not await serve._metric(http, "llmrec_catalog_swaps_total"):
                    await asyncio.sleep(0.01)
                swapper.cancel()
                second = await fixed_rate(http, asks, 1000.0, lambda: None, seed=4)
                assert await closed_loop(http, pool["items"], 2, 0.05) > 0
                return first, second, await serve._left_behind(http)

    first, second, left = asyncio.run(load())
    assert left == 0
    for tally in (first, second):
        assert tally.asked == len(asks) == len(tally.got) + tally.cancelled
        assert not tally.lost
        equal, compared = serve._compare(tally, world)
        assert equal == compared == len(tally.got) - len(serve._of(tally, "malformed"))
        assert all(400 <= got.status < 500 for got in serve._of(tally, "malformed"))
    assert {got.version for got in first.got} & {got.version for got in second.got} <= {""}
    spoiled = replace(second, got=[])
    for got in second.got:
        if got.ask.kind == "lists":
            items = got.answer["items"]
            spoiled.got.append(replace(got, answer={**got.answer, "items": [items[1], items[0], *items[2:]]}))
        elif got.ask.kind == "chats":
            spoiled.got.append(replace(got, answer=got.answer + "."))
        elif got.ask.kind == "scores":
            scores = [{**one, "score": one["score"] + 0.01} for one in got.answer["scores"]]
            spoiled.got.append(replace(got, answer={**got.answer, "scores": scores}))
    assert len(spoiled.got) > 8
    assert serve._compare(spoiled, world)[0] == 0


def test_the_mix_and_the_targets_are_what_they_say():
    assert sum(MIX.values()) == pytest.approx(1)
    kinds = [ask.kind for ask in draw(pools(100), 5000, seed=0)]
    for kind, share in MIX.items():
        assert kinds.count(kind) / 5000 == pytest.approx(share, abs=0.02)
    assert {case.name for case in serve.cases(quick=True)} == set(load_targets()["serve"])


@pytest.mark.slow
@pytest.mark.enable_socket
def test_a_short_run_of_the_real_benchmark():
    found = serve.run(serve.Plan(capacity=2, load=6, swap_every=2))
    assert found.swaps >= 1
    assert found.equal == found.compared > 0
    assert not found.tally.lost
    assert found.left_behind == 0
    assert min(found.rss) > 0
