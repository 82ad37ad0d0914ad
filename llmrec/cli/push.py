"""``llmrec push``: a checkpoint to the Hugging Face Hub."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from llmrec.eval.result import EvalResult
    from llmrec.publish import Plan

app = typer.Typer(add_completion=False)


@app.command()
def push(
    checkpoint: Annotated[Path, typer.Argument(metavar="FOLDER", help="A checkpoint, or a run for its last one.")],
    repo: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="Repository on the Hub; made where it is missing.")],
    base: Annotated[
        str | None, typer.Option(metavar="OWNER/NAME", help="Repository for the adapter's base, pushed first.")
    ] = None,
    merged: Annotated[bool, typer.Option("--merged", help="Merge adapter and base into one full model.")] = False,
    public: Annotated[bool, typer.Option("--public", help="Anyone may read it; by default it is private.")] = False,
    license: Annotated[str | None, typer.Option(help="Identifier for the page, such as apache-2.0.")] = None,
    message: Annotated[str | None, typer.Option(help="Of the commit.")] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Only say what would be sent.")] = False,
) -> None:
    """Verify a checkpoint, push it with a page that says what it is, and compare what arrived."""
    from rich.console import Console

    from llmrec.align.start import last_checkpoint
    from llmrec.publish import prepare

    console = Console(soft_wrap=True)
    folder = last_checkpoint(checkpoint)
    with tempfile.TemporaryDirectory(prefix="llmrec-push-") as work:
        planned = prepare(
            folder,
            repo,
            Path(work),
            base_repo=base,
            merged=merged,
            evaluation=_evaluation(folder),
            license=license,
        )
        _tell(planned, console, "public" if public else "private")
        if plan:
            return
        sent = planned.push(
            private=not public, message=message, say=lambda line: console.print(line, highlight=False, markup=False)
        )
    console.print(f"pushed      {sent.url}\ncommit      {sent.commit} ({sent.files} files, compared)", highlight=False)
    console.print(f"try         llmrec inspect hub:{repo}@{sent.commit}", highlight=False)


def _evaluation(folder: Path) -> EvalResult | None:
    """The run's own evaluation, where this is the checkpoint that it judged."""
    from llmrec.align.start import last_checkpoint
    from llmrec.eval.result import EVAL_FILE, EvalResult

    run = folder.absolute().parent
    if not (run / "eval" / EVAL_FILE).is_file() or last_checkpoint(run) != folder.absolute():
        return None
    return EvalResult.load(run / "eval")


def _tell(plan: Plan, console: Console, visibility: str) -> None:
    if plan.base is not None:
        _tell(plan.base, console, visibility)
    size = f"{len(plan.files)} files, {plan.size / 1e6:,.1f} MB"
    console.print(f"[bold]{plan.repo}[/bold]  {visibility}; {plan.card.kind}, {size}", highlight=False)
    for note in plan.notes:
        console.print(f"  note: {note}", highlight=False, markup=False)
