"""Free text with items equals generate until a SID begins, the reference beam there, and generate again behind it."""

from __future__ import annotations

import gc
import weakref
from functools import cache

import numpy as np
import pytest
import torch

from llmrec.decode.searcher import Searcher
from llmrec.decode.session import PrefixSession
from llmrec.decode.text import Finished, NamedItem, TextSettings, TextStream, TextToken
from llmrec.decode.text_chain import TextChain, TokenChooser
from llmrec.decode.thought import Thought, ThoughtSettings, ThoughtStream, margin, think_then_recommend
from llmrec.errors import InputError, LLMRecError
from llmrec.testing.search_conformance import assert_same_ranking, search_world
from llmrec.testing.worlds import tiny_tokenizer

STOPS = tuple(tiny_tokenizer().all_special_ids)
FAMILIES = [("llama", True), ("qwen3", False), ("mistral", True), ("gemma2", True)]


@cache
def text_world(family="llama", tied=False, codebook_sizes=(8, 6, 4), seed=0):
    """A world whose model writes words and, every few tokens, wants to begin an item."""
    world = search_world(family, tied=tied, codebook_sizes=codebook_sizes, seed=seed)
    with torch.no_grad():
        head = world.model.get_output_embeddings().weight
        head[torch.from_numpy(world.token_ids[0])] *= 1.6
        head[list(STOPS)] *= 0.1
    return world


def searcher_of(world, normalise="vocab", alive=None):
    return Searcher(world.model, world.trie(alive), world.token_ids, normalise=normalise)


def run(stream):
    events = []
    while not stream.finished:
        events += stream.step()
    return events


def ids_of(events):
    return [token_id for event in events if not isinstance(event, Finished) for token_id in event.ids]


def generated(world, context, count, suppressed):
    """Greedy tokens by `generate`."""
    ids = torch.tensor([context])
    output = world.model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=count,
        suppress_tokens=[int(token_id) for token_id in suppressed],
        eos_token_id=list(STOPS),
        pad_token_id=STOPS[0],
    )
    return output[0, len(context) :].tolist()


def expected_text(world, prompt, settings, normalise, excluded=(), alive=None):
    """The same text by `generate` and the reference beam, everything read anew after each item."""
    first, deeper = set(world.token_ids[0].tolist()), np.concatenate(world.token_ids[1:])
    oracle, written, named = world.oracle(normalise, alive), [], []
    while (left := settings.max_new_tokens - len(written)) > 0:
        fitting = left - len(world.token_ids) + 1  # places at which a whole item still fits
        suppressed = deeper if fitting > 0 else np.concatenate(world.token_ids)
        words = generated(world, [*prompt, *written], fitting if fitting > 0 else left, suppressed)
        end = next((place for place, token_id in enumerate(words) if token_id in first or token_id in STOPS), None)
        written += words[:end]
        if end is None:
            continue
        if words[end] in STOPS:
            return written, named, "stop"
        out = [*excluded, *(() if settings.repeat_items else (row for row, _ in named))]
        best = oracle.beam([*prompt, *written], num_beams=settings.num_beams, top_k=1, excluded=out)
        named.append((int(best.items[0]), float(best.scores[0])))
        written += [int(ids[code]) for ids, code in zip(world.token_ids, world.codes[named[-1][0]], strict=True)]
    return written, named, "length"


@pytest.mark.parametrize(
    ("family", "tied", "normalise"),
    [
        ("llama", True, "vocab"),
        ("qwen3", False, "vocab"),
        ("mistral", True, "legal"),
        ("gemma2", True, "vocab"),
        ("qwen3", False, "level"),
    ],
)
def test_text_and_items_equal_generate_and_the_reference_beam(family, tied, normalise):
    world = text_world(family, tied)
    excluded = [0, 4, 9]
    searcher = searcher_of(world, normalise)
    settings = TextSettings(max_new_tokens=30, num_beams=4)
    num_named = 0
    for prompt in world.prompts[1:]:
        stream = TextStream(
            searcher, prompt, stop_ids=STOPS, settings=settings, allowed=searcher.trie.exclusion(excluded)
        )
        events = run(stream)
        written, named, reason = expected_text(world, prompt, settings, normalise, excluded)
        assert ids_of(events) == stream.token_ids == written
        found = [event for event in events if isinstance(event, NamedItem)]
        assert [event.row for event in found] == [row for row, _ in named]
        np.testing.assert_allclose([event.score for event in found], [score for _, score in named], atol=1e-4)
        assert events[-1] == Finished(reason)
        num_named += len(found)
    assert num_named >= 2


