"""A thought before a list: served as it is offline, checked, and in nobody's way."""

import asyncio
import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from llmrec import cli
from llmrec.checkpoint import LineageEntry
from llmrec.decode.thinking_searcher import ThinkingSearcher
from llmrec.decode.thought import ThoughtSettings
from llmrec.errors import InputError
from llmrec.prompts.grounding import check_thought
from llmrec.prompts.renderer import Renderer
from llmrec.prompts.thought_form import ThoughtForm
from llmrec.recommendation import ThoughtOptions
from llmrec.recommender import Recommender
from llmrec.serve.settings import Limits, ServeSettings
from llmrec.testing.worlds import tiny_events
from llmrec.train.batches import render_epoch
from llmrec.train.config import StageConfig
from tests.serve.conftest import running

HISTORIES = (["1", "7", "13"], ["2", "8"], ["4"], ["60", "54", "3"])
SFT = {"tasks": {"think": {"settings": {"window": 8, "per_user": 2}}}}


@pytest.fixture(scope="module")
def thinker(served_parts, tmp_path_factory):
    """A recommender whose model has seen a few dozen batches of true thoughts: it ends them, and some are true."""
    model = copy.deepcopy(served_parts.model)
    renderer = Renderer(served_parts.tokenizer, served_parts.table, served_parts.templates)
    users = {}
    for user, item, _ in tiny_events(num_users=18):
        users.setdefault(user, []).append(item)
    sequences = [items[:-2] for items in users.values()]
    rows, _ = render_epoch(StageConfig(**SFT), renderer, served_parts.catalog, sequences, 0)
    ids = torch.zeros((len(rows["think"]), max(len(row.input_ids) for row in rows["think"])), dtype=torch.long)
    labels = torch.full_like(ids, -100)
    for place, row in enumerate(rows["think"]):
        ids[place, : len(row.input_ids)] = torch.from_numpy(row.input_ids)
        labels[place, : len(row.input_ids)] = torch.from_numpy(np.where(row.target, row.input_ids, -100))
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.div_(4)  # the tiny checkpoints' weights are scaled up, which learns badly
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        chosen = torch.randint(len(ids), (8,))
        model(input_ids=ids[chosen], labels=labels[chosen]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    lineage = [LineageEntry(stage=stage, config_hash="c0ffee") for stage in ("cpt", "sft")]
    folder = tmp_path_factory.mktemp("thinker") / "sft"
    replace(served_parts, model=model.eval()).write(folder, lineage=lineage, recipe={"seed": 0, "sft": SFT})
    return Recommender.load(folder, dtype="float32")


def ask(recommender, bodies, settings=None, between=None):
    """The answers to requests that are sent together, and what `between` gives, which is called beside them."""

    async def whole():
        async with running(recommender, settings) as http:
            calls = [http.post("/v1/recommendations", json=body) for body in bodies]
            beside = [between(http)] if between else []
            return await asyncio.gather(*calls, *beside)

    return asyncio.run(whole())


async def streams(http, wanted):
    """Wait until so many thoughts are open."""
    async with asyncio.timeout(60):
        while http.server.engine.num_streams != wanted:
            await asyncio.sleep(0.001)


def offline(recommender, history, settings, top_k=5):
    """What `ThinkingSearcher` gives for the same prompt: what it thought and found."""
    checkpoint = recommender.checkpoint
    form = ThoughtForm.of(checkpoint.renderer)
    thinking = ThinkingSearcher(
        recommender.searcher(checkpoint.card.serving.normalise),
        opening_ids=form.opening_ids,
        closing_ids=form.closing_ids,
        stop_ids=checkpoint.tokenizer.all_special_ids,
        settings=settings,
    )
    rows = np.array([checkpoint.table.row(item_id) for item_id in history])
    prompt = recommender.prompt(history).input_ids
    (result,) = thinking.beam([prompt], num_beams=10, top_k=top_k, excluded=[rows])
    ((_, thought),) = thinking.thoughts
    return thought, result, thought.ids[len(form.opening_ids) : len(thought.ids) - len(form.closing_ids)]


def test_thoughts_that_run_together_are_those_of_the_offline_searcher(thinker):
    bodies = [{"history": history, "k": 5, "think": True, "max_thought_tokens": 90} for history in HISTORIES]
    answers = ask(thinker, bodies)
    ends = set()
    for history, answer in zip(HISTORIES, answers, strict=True):
        assert answer.status_code == 200, answer.text
        body = answer.json()
        thought, result, ids = offline(thinker, history, ThoughtSettings(90))
        table, reader = thinker.checkpoint.table, thinker.renderer.reader
        assert [item["item_id"] for item in body["items"]] == [table.item_ids[row] for row in result.items]
        np.testing.assert_allclose([item["score"] for item in body["items"]], result.scores, atol=1e-4)
        told = body["thought"]
        assert told["text"] == reader.text(ids)
        assert (told["end"], told["tokens"]) == (thought.end, len(ids))
        ends.add(told["end"])
        # and checked as training data is
        grounding = check_thought(reader.parts(ids), history, thinker.facts)
        assert {kind: one["stated"] for kind, one in told["statements"].items()} == dict(grounding.statements)
        assert told["untrue"] == [one.words for one in grounding.untrue]
        for kind, one in told["statements"].items():
            false = sum(untrue.kind == kind for untrue in grounding.untrue)
            assert one["true"] == pytest.approx(1 - false / one["stated"])
    assert "closed" in ends


def test_the_library_and_the_command_give_what_is_served(thinker, capsys):
    history = HISTORIES[0]
    body = {"history": history, "k": 4, "think": True, "max_thought_tokens": 40, "exclude": ["19"], "explain": 1}
    (answer,) = ask(thinker, [body])
    served = answer.json()
    found = thinker.recommend(history, 4, exclude=["19"], think=ThoughtOptions(40))
    assert [item["item_id"] for item in served["items"]] == [item.item_id for item in found]
    assert served["items"][0]["explanation"]
    assert (served["thought"]["text"], served["thought"]["end"]) == (found.thought.text, found.thought.end)
    command = [
        "recommend",
        str(thinker.checkpoint.folder),
        *history,
        "-k",
        "4",
        "--think",
        "--max-thought-tokens",
        "40",
    ]
    shown = {}
    for more in (["--json"], []):
        with pytest.raises(SystemExit) as end:
            cli.main([*command, *more])
        assert not end.value.code
        shown[bool(more)] = capsys.readouterr().out
    assert json.loads(shown[True])["thought"] == served["thought"]
    assert "statements that are true" in shown[False]


def test_a_list_need_not_wait_for_a_thought(thinker):
    async def beside(http):
        await streams(http, 1)
        answer = await http.post("/v1/recommendations", json={"history": ["1"], "k": 3})
        return answer, http.server.engine.num_streams

    body = {"history": ["1", "7"], "think": True}
    slow, (quick, thinking) = ask(thinker, [body], between=beside)
    assert (slow.status_code, quick.status_code) == (200, 200)
    assert thinking == 1
    assert slow.json()["thought"]["tokens"] > 20
    assert quick.json()["thought"] is None


def test_a_client_that_leaves_frees_its_thought(thinker):
    async def leave(http):
        asked = asyncio.ensure_future(http.post("/v1/recommendations", json={"history": ["1"], "think": True}))
        await streams(http, 1)
        asked.cancel()
        await streams(http, 0)
        return (await http.get("/metrics")).text

    (metrics,) = ask(thinker, [], between=leave)
    assert 'kind="text",reason="cancelled"} 1.0' in metrics


@pytest.mark.parametrize("k", [1, 5])
def test_where_the_plain_search_is_sure_nothing_is_thought(thinker, k):
    body = {"history": ["1", "7"], "k": k, "think": True, "max_thought_tokens": 8}
    sure, unsure = ask(thinker, [{**body, "sure_margin": 0.0}, {**body, "sure_margin": 1e6}])
    expected = [item.item_id for item in thinker.recommend(["1", "7"], k)]
    assert [item["item_id"] for item in sure.json()["items"]] == expected
    assert sure.json()["thought"] == {"text": "", "end": "sure", "tokens": 0, "statements": {}, "untrue": []}
    assert unsure.json()["thought"]["end"] == "length"
    assert unsure.json()["thought"]["tokens"] > 0


def test_filters_hold_behind_a_thought(thinker):
    body = {"history": ["1", "7"], "k": 80, "think": True, "max_thought_tokens": 4}
    drama, nothing = ask(
        thinker,
        [
            {**body, "filters": [{"attribute": "genres", "any_of": ["Drama"]}], "exclude": ["13"]},
            {**body, "allow": []},
        ],
    )
    assert drama.status_code == 200, drama.text
    found = sorted(int(item["item_id"]) for item in drama.json()["items"])
    assert found == [item for item in range(1, 61, 6) if item not in (1, 7, 13)]
    assert nothing.json()["items"] == []
    assert "these are all 0 of 60 items" in nothing.json()["notes"][0]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"history": []}, "There is no history to think about."),
        ({"history": ["nope"]}, "None of the 1 history items has a SID"),
        ({"max_thought_tokens": 601}, "max_thought_tokens: 601 is more than this server's limit of 600"),
        ({"max_thought_tokens": 600}, "The model reads 512 tokens"),
        ({"max_thought_tokens": 0}, "max_thought_tokens"),
        ({"sure_margin": -1}, "sure_margin"),
        ({"sure_margin": 1, "k": 1, "num_beams": 1}, "sure_margin compares the two best SIDs"),
        ({"search": "exact"}, "behind a thought stands a plain beam"),
        ({"diversity": 1.0}, "behind a thought stands a plain beam"),
        ({"think": False, "sure_margin": 1.0}, "go with think: true"),
    ],
)
def test_what_cannot_be_thought_is_told(thinker, body, says):
    settings = ServeSettings(limits=Limits(thought_tokens=600))
    (answer,) = ask(thinker, [{"history": ["1"], "think": True, **body}], settings)
    assert answer.status_code == 400
    assert says in answer.json()["error"]["message"]


