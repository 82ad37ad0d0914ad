"""One forward over a prefix tree: log-probabilities and gradients are those of a forward per completion."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from llmrec.decode.trie import SIDTrie
from llmrec.errors import InputError, LLMRecError
from llmrec.sid_vocab.table import SIDTable
from llmrec.testing.search_conformance import SearchWorld, search_world
from llmrec.train import tree_forward
from llmrec.train.prefix_tree import TreeRow, pack
from llmrec.train.tree_forward import TreeForward

FAMILIES = [("llama", True), ("qwen3", True), ("qwen3", False), ("mistral", True), ("gemma2", True)]


def sid_table(world: SearchWorld) -> SIDTable:
    table = SIDTable(tuple(map(str, range(len(world.codes)))), world.codes.astype(np.int32), world.codebook_sizes)
    return table.with_token_ids(world.token_ids)


def softened(world: SearchWorld) -> SearchWorld:
    """Random weights that leave gradients to compare: the search's worlds are sharp."""
    with torch.no_grad():
        for parameter in world.model.parameters():
            if parameter.ndim == 2:
                parameter.div_(4.0)
    return world


def make_rows(world: SearchWorld) -> list[TreeRow]:
    """Prompts of 3, 11 and 24 tokens; completions that share prefixes, repeat, differ in length, or hold text."""
    sids = np.stack([ids[codes] for ids, codes in zip(world.token_ids, world.codes.T, strict=True)], axis=1)
    some = sids[[0, 1, 5, 0, 9]].tolist()
    return [
        TreeRow(world.prompts[0], some),
        TreeRow(world.prompts[1], [[7, 8, *some[1]], [7, 9], [7], [*some[2], 2]]),
        TreeRow(world.prompts[2], [some[3]]),
    ]


def plain(
    model: Any, world: SearchWorld, rows: list[TreeRow], normalise: str, trie: SIDTrie, temperature: float = 1.0
) -> list[torch.Tensor]:
    """Per completion the log-probabilities of its tokens, from a forward of its own."""
    found = []
    for row in rows:
        for number, completion in enumerate(row.completions):
            text = row.text[number] if len(row.text) else 0
            ids = torch.tensor([[*row.prompt, *completion]])
            logits = model(input_ids=ids, use_cache=False).logits[0, len(row.prompt) - 1 : -1] / temperature
            values, node = [], 0
            for place, (token, each) in enumerate(zip(completion, logits, strict=True)):
                over = np.arange(logits.shape[1])
                level = next((i for i, known in enumerate(world.token_ids) if token in known), None)
                if level is not None and place >= text and normalise != "vocab":
                    over = world.token_ids[level]
                    if normalise == "legal":
                        children = trie.children(level, np.array([node if level else 0]), row.allowed)
                        code = int(np.flatnonzero(over == token)[0])
                        node = int(children.node[children.code == code][0])
                        over = over[children.code]
                values.append(each[token] - torch.logsumexp(each[torch.from_numpy(over)], dim=0))
            found.append(torch.stack(values))
    return found


