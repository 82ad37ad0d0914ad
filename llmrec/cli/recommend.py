"""``llmrec recommend``: the next items for a history of ids or titles, or for a file of users."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from llmrec.recommendation import Recommendations, Search, ThoughtReport
    from llmrec.recommender import Recommender
    from llmrec.title_match import Match

app = typer.Typer(add_completion=False)


@app.command()
def recommend(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint folder.")],
    history: Annotated[
        list[str] | None,
        typer.Argument(metavar="[ITEM_OR_TITLE]...", help="The history, oldest first; none asks without a history."),
    ] = None,
    k: Annotated[int, typer.Option("--k", "-k", help="Items wanted.")] = 10,
    num_beams: Annotated[int | None, typer.Option(help="Beam width; by default the checkpoint's.")] = None,
    exact: Annotated[bool, typer.Option("--exact", help="Search exactly instead of with a beam; slower.")] = False,
    source: Annotated[
        Path | None, typer.Option("--input", help="Users in .parquet, .csv or .jsonl: item rows, or a list history.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="With --input: the Parquet file to write.")] = None,
    think: Annotated[bool, typer.Option("--think", help="Think first, where the checkpoint was taught to.")] = False,
    max_thought_tokens: Annotated[
        int | None, typer.Option(min=1, help="With --think: budget of the thought; by default the gate's.")
    ] = None,
    sure_margin: Annotated[
        float | None, typer.Option(min=0, help="With --think: no thought where the best SID leads by so many nats.")
    ] = None,
    engine: Annotated[Literal["torch", "vllm"], typer.Option(help="What runs the model.")] = "torch",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Recommend the next items for a history, or with --input and --output for a file of users (resumable)."""
    from llmrec.cli.loading import load_recommender
    from llmrec.errors import InputError
    from llmrec.recommendation import MAX_THOUGHT_TOKENS, ThoughtOptions

    if not think and (max_thought_tokens is not None or sure_margin is not None):
        raise InputError("--max-thought-tokens and --sure-margin go with --think.", hint="add --think")
    if think and source:
        raise InputError("--think is for one history, not for a file of users.", hint="leave --think or --input out")
    if (source is None) != (output is None) or (source and history):
        raise InputError(
            "--input and --output belong together, and exclude a history on the command line.",
            hint="llmrec recommend CHECKPOINT --input users.parquet --output recs.parquet",
        )
    search: Search = "exact" if exact else "beam"
    if source and output:
        _check_output(output)
        _file(load_recommender(checkpoint, engine), source, output, k, num_beams, search, as_json)
        return
    recommender = load_recommender(checkpoint, engine)
    matches = recommender.titles.resolve(history or [])
    answer = recommender.recommend(
        [match.item_id for match in matches],
        k,
        num_beams=num_beams,
        search=search,
        think=think and ThoughtOptions(max_thought_tokens or MAX_THOUGHT_TOKENS, sure_margin),
    )
    if as_json:
        typer.echo(json.dumps(_as_dict(matches, answer), indent=2, ensure_ascii=False))
    else:
        _print(matches, answer)


def _check_output(output: Path) -> None:
    """Before the model is loaded, which takes a while."""
    from llmrec.errors import InputError

    if output.suffix != ".parquet":
        raise InputError(f"--output {output} must end in .parquet", hint="recommendations are written as Parquet")
    if output.exists():
        raise InputError(f"{output} exists already and is not overwritten", hint="remove it or give another name")


def _file(
    recommender: Recommender,
    source: Path,
    output: Path,
    k: int,
    num_beams: int | None,
    search: Search,
    as_json: bool,
) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from llmrec.batch_recommend import recommend_file

    columns = (TextColumn("users"), BarColumn(), MofNCompleteColumn(), TextColumn("left"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("users", total=None)

        def progress(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        summary = recommend_file(
            recommender, source, output, k=k, num_beams=num_beams, search=search, progress=progress
        )
    if as_json:
        report = {
            "output": str(summary.output),
            "users": summary.users,
            "users_resumed": summary.users_resumed,
            "users_unknown_only": list(summary.users_unknown_only),
            "users_short": summary.users_short,
            "unknown_items": summary.unknown_items,
        }
        typer.echo(json.dumps(report, indent=2, ensure_ascii=False))
        return
    typer.echo(f"{summary.users - len(summary.users_unknown_only):,} of {summary.users:,} users: {summary.output}")
    if summary.users_resumed:
        typer.echo(f"{summary.users_resumed:,} of them were finished by an earlier run")
    if summary.unknown_items:
        typer.echo(f"{summary.unknown_items:,} history items have no SID and were skipped")
    if summary.users_unknown_only:
        shown = ", ".join(summary.users_unknown_only[:5])
        typer.echo(f"{len(summary.users_unknown_only):,} users have unknown items only and no row: {shown}")
    if summary.users_short:
        typer.echo(f"{summary.users_short:,} users have fewer than {k} items: no more are left for them")


def _as_dict(matches: list[Match], answer: Recommendations) -> dict[str, Any]:
    import dataclasses

    return {
        "history": [dataclasses.asdict(match) for match in matches],
        "search": answer.search,
        "num_beams": answer.num_beams,
        "normalise": answer.normalise,
        "truncated_items": answer.truncated_items,
        "notes": list(answer.notes),
        "items": [dataclasses.asdict(item) for item in answer],
        **({"thought": answer.thought.as_json()} if answer.thought else {}),
    }


def _print(matches: list[Match], answer: Recommendations) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from llmrec.cli.loading import history_table

    console = Console()
    if matches:
        console.print(history_table(matches))
    if answer.truncated_items:
        plural = "s are" if answer.truncated_items > 1 else " is"
        console.print(f"[dim]the oldest {answer.truncated_items} item{plural} beyond the model's window[/]")
    if answer.thought:
        _print_thought(console, answer.thought)
    table = Table(box=None, title="recommended", title_justify="left", title_style="bold", padding=(0, 2, 0, 0))
    table.add_column("#", justify="right", style="dim")
    table.add_column("title", overflow="fold", ratio=1)
    table.add_column("id", style="cyan", overflow="fold")
    table.add_column("SID", style="dim", no_wrap=True)
    table.add_column("log p", justify="right", no_wrap=True)
    for rank, item in enumerate(answer, start=1):
        table.add_row(str(rank), Text(item.title), Text(item.item_id), Text(item.sid), f"{item.score:.2f}")
    console.print(table)
    for note in answer.notes:
        console.print(Text(f"note: {note}", style="yellow"))


def _print_thought(console: Console, thought: ThoughtReport) -> None:
    from rich.panel import Panel
    from rich.text import Text

    if thought.end == "sure":
        console.print(Text("nothing thought: the plain search is sure", style="dim"))
        return
    ended = f"{thought.tokens} tokens" + ("" if thought.end == "closed" else f", cut off: {thought.end}")
    title = Text.assemble(("thought", "bold"), f" ({ended})")
    console.print(Panel(Text(thought.text), title=title, title_align="left"))
    stated, untrue = sum(thought.grounding.statements.values()), thought.grounding.untrue
    console.print(Text(f"statements that are true: {stated - len(untrue)} of {stated}"))
    for one in untrue:
        console.print(Text(f"untrue: {one.words}", style="yellow"))
