"""Rows for people: what the model sees, coloured by what it is trained on."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

from rich.text import Text

from llmrec.prompts.segments import Rendered

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LOSS, NO_LOSS, SID_LOSS, SID_NO_LOSS = "bold green", "dim", "bold cyan", "cyan"


def preview_lines(rendered: Rendered, tokenizer: PreTrainedTokenizerBase) -> list[Text]:
    """The row decoded from its ids, then one line of counts. Line breaks are shown as ``⏎`` and break the line.

    Text with loss is bold green, without loss dim; SIDs are cyan, bold with loss.
    """
    row = Text()
    kinds = zip(rendered.target.tolist(), (rendered.sid_level >= 0).tolist(), strict=True)
    tokens = zip(rendered.input_ids.tolist(), kinds, strict=True)
    for (with_loss, is_sid), run in groupby(tokens, key=lambda token: token[1]):
        text = _decode([token_id for token_id, _ in run], tokenizer)
        style = (SID_LOSS if with_loss else SID_NO_LOSS) if is_sid else (LOSS if with_loss else NO_LOSS)
        row.append(text.replace("\n", "⏎\n"), style=style)
    return [*row.split("\n"), Text(counts_line(rendered), style="italic")]


def counts_line(rendered: Rendered) -> str:
    """Length, loss and what was left out, in words."""
    with_loss = int(rendered.target.sum())
    line = f"{len(rendered)} tokens, {with_loss} with loss"
    if rendered.truncated_items:
        line += f", {rendered.truncated_items} oldest items truncated"
    if rendered.skipped_items:
        line += f", {rendered.skipped_items} items without a SID skipped"
    return line


def legend() -> Text:
    """One line that explains the colours."""
    parts = [("with loss", LOSS), ("  ", ""), ("without", NO_LOSS), ("  ", ""), ("SID with loss", SID_LOSS)]
    return Text.assemble(*parts, ("  ", ""), ("SID without", SID_NO_LOSS))


def _decode(token_ids: list[int], tokenizer: PreTrainedTokenizerBase) -> str:
    text = str(tokenizer.decode(token_ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
    first = tokenizer.convert_ids_to_tokens(token_ids[0])
    # SentencePiece decoders drop the space that begins a text, and every run here is a text of its own.
    return f" {text}" if first.startswith("▁") and not text.startswith(" ") else text