def gradients(model: Any, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    return {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}


def check(
    model: Any,
    world: SearchWorld,
    normalise: Any,
    *,
    temperature: float = 1.0,
    given: tuple[SIDTrie, list[TreeRow]] | None = None,
) -> None:
    table = sid_table(world)
    if given is not None:
        trie, rows = given
    else:
        trie, rows = world.trie(), make_rows(world)
        rows[0] = TreeRow(rows[0].prompt, rows[0].completions, trie.exclusion(np.array([20, 21, 22])))
    forward = TreeForward(model, normalise=normalise, table=table, trie=trie, temperature=temperature)
    found = forward(rows)
    expected = plain(model, world, rows, normalise, trie, temperature)
    assert found.row.tolist() == [number for number, row in enumerate(rows) for _ in row.completions]
    assert found.mask.sum(dim=1).tolist() == [len(each) for each in expected]
    for ours, mask, theirs in zip(found.tokens, found.mask, expected, strict=True):
        torch.testing.assert_close(ours[mask], theirs, atol=1e-4, rtol=0)
        assert not ours[~mask].any()
    # a loss in which no two completions weigh the same
    weights = torch.linspace(-1, 2, len(expected))
    shared = gradients(model, (weights * found.sums).sum())
    total = sum((w * each.sum() for w, each in zip(weights, expected, strict=True)), torch.zeros(()))
    separate = gradients(model, total)
    assert shared.keys() == separate.keys()
    largest = max(each.abs().max().item() for each in separate.values())
    assert largest > 1e-3
    for name, each in separate.items():
        torch.testing.assert_close(shared[name], each, atol=1e-4 * largest, rtol=1e-3, msg=name)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(("family", "tied"), FAMILIES)
def test_equals_a_forward_per_completion(family: Any, tied: bool, attention: str) -> None:
    # Mistral and Gemma 2 have a window of 16 here: it cuts the prompt of 24, and the one of 11 with what follows
    world = softened(search_world(family, tied=tied))
    world.model.set_attn_implementation(attention)
    check(world.model, world, "vocab")


@pytest.mark.parametrize("normalise", ["level", "legal"])
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_normalises_as_the_search_does(family: Any, normalise: str) -> None:
    world = softened(search_world(family))
    check(world.model, world, normalise, temperature=0.7)


@pytest.mark.parametrize("normalise", ["vocab", "level"])
def test_adapters_with_trained_sid_rows(normalise: str) -> None:
    from peft import LoraConfig, get_peft_model

    from llmrec.sid_vocab.adapter_rows import patch_trainable_tokens_bias, trainable_rows_config

    world = softened(search_world())
    patch_trainable_tokens_bias()
    rows = trainable_rows_config(world.model, sid_table(world))
    adapted = get_peft_model(
        world.model,
        LoraConfig(target_modules="all-linear", init_lora_weights=False, trainable_token_indices=rows),
    )
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "trainable_tokens_delta" in name:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    check(adapted, world, normalise)


@pytest.mark.parametrize("normalise", ["level", "legal", "vocab"])
def test_sid_tokens_of_a_thought_are_text_and_those_behind_it_are_not(normalise: str) -> None:
    """A thought names prefixes of items that may not be answered, and tokens in an order that no item has."""
    world = softened(search_world())
    sids = np.stack([ids[codes] for ids, codes in zip(world.token_ids, world.codes.T, strict=True)], axis=1).tolist()
    trie = world.trie()
    seen = trie.exclusion(np.flatnonzero(world.codes[:, 0] == world.codes[9, 0]))  # the whole subtree
    other = next(sid for sid in sids if sid[0] != sids[9][0])
    first, second = [7, 8, sids[9][0], 5, sids[9][1]], [7, 8, sids[9][0]]
    completions = [[*first, *other], [*second, *other], second, other, first]
    rows = [
        TreeRow(world.prompts[1], completions, seen, text=[5, 3, 3, 0, 5]),
        TreeRow(world.prompts[0], [[7, *sids[1]], sids[1]], text=(1, 0)),
        TreeRow(world.prompts[2], [sids[5]]),
    ]
    check(world.model, world, normalise, temperature=0.8, given=(trie, rows))


def test_prefixes_stand_once_and_last_tokens_not_at_all() -> None:
    packed = pack([TreeRow([1, 2], [[5, 6, 7], [5, 6, 8], [5, 9], [5, 6, 7]]), TreeRow([1, 2, 3], [[5]])])
    assert packed.ids.tolist() == [[0, 1, 2, 5, 6], [1, 2, 3, 0, 0]]
    assert packed.positions[0].tolist()[1:] == [0, 1, 2, 3]
    assert packed.column[packed.tokens >= 0].tolist() == [2, 3, 4, 2, 3, 4, 2, 3, 2, 3, 4, 2]
    assert packed.visible[0, 4].tolist() == [False, True, True, True, True]
    assert packed.visible[0, 0].tolist() == [True, False, False, False, False]


def test_entropy_is_that_of_what_the_token_was_drawn_from() -> None:
    world = softened(search_world())
    table, trie, rows = sid_table(world), world.trie(), make_rows(world)[:1]
    vocab = TreeForward(world.model)(rows, entropy=True)
    with torch.no_grad():
        logits = world.model(torch.tensor([[*rows[0].prompt, *rows[0].completions[0]]])).logits[0, 2:-1]
    expected = torch.distributions.Categorical(logits=logits).entropy()  # type: ignore[no-untyped-call]
    assert vocab.entropy is not None
    torch.testing.assert_close(vocab.entropy[0], expected, atol=1e-4, rtol=1e-4)
    assert not vocab.entropy.requires_grad
    legal = TreeForward(world.model, normalise="legal", table=table, trie=trie)(rows, entropy=True)
    assert legal.entropy is not None
    assert torch.isfinite(legal.entropy).all()
    assert (legal.entropy < np.log(9)).all()


def test_chunks_of_the_vocabulary_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    world = softened(search_world())
    rows = make_rows(world)
    whole = TreeForward(world.model)(rows, entropy=True)
    expected = gradients(world.model, whole.sums.sum())
    monkeypatch.setattr(tree_forward, "_MAX_LOGITS", 1000)
    parts = TreeForward(world.model)(rows, entropy=True)
    torch.testing.assert_close(parts.tokens, whole.tokens)
    torch.testing.assert_close(parts.entropy, whole.entropy)
    for name, each in gradients(world.model, parts.sums.sum()).items():
        torch.testing.assert_close(each, expected[name], atol=1e-5, rtol=1e-3, msg=name)


def test_refuses_what_it_cannot_score() -> None:
    world = search_world()
    table, trie = sid_table(world), world.trie()
    with pytest.raises(InputError, match="at least one row"):
        pack([])
    for row in (TreeRow([], [[1]]), TreeRow([1], []), TreeRow([1], [[1], []])):
        with pytest.raises(InputError, match="Row 1 has an empty prompt, no completion or an empty one"):
            pack([TreeRow([1], [[1]]), row])
    with pytest.raises(InputError, match="Row 0 has 2 completions, and text for 1"):
        pack([TreeRow([1], [[1], [2]], text=[1])])
    with pytest.raises(InputError, match="needs a SID table"):
        TreeForward(world.model, normalise="level")
    with pytest.raises(InputError, match="needs the trie"):
        TreeForward(world.model, normalise="legal", table=table)
    with pytest.raises(InputError, match="temperature"):
        TreeForward(world.model, temperature=0)
    legal = TreeForward(world.model, normalise="legal", table=table, trie=trie)
    sid = [int(ids[code]) for ids, code in zip(world.token_ids, world.codes[5], strict=True)]
    legal([TreeRow([1], [sid])])
    with pytest.raises(InputError, match="Completion 0 has a SID that the search could not have returned"):
        legal([TreeRow([1], [sid], trie.exclusion(np.flatnonzero((world.codes == world.codes[5]).all(axis=1))))])
    forward = TreeForward(world.model)
    with torch.no_grad():
        world.model.get_input_embeddings().weight[7] = torch.nan
    with pytest.raises(LLMRecError, match="NaN"):
        forward([TreeRow([3, 7], [[4]])])


@pytest.mark.parametrize(("family", "tied"), FAMILIES)
def test_mixed_precision_stays_near_and_gives_gradients(family: Any, tied: bool) -> None:
    world = softened(search_world(family, tied=tied))
    forward = TreeForward(world.model, normalise="level", table=sid_table(world))
    exact = forward(make_rows(world)).sums
    with torch.autocast("cpu", torch.bfloat16):
        near = forward(make_rows(world)).sums
    assert not torch.equal(near, exact)
    torch.testing.assert_close(near.float(), exact, rtol=0.05, atol=0.2)
    found = gradients(world.model, near.sum())
    assert found
    assert all(each.isfinite().all() and each.dtype == torch.float32 for each in found.values())
