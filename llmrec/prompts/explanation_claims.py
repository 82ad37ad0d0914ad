"""Attributes that an explanation claims, held against the catalogue.

``explain.yaml`` words a claim as ``VALUE (attribute)``, ``the attribute VALUE`` or ``its attribute: VALUE``; a model
that learnt from it writes like that. Each is a claim about the explained item (the first one about the items named in
its sentence, too, which have it in common). Values of the item are looked for first, the longest ones before others, so
that they may hold commas and points. What else stands at such a place is a claim that is untrue.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from llmrec.data.catalog import Catalog

_END = re.compile(r"[.;\n()“”\"]|, | like | which ")
_GOES_ON = re.compile(r", (?!with |which |like )")


def untrue_attributes(text: str, item_id: str, catalog: Catalog) -> tuple[str, ...]:
    """Claims of `text` that the catalogue does not bear out for `item_id`, as ``attribute: value``, once each.

    Args:
        text: an explanation, SIDs as titles in quotes.
        item_id: what is explained.
        catalog: attributes.
    """
    values = catalog.attribute_values(item_id) if item_id in catalog else {}
    text = re.sub(r"“[^”]*”|\"[^\"\n]*\"", "“”", text)  # titles may hold the names of attributes
    found: list[str] = []
    for name in catalog.attributes:
        own = sorted(values.get(name, ()), key=len, reverse=True)
        for claim in re.finditer(rf" \({re.escape(name)}\)", text):
            before = text[: claim.start()]
            if not any(before == one or before.endswith((f" {one}", f"”{one}")) for one in own):
                found.append(f"{name}: {(_END.split(before)[-1].split() or ['nothing'])[-1]}")
        for claim in re.finditer(rf"\b(?:the|its) {re.escape(name)}:? ", text):
            found += [f"{name}: {one}" for one in _untrue_list(text[claim.end() :], own)]
    return tuple(dict.fromkeys(found))


def _untrue_list(rest: str, own: Sequence[str]) -> list[str]:
    """What of the comma-separated values at the beginning of `rest` is none of `own` (longest first)."""
    untrue = []
    while True:
        value = next((one for one in own if rest.startswith(one) and not rest[len(one) :][:1].isalnum()), None)
        if value is None:
            value = _END.split(rest, maxsplit=1)[0]
            if value.strip():
                untrue.append(value.strip())
        rest = rest[len(value) :]
        if (more := _GOES_ON.match(rest)) is None:
            return untrue
        rest = rest[more.end() :]
