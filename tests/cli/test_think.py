"""``llmrec think`` from the command line: data that reads back, and the gate's verdict."""

import json
from typing import Any

import pytest

from llmrec import cli
from llmrec.checkpoint_card import DataCard
from llmrec.data.config import DataConfig
from llmrec.data.dataset import read_data
from llmrec.prompts.think import read_rows
from llmrec.testing.checkpoints import tiny_parts
from llmrec.testing.worlds import write_tiny_folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Two checkpoints: of the data's split, and of another."""
    folder = tmp_path_factory.mktemp("think")
    settings = {"path": str(write_tiny_folder(folder / "data")), "attributes": ["genres"]}
    dataset = read_data(DataConfig(**settings))
    parts = tiny_parts()
    for name, check in (("sft", dataset.split.loo_sha256), ("other", "0" * 64)):
        card = DataCard(name="tiny", loo_sha256=check, fingerprint=dataset.fingerprint)
        parts.write(folder / name, data=card, recipe={"seed": 0, "data": settings})
    return folder


@pytest.fixture
def llmrec(capsys: Any, monkeypatch: Any, tmp_path: Any) -> Any:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")

    def call(*words: Any) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main([str(word) for word in words])
        captured = capsys.readouterr()
        code = end.value.code
        return (code if isinstance(code, int) else 0), captured.out, captured.err

    return call


def test_data_is_made_checked_and_written(llmrec: Any, run: Any, tmp_path: Any) -> None:
    code, out, err = llmrec("think", "data", run / "sft", "recent_events=1")
    assert code == 0, err
    rows = read_rows(tmp_path / "runs" / "think" / "think.jsonl")
    assert f"{len(rows)} thoughts about train events" in out
    assert "all true" in out
    code, _, err = llmrec("think", "data", run / "sft")
    assert code == 2
    assert "exists already" in err


def test_the_gate_tells_what_to_serve(llmrec: Any, run: Any, tmp_path: Any) -> None:
    words = ("users=4", "max_thought_tokens=4", "sure_margin=1.0")
    code, out, err = llmrec("think", "gate", run / "sft", *words)
    assert code == 0, err
    assert "serve plain" in out  # a random model does not think well
    assert "adaptive" in out
    told = json.loads((tmp_path / "runs" / "think" / "sft" / "think_gate.json").read_text())
    assert told["serve"] == "plain"
    assert told["config"]["users"] == 4


def test_what_cannot_be_judged_is_refused(llmrec: Any, run: Any) -> None:
    for words, message in (
        (("gate", run / "other"), "it may have learnt targets"),
        (("data", run / "other"), "it may have learnt targets"),
        (("gate", run / "sft", "usres=3"), "users"),
        (("gate", run), "no llmrec checkpoint"),
    ):
        code, _, err = llmrec("think", *words)
        assert code == 2
        assert message in err
