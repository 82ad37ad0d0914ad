"""What people look at: the page, the terminal table, the examples, progress, and the command."""

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from llmrec.cli.eval import app
from llmrec.errors import InputError
from llmrec.eval.config import EvalConfig
from llmrec.eval.evaluate import evaluate
from llmrec.eval.examples import example_users
from llmrec.eval.progress import shown
from llmrec.eval.report import ShownExplanation, StageTime, clock, render_report, write_report
from llmrec.eval.table import decimal, print_examples, print_table
from llmrec.sid_vocab.report import health_report

LOG = [
    {"stage": stage, "step": step, "steps": 4, "tokens": 1000 * step, "seconds": step, "loss": 5.0 - step}
    | ({"valid_loss": 5.5 - step} if step % 2 == 0 else {})
    for stage in ("cpt", "sft")
    for step in range(5)
]


@pytest.fixture(scope="module")
def page(result: Any, dataset: Any, world: Any) -> str:
    table = world.renderer.table
    titles = [dataset.catalog.title(item_id) for item_id in table.item_ids]
    return render_report(
        result,
        dataset,
        facts={"base model": "tiny & small"},
        train_log=[*LOG, {"stage": "cpt", "step": 9}],
        sid_report=health_report(table, titles, notes=["a note"]).as_dict(),
        stages=[StageTime("cpt", 90), StageTime("eval", 30, skipped=True)],
        explanations=[ShownExplanation(("A <i>",), "B", "because <script>", ("C & D",))],
    )


def test_page_shows_the_figures(result: Any, page: str) -> None:
    for models in result.summary["modes"].values():
        for metrics in models.values():
            for one in metrics.values():
                assert decimal(one["value"]) in page
    assert result.summary["loo_sha256"] in page
    for words in (
        "tiny &amp; small",
        "million tokens seen",
        "1 min 30 s",
        "from an earlier run",
        "a note",
        "C &amp; D",
    ):
        assert words in page
    assert "ease, sasrec" in page  # what was left out


def test_page_is_self_contained_and_escaped(page: str) -> None:
    assert "<script" not in page
    assert "<b>model</b>" not in page
    assert "A &lt;i&gt;" in page
    assert not re.search(r"(src|href)=\"(?!#)", page)
    assert not re.search(r"url\((?!#)", page)
    assert page.count("<svg") == 3


def test_page_without_extras(result: Any, dataset: Any, tmp_path: Path) -> None:
    path = write_report(tmp_path / "deep" / "report.html", result, dataset)
    text = path.read_text()
    for heading in ("How did it learn", "The Semantic IDs", "Where the time went", "Why?"):
        assert heading not in text


def test_examples_are_the_first_by_hash(result: Any, dataset: Any) -> None:
    first = example_users(result, dataset, count=3)
    assert [one.user_id for one in first] == ["39", "9", "8"]
    for example in example_users(result, dataset, count=40):
        row = dataset.split.users.index(example.user_id)
        sequence = [dataset.split.items[item] for item in dataset.split.sequences[row]]
        assert [item.item_id for item in example.history] == sequence[-6:-1][-5:]
        assert example.target.item_id == sequence[-1]
        hits = [place for place, item in enumerate(example.recommended, start=1) if item.is_target]
        assert hits == ([example.place] if 1 <= example.place <= 5 else [])
    assert example_users(result, dataset, user_ids=["7"])[0].user_id == "7"


def printed(what: Any, *args: Any) -> str:
    console = Console(width=100, file=io.StringIO())
    what(*args, console)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_table_fits_100_columns(result: Any, dataset: Any) -> None:
    text = printed(print_table, result)
    assert max(map(len, text.splitlines())) <= 100
    assert "…" not in text.split("checkpoint chosen")[0]
    for model in result.models:
        for mode in result.modes:
            assert decimal(result.value(model, "NDCG@10", mode)) in text
    assert "0 of 1,600 checked" in text
    examples = printed(print_examples, example_users(result, dataset, count=40))
    assert "taken next" in examples
    assert "not in the list" in examples


def test_subset_is_said(dataset: Any) -> None:
    some = evaluate(dataset, {}, EvalConfig(users=9, baselines={"popularity": {}}), warnings=["look out"])
    assert "9 of 40 users" in printed(print_table, some)
    page = render_report(some, dataset)
    assert "9 of 40 users" in page
    assert "look out" in page


def test_progress_without_a_terminal_prints_lines_with_an_eta() -> None:
    console = Console(file=io.StringIO(), width=100)
    with shown(console, every_seconds=0) as progress:
        progress("model: search", 10, 40)
        progress("model: search", 40, 40)
    assert re.search(r"model: search 10/40 \(\d+ s, about \d+ s left\)", console.file.getvalue())  # type: ignore[attr-defined]
    console = Console(file=io.StringIO(), width=100, force_terminal=True)
    with shown(console) as progress:
        progress("model: search", 10, 40)
    assert "10/40" in console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("seconds", "words"), [(3.21, "3.2 s"), (48, "48 s"), (723, "12 min 3 s"), (3900, "1 h 5 min")]
)
def test_clock(seconds: float, words: str) -> None:
    assert clock(seconds) == words


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from llmrec.testing.checkpoints import tiny_parts

    folder = tmp_path_factory.mktemp("run") / "sft"
    tiny_parts().write(folder)
    return folder


def test_command(checkpoint: Path, dataset: Any, tmp_path: Path) -> None:
    from llmrec.testing.worlds import write_tiny_folder

    data, output = write_tiny_folder(tmp_path / "tiny"), tmp_path / "out"
    words = [
        str(checkpoint),
        "--data",
        str(data),
        "--users",
        "8",
        "--output",
        str(output),
        "baselines={popularity: {}}",
    ]
    run = CliRunner().invoke(app, [*words, "--json"])
    assert run.exit_code == 0, run.output
    summary = json.loads(run.stdout)
    assert summary == json.loads((output / "eval.json").read_text())
    assert list(summary["modes"]["filtered"]) == ["sft", "popularity"]
    assert (summary["users"], summary["invalid"], summary["seeds"], summary["window"]) == (8, 0, [0], 8)
    assert "trained on tiny with split unknown" in summary["warnings"][0]
    assert "sft" in (output / "report.html").read_text()

    lists = tmp_path / "team.csv"
    lists.write_text("user_id,items\n" + "".join(f"{user},1 2 3\n" for user in range(1, 41)))
    run = CliRunner().invoke(app, [*words, "--predictions", str(lists)])
    assert run.exit_code == 0, run.output
    assert "team" in run.stdout
    assert "report.html" in run.stdout


@pytest.mark.parametrize(
    "words", [[], ["a", "b"], ["--predictions", "nothing.csv", "--data", "asset:ml-100k"], ["no-such-folder"]]
)
def test_command_refuses(words: list[str]) -> None:
    run = CliRunner().invoke(app, words)
    assert isinstance(run.exception, InputError)
