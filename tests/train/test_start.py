"""What learns after SFT, by the kind of checkpoint and the flow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from llmrec.checkpoint import Checkpoint, LineageEntry, describe_base
from llmrec.errors import InputError
from llmrec.testing.checkpoints import tiny_adapter, tiny_base, tiny_parts
from llmrec.train import start
from llmrec.train.config import StageConfig

SFT = [LineageEntry(stage="cpt", config_hash="c0ffee"), LineageEntry(stage="sft", config_hash="c0ffee")]


def learns(model: Any) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.fixture
def full(tmp_path: Path) -> Checkpoint:
    return tiny_parts().write(tmp_path / "sft", lineage=SFT)


def test_a_full_model_gets_a_new_adapter_that_changes_nothing_yet(full: Checkpoint) -> None:
    ids = torch.tensor([[3, 4, 5]])
    with torch.no_grad():
        before = full.load_model("float32")(ids).logits
        model = start.prepare_start("preference", full, StageConfig(train_sid_rows=False), "extended_base")
        assert model.training
        assert all("lora" in name for name in learns(model))
        torch.testing.assert_close(model.eval()(ids).logits, before)


def test_a_full_model_may_learn_in_full(full: Checkpoint) -> None:
    config = StageConfig(method="full", train_sid_rows=False)
    model = start.prepare_start("preference", full, config, "extended_base")
    assert learns(model) == {name for name, _ in model.named_parameters()}


def test_a_start_without_sft_and_contradicting_settings_are_refused(full: Checkpoint, tmp_path: Path) -> None:
    untaught = tiny_parts().write(tmp_path / "cpt")
    with pytest.raises(InputError, match=r"has seen no sft, and no stage with the task behaviour \(stages: cpt\)"):
        start.prepare_start("preference", untaught, StageConfig(train_sid_rows=False), "extended_base")
    with pytest.raises(InputError, match=r"preference\.train_sid_rows is true"):
        start.prepare_start("preference", full, StageConfig(), "extended_base")


@pytest.mark.parametrize(("task", "taught"), [("behaviour", True), ("sid_to_title", False)])
def test_a_stage_before_sft_counts_where_it_taught_what_is_served(tmp_path: Path, task: str, taught: bool) -> None:
    card = tiny_parts().write(tmp_path / "cpt", recipe={"cpt": {"tasks": {task: {}}}, "sft": None}).card
    assert start.has_learnt(card) == taught


@pytest.mark.parametrize("rows", [True, False])
def test_an_adapter_learns_on_with_its_sid_rows_where_they_are_asked_for(tmp_path: Path, rows: bool) -> None:
    base = tiny_base(tmp_path / "base")
    parts = tiny_adapter(tmp_path / "first", base)[0]
    found = Checkpoint.write(
        tmp_path / "sft",
        model=parts.load_peft("float32"),
        tokenizer=parts.tokenizer,
        table=parts.table,
        templates=parts.templates,
        catalog=parts.catalog,
        flow="adapter",
        base=describe_base(base),
        lineage=SFT,
        recipe={},
        data=parts.card.data,
        serving=parts.card.serving,
    )
    model = start.prepare_start("preference", found, StageConfig(train_sid_rows=rows), "adapter")
    assert any("lora" in name for name in learns(model))
    assert any("trainable_tokens_delta" in name for name in learns(model)) == rows
    with pytest.raises(InputError, match=r"preference\.method is full, but .* is an adapter"):
        start.prepare_start("preference", found, StageConfig(method="full"), "adapter")
