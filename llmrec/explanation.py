"""Why an item was recommended, in the model's own words, checked against the catalogue.

The model answers the chat prompt of the task ``explain`` greedily. Items appear in the answer as SIDs and become titles
here; the torch engine lets it name the explained item and those of the history only, vLLM writes without constraint.
What is then left to check is counted, not hidden: SIDs that no item has, titles that the words name in quotes and the
catalogue lacks, items named that were never chosen, and attributes that the catalogue does not bear out
(`llmrec.prompts.explanation_claims`). Titles named without quotes cannot be told from other words.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from llmrec.data.catalog import Catalog
from llmrec.decode.result import Generated
from llmrec.decode.trie_filter import RowFilter
from llmrec.prompts.answers import Part
from llmrec.prompts.explain import Explain
from llmrec.prompts.explanation_claims import untrue_attributes
from llmrec.prompts.renderer import Renderer
from llmrec.prompts.segments import Rendered

if TYPE_CHECKING:
    from llmrec.decode.searcher import Searcher

MAX_NEW_TOKENS = 80
_QUOTED = re.compile(r"\"([^\"\n]{2,}?)\"|“([^”\n]{2,}?)”|«([^»\n]{2,}?)»|„([^“”\n]{2,}?)[“”]")


@dataclass(frozen=True)
class Explanation:
    """What the model says and what of it can be held against it."""

    item_id: str
    text: str
    """The answer, SIDs replaced by quoted titles."""
    named_items: tuple[str, ...]
    """Items that the answer names by their SID, in order of appearance."""
    named_titles_unknown: tuple[str, ...]
    """Titles that the answer's words name in quotes and the catalogue lacks."""
    unknown_sids: tuple[str, ...]
    """SIDs in the answer that no item has, or that are incomplete."""
    finished: bool
    """The model ended its answer; False where it was cut off."""
    unknown_items: tuple[str, ...] = ()
    """History items that have no SID and were skipped."""
    named_outside_history: tuple[str, ...] = ()
    """Items that the answer names, by SID or by title in quotes, and that are neither explained nor in the history."""
    untrue_attributes: tuple[str, ...] = ()
    """Claims about the explained item that the catalogue does not bear out, as ``attribute: value``."""


def explanation_prompt(renderer: Renderer, history: Sequence[str], item_id: str) -> Rendered:
    """The explain task's chat without its answer; as long as the task's own window makes it."""
    return renderer.render(Explain().prompt(history, item_id), answer=False)


def write_explanation(
    searcher: Searcher, prompt: np.ndarray, stop_ids: Sequence[int], max_new_tokens: int, allowed: RowFilter
) -> Generated:
    """Greedy text behind a prompt, in which (torch) a SID that is begun becomes one of the allowed items."""
    from llmrec.decode.text import Finished, TextSettings, TextStream
    from llmrec.decode.torch_backend import TorchBackend

    if not isinstance(searcher.backend, TorchBackend):
        return searcher.backend.generate_text([prompt], max_new_tokens=max_new_tokens, stop_token_ids=stop_ids)[0]
    settings = TextSettings(max_new_tokens=max_new_tokens)
    stream = TextStream(searcher, prompt, stop_ids=stop_ids, settings=settings, allowed=allowed)
    stopped = False
    while not stream.finished:
        stopped = any(isinstance(event, Finished) and event.reason == "stop" for event in stream.step())
    return Generated(np.array(stream.token_ids, dtype=np.int64), "stop" if stopped else "length")


def read_explanation(
    parts: Sequence[Part],
    item_id: str,
    history: Sequence[str],
    titles: dict[str, str],
    *,
    finished: bool,
    catalog: Catalog | None = None,
) -> Explanation:
    """Turn an answer's parts into text for people, and check it.

    Args:
        parts: `AnswerReader.parts` of the answer.
        item_id: the explained item; where items share a SID, it and the history go first.
        history: what the prompt showed.
        titles: title by item id, of all items.
        finished: whether the answer ended by itself.
        catalog: attributes to hold claims against; without one they are not checked.
    """
    spelled, named, unknown_sids, quoted = [], [], [], []
    for part in parts:
        if not part.is_sid:
            spelled.append(part.text)
            quoted += [next(filter(None, groups)).strip(" .,;:!?") for groups in _QUOTED.findall(part.text)]
        elif part.item_ids:
            meant = _meant(part.item_ids, (item_id, *history))
            named.append(meant)
            spelled.append(f" “{titles[meant]}”" if spelled and spelled[-1][-1:].isalnum() else f"“{titles[meant]}”")
        else:
            unknown_sids.append(part.text)
            spelled.append(part.text)
    items_of: dict[str, set[str]] = {}
    for one, title in titles.items():
        items_of.setdefault(title.casefold(), set()).add(one)
    shown = {item_id, *history}
    text = " ".join("".join(spelled).split())
    outside = [one for one in named if one not in shown]
    titled = [items_of[title.casefold()] for title in quoted if title.casefold() in items_of]
    outside += [min(items) for items in titled if not items & shown]
    return Explanation(
        item_id=item_id,
        text=text,
        named_items=tuple(dict.fromkeys(named)),
        named_titles_unknown=tuple(dict.fromkeys(title for title in quoted if title.casefold() not in items_of)),
        unknown_sids=tuple(unknown_sids),
        finished=finished,
        named_outside_history=tuple(dict.fromkeys(outside)),
        untrue_attributes=untrue_attributes(text, item_id, catalog) if catalog else (),
    )


def _meant(candidates: Sequence[str], preferred: Collection[str]) -> str:
    return next((item_id for item_id in candidates if item_id in preferred), candidates[0])