def test_words_before_the_first_item_are_one_run_of_generate():
    world = text_world()
    prompt = world.prompts[2]
    events = run(TextStream(searcher_of(world), prompt, stop_ids=STOPS, settings=TextSettings(max_new_tokens=40)))
    first = next(place for place, event in enumerate(events) if isinstance(event, NamedItem))
    expected = generated(world, list(prompt), first + 1, np.concatenate(world.token_ids[1:]))
    assert ids_of(events[:first]) == expected[:-1]
    assert expected[-1] in world.token_ids[0]


def test_items_exist_live_pass_the_filter_and_are_named_once():
    world = text_world()
    alive = np.arange(len(world.codes)) % 3 != 0
    searcher = searcher_of(world, alive=alive)
    allowed = searcher.trie.allowance([1, 2, 3, 7])  # 3 does not live
    paths = {tuple(path) for path in world.codes[[1, 2, 7]].tolist()}
    sids = np.concatenate(world.token_ids)
    settings = TextSettings(max_new_tokens=300, temperature=1.5, seed=3)
    events = run(TextStream(searcher, world.prompts[1], stop_ids=(), settings=settings, allowed=allowed))
    named = [event for event in events if isinstance(event, NamedItem)]
    assert sorted(event.row for event in named) == [1, 2, 7]
    for event in named:
        codes = tuple(int(np.flatnonzero(ids == one)[0]) for ids, one in zip(world.token_ids, event.ids, strict=True))
        assert codes in paths
    assert not any(np.isin(event.ids, sids).any() for event in events if isinstance(event, TextToken))
    assert len(ids_of(events)) == 300


def test_items_may_be_repeated_where_that_is_asked_for():
    world = text_world()
    searcher = searcher_of(world)
    only = searcher.trie.allowance([6])
    settings = TextSettings(max_new_tokens=60, repeat_items=True)
    events = run(TextStream(searcher, world.prompts[2], stop_ids=(), settings=settings, allowed=only))
    rows = [event.row for event in events if isinstance(event, NamedItem)]
    assert len(rows) > 1
    assert set(rows) == {6}


def test_an_item_that_no_longer_fits_is_not_begun():
    world = text_world()
    searcher = searcher_of(world)
    whole = run(TextStream(searcher, world.prompts[2], stop_ids=(), settings=TextSettings(max_new_tokens=60)))
    before = ids_of(whole[: next(i for i, event in enumerate(whole) if isinstance(event, NamedItem))])
    for more in (1, 2, 3):
        settings = TextSettings(max_new_tokens=len(before) + more)
        events = run(TextStream(searcher, world.prompts[2], stop_ids=(), settings=settings))
        assert len(ids_of(events)) == len(before) + more
        assert any(isinstance(event, NamedItem) for event in events) == (more == 3)
        assert events[-1] == Finished("length")