def test_a_checkpoint_that_was_not_taught_to_think_says_so(served_parts, tmp_path):
    # cpt had the task in this recipe's sft, which did not run
    folder = served_parts.write(tmp_path / "cpt", recipe={"seed": 0, "cpt": {"tasks": {}}, "sft": SFT}).folder
    (answer,) = ask(Recommender.load(folder, dtype="float32"), [{"history": ["1"], "think": True}])
    assert answer.status_code == 400
    assert "was not taught to think: none of its stages (cpt)" in answer.json()["error"]["message"]
    assert "sft.tasks" in answer.json()["error"]["hint"]


def test_a_card_names_the_tasks_of_every_stage_that_ran(thinker):
    card = thinker.checkpoint.card
    recipe = {**card.recipe, "align": {"continued": {"tasks": {"explain": {}}}, "grpo": None}, "cpt": None}
    stages = [*card.lineage, LineageEntry(stage="continued", config_hash="c0ffee")]
    assert card.tasks == {"think"}
    assert card.model_copy(update={"recipe": recipe}).tasks == {"think"}
    assert card.model_copy(update={"recipe": recipe, "lineage": tuple(stages)}).tasks == {"think", "explain"}


def test_another_engine_says_that_it_does_not_think(thinker, monkeypatch):
    class Other:
        pass

    monkeypatch.setattr("llmrec.decode.torch_backend.TorchBackend", Other)
    with pytest.raises(InputError, match="written by the torch engine; this one is a TorchBackend"):
        thinker.recommend(["1"], think=True)
    for plain in ({"search": "exact"}, {"diversity": 1.0}):
        with pytest.raises(InputError, match="plain beam search"):
            thinker.recommend(["1"], think=True, **plain)