@pytest.mark.parametrize(
    ("codebook_sizes", "normalise"), [((8, 6, 4), "vocab"), ((8, 6, 4), "legal"), ((40,), "vocab")]
)
def test_a_step_is_at_most_one_forward_and_nothing_is_read_twice(codebook_sizes, normalise):
    world = text_world(codebook_sizes=codebook_sizes)
    searcher = searcher_of(world, normalise)
    read = []
    hook = world.model.get_decoder().register_forward_hook(
        lambda module, args, kwargs, output: read.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    try:
        stream = TextStream(
            searcher, world.prompts[2], stop_ids=STOPS, settings=TextSettings(max_new_tokens=40, num_beams=3)
        )
        assert read == [len(world.prompts[2])]
        events = []
        while not stream.finished:
            before = len(read)
            events += stream.step()
            assert len(read) - before <= 1
    finally:
        hook.remove()
    levels = len(codebook_sizes)
    named = sum(isinstance(event, NamedItem) for event in events)
    assert named >= 1
    # Every written token once, and at most num_beams columns for each level of a search but the last.
    assert sum(read[1:]) <= len(stream.token_ids) + named * 3 * (levels - 1)


def test_streams_and_lists_may_take_turns():
    world = text_world()
    searcher = searcher_of(world)
    settings = TextSettings(max_new_tokens=25, temperature=1.0, seed=5)

    def open_stream(prompt):
        return TextStream(searcher, prompt, stop_ids=STOPS, settings=settings)

    alone = [run(open_stream(prompt)) for prompt in world.prompts]
    streams, events = [open_stream(prompt) for prompt in world.prompts], [[], [], []]
    while not all(stream.finished for stream in streams):
        for stream, mine in zip(streams, events, strict=True):
            mine += stream.step()
        searcher.beam(world.prompts[:1], num_beams=2, top_k=2)
    assert events == alone


def test_closing_frees_the_session():
    world = text_world()
    stream = TextStream(searcher_of(world), world.prompts[2], stop_ids=STOPS)
    stream.step()
    session = weakref.ref(stream._chain.session)
    stream.close()
    gc.collect()
    assert session() is None
    assert stream.finished
    assert stream.step() == []


def test_control_tokens_end_a_text_and_are_not_written():
    world = text_world()
    searcher = searcher_of(world)
    settings = TextSettings(max_new_tokens=20)
    words = run(TextStream(searcher, world.prompts[2], stop_ids=(), settings=settings))
    stop = next(event for event in words[1:] if isinstance(event, TextToken)).ids[0]
    events = run(TextStream(searcher, world.prompts[2], stop_ids=[stop], settings=settings))
    assert events[-1] == Finished("stop")
    assert stop not in ids_of(events)


def test_the_clock_ends_a_text():
    world = text_world()
    seconds = iter(range(100))
    stream = TextStream(
        searcher_of(world),
        world.prompts[2],
        stop_ids=(),
        settings=TextSettings(max_seconds=3.0),
        clock=lambda: float(next(seconds)),
    )
    steps = []
    while not stream.finished:
        steps.append(stream.step())
    assert len(steps) == 3  # it starts at second 0 and looks at 1, 2 and 3
    assert steps[-1] == [Finished("time")]


def test_sampling_follows_its_seed():
    world = text_world()
    searcher = searcher_of(world)

    def sampled(seed, top_p=1.0):
        settings = TextSettings(max_new_tokens=12, temperature=1.2, top_p=top_p, seed=seed)
        return tuple(ids_of(run(TextStream(searcher, world.prompts[2], stop_ids=(), settings=settings))))

    assert sampled(1) == sampled(1)
    assert len({sampled(seed) for seed in range(6)}) > 1
    greedy = run(TextStream(searcher, world.prompts[2], stop_ids=(), settings=TextSettings(max_new_tokens=12)))
    assert sampled(1, top_p=1e-6) == tuple(ids_of(greedy))


def test_draws_are_as_frequent_as_the_tempered_nucleus():
    logits = np.array([2.0, 1.0, 0.5, 0.0, -1.0, 9.0], dtype=np.float32)
    chooser = TokenChooser(temperature=2.0, top_p=0.7, seed=0)
    drawn = np.bincount([chooser.choose(logits.copy(), np.array([5])) for _ in range(4000)], minlength=6) / 4000
    odds = np.exp(logits[:5] / 2)
    odds /= odds.sum()
    assert odds[:2].sum() < 0.7 <= odds[:3].sum()
    np.testing.assert_allclose(drawn, [*(odds[:3] / odds[:3].sum()), 0, 0, 0], atol=0.03)


def test_unusable_settings_and_logits_are_refused():
    world = text_world()
    searcher = searcher_of(world)
    for wrong in ({"max_new_tokens": 0}, {"num_beams": 0}):
        with pytest.raises(InputError, match="at least 1"):
            TextSettings(**wrong)
    for wrong in ({"temperature": -1.0}, {"temperature": float("nan")}, {"top_p": 0.0}, {"top_p": 1.1}, {"seed": -1}):
        with pytest.raises(InputError, match="top_p in"):
            TextStream(searcher, world.prompts[2], stop_ids=(), settings=TextSettings(**wrong))
    with pytest.raises(InputError, match="at least one token"):
        TextStream(searcher, [], stop_ids=())
    with pytest.raises(LLMRecError, match="finite"):
        TokenChooser(0.0, 1.0, 0).choose(np.array([1.0, np.nan], dtype=np.float32), np.zeros(0, dtype=np.int64))


def test_only_the_torch_back_end_writes_text():
    world = text_world()
    searcher = searcher_of(world)
    searcher.backend = object()
    with pytest.raises(InputError, match="written by the torch back end"):
        TextChain(searcher, world.prompts[2], max_new_tokens=5)


# -- thoughts ----------------------------------------------------------------------------------------------------------


def expected_thought(world, prompt, count):
    """Greedy tokens one by one; a SID token only where it makes or continues the beginning of an item."""
    level_of = {int(token_id): level for level, ids in enumerate(world.token_ids) for token_id in ids}
    beginnings = {
        tuple(int(ids[code]) for ids, code in zip(world.token_ids, path[:depth], strict=False))
        for path in world.codes.tolist()
        for depth in range(1, len(world.token_ids))
    }
    written, prefix = [], ()
    for _ in range(count):
        with torch.no_grad():
            logits = world.model(input_ids=torch.tensor([[*prompt, *written]]), use_cache=False).logits[0, -1]
        for token_id in level_of:
            if (*prefix, token_id) not in beginnings and (token_id,) not in beginnings:
                logits[token_id] = -torch.inf
        written.append(int(logits.argmax()))
        last = written[-1]
        prefix = () if last not in level_of else (*prefix, last) if (*prefix, last) in beginnings else (last,)
    return written


CLOSING = (301, 302)


@pytest.mark.parametrize(("family", "tied"), FAMILIES)
def test_a_thought_is_bounded_closed_and_followed_by_the_reference_search(family, tied):
    world = text_world(family, tied)
    searcher = searcher_of(world)
    settings = ThoughtSettings(max_thought_tokens=14, num_beams=6, top_k=5)
    excluded = [1, 2, 5]
    for prompt in world.prompts[1:]:
        thought = think_then_recommend(
            searcher,
            prompt,
            closing_ids=CLOSING,
            stop_ids=(),
            settings=settings,
            allowed=searcher.trie.exclusion(excluded),
        )
        assert thought.end == "length"
        assert list(thought.ids) == [*expected_thought(world, prompt, 14), *CLOSING]
        expected = world.oracle().beam([*prompt, *thought.ids], num_beams=6, top_k=5, excluded=excluded)
        assert_same_ranking(thought.result, expected)


def test_a_thought_may_hold_bare_prefixes():
    world = text_world()
    settings = ThoughtSettings(max_thought_tokens=40, num_beams=2, top_k=2, temperature=1.0, seed=2)
    thought = think_then_recommend(searcher_of(world), world.prompts[1], closing_ids=(), stop_ids=(), settings=settings)
    level_of = {int(token_id): level for level, ids in enumerate(world.token_ids) for token_id in ids}
    levels = [level_of.get(token_id, -1) for token_id in thought.ids]
    assert 0 in levels
    assert max(levels) <= 1  # the last level would complete an item
    for before, level in zip([-1, *levels], levels, strict=False):
        assert level <= before + 1


def test_the_model_may_end_its_thought_itself():
    world = text_world()
    searcher = searcher_of(world)
    written = expected_thought(world, world.prompts[1], 12)
    closing = written[5:7]
    settings = ThoughtSettings(max_thought_tokens=30, num_beams=3, top_k=3)
    # A marker that is also a control token is no control token here.
    for stop_ids in ((), closing):
        thought = think_then_recommend(
            searcher, world.prompts[1], closing_ids=closing, stop_ids=stop_ids, settings=settings
        )
        assert thought.end == "closed"
        end = next(i for i in range(1, 12) if written[i - 1 : i + 1] == closing) + 1
        assert list(thought.ids) == written[:end]


def test_closing_tokens_that_are_half_written_are_completed():
    world = text_world()
    written = expected_thought(world, world.prompts[1], 6)
    closing = [*written[4:6], 303]
    assert closing[0] not in written[:4]
    settings = ThoughtSettings(max_thought_tokens=6, num_beams=3, top_k=3)
    thought = think_then_recommend(
        searcher_of(world), world.prompts[1], closing_ids=closing, stop_ids=(), settings=settings
    )
    assert list(thought.ids) == [*written, 303]
    assert thought.end == "length"


def test_a_control_token_or_the_clock_ends_a_thought_and_the_search_is_made_all_the_same():
    world = text_world()
    searcher = searcher_of(world)
    written = expected_thought(world, world.prompts[1], 8)
    settings = ThoughtSettings(max_thought_tokens=30, num_beams=3, top_k=3)
    stop = written[4]
    thought = think_then_recommend(searcher, world.prompts[1], closing_ids=CLOSING, stop_ids=[stop], settings=settings)
    assert thought.end == "stop"
    assert list(thought.ids) == [*written[: written.index(stop)], *CLOSING]
    assert len(thought.result.items) == 3

    seconds = iter(range(100))
    stream = ThoughtStream(
        searcher,
        world.prompts[1],
        closing_ids=CLOSING,
        stop_ids=(),
        settings=ThoughtSettings(max_seconds=3.0),
        clock=lambda: float(next(seconds)),
    )
    *said, last = run_thought(stream)
    assert isinstance(last, Thought)
    assert last.end == "time"
    assert [token_id for event in said for token_id in event.ids] == list(last.ids) == [*written[:2], *CLOSING]


def run_thought(stream):
    events = []
    while not stream.finished:
        events += stream.step()
    return events


def test_no_budget_closes_at_once():
    world = text_world()
    settings = ThoughtSettings(max_thought_tokens=0, num_beams=4, top_k=4)
    thought = think_then_recommend(
        searcher_of(world), world.prompts[1], closing_ids=CLOSING, stop_ids=(), settings=settings
    )
    assert thought.ids == CLOSING
    assert_same_ranking(thought.result, world.oracle().beam([*world.prompts[1], *CLOSING], num_beams=4, top_k=4))


def test_prompt_and_thought_are_read_once(monkeypatch):
    world = text_world()
    searcher = searcher_of(world)
    opened = []
    original = PrefixSession.__init__
    monkeypatch.setattr(
        PrefixSession,
        "__init__",
        lambda self, *args, **options: (opened.append(1), original(self, *args, **options))[1],
    )
    settings = ThoughtSettings(max_thought_tokens=5, num_beams=3, top_k=3)
    think_then_recommend(searcher, world.prompts[1], closing_ids=CLOSING, stop_ids=(), settings=settings)
    assert opened == [1]


def test_unusable_thought_settings_are_refused():
    for wrong in ({"max_thought_tokens": -1}, {"top_k": 0}, {"top_k": 30}):
        with pytest.raises(InputError, match="1 <= top_k <= num_beams"):
            ThoughtSettings(**wrong)


def test_no_thought_where_the_plain_search_is_sure():
    world = text_world()
    searcher = searcher_of(world)
    ends = set()
    for prompt in world.prompts[1:]:
        excluded = searcher.trie.exclusion([1, 2])
        (plain,) = searcher.beam([prompt], num_beams=6, top_k=5, excluded=[excluded])
        lead = margin(plain)
        assert lead == plain.scores[0] - plain.scores[plain.bucket_of == 1][0]
        for threshold in (lead * 0.99, lead * 1.01):
            settings = ThoughtSettings(max_thought_tokens=5, num_beams=6, top_k=5, sure_margin=threshold)
            thought = think_then_recommend(
                searcher, prompt, closing_ids=CLOSING, stop_ids=(), settings=settings, allowed=excluded,
                opening_ids=[303, 304],
            )  # fmt: skip
            ends.add(thought.end)
            if threshold < lead:
                assert thought.end == "sure"
                assert thought.ids == ()
                assert_same_ranking(thought.result, plain)
                continue
            # the plain search before it leaves no trace
            opened = [*prompt, 303, 304]
            assert list(thought.ids) == [303, 304, *expected_thought(world, opened, 5), *CLOSING]
            expected = world.oracle().beam([*prompt, *thought.ids], num_beams=6, top_k=5, excluded=[1, 2])
            assert_same_ranking(thought.result, expected)
    assert ends == {"sure", "length"}
    with pytest.raises(InputError, match="sure_margin"):
        ThoughtSettings(sure_margin=-1.0)
