"""Is what a thought says true? Every statement is held against the catalogue, the SIDs and the history.

What is checked is a notation, that of ``think.yaml``, whoever wrote the text:

* SID tokens: they are the beginning, or all, of a living item's SID (kind ``item``);
* ``"title"``: the catalogue has it, and where SID tokens stand directly before it, an item of that title has them
  (``title``); thoughts name titles of things that were chosen, so it is in the history (``history``);
* ``[attribute: value]``: everything that was named since the claim before has the value, or what that one was about
  where nothing was; a bare prefix has it where a living item beneath has. A claim about nothing holds where any item of
  the catalogue has the value (``attribute``).

Words beside these are not checked: they name nothing. A quotation mark or bracket without its partner is a statement
that cannot be read, and counts as untrue.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

from llmrec.data.catalog import Catalog
from llmrec.prompts.answers import Part
from llmrec.sid_vocab.table import ACTIVE, SIDTable

Kind = Literal["item", "title", "history", "attribute"]
KINDS: tuple[Kind, ...] = get_args(Kind)
_STATEMENT = re.compile(r'"(?P<title>[^"\n]+)"|\[(?P<name>[^\[\]\n:]+): (?P<value>[^\[\]\n]+)\]|(?P<broken>["\[\]])')
_CODE = re.compile(r"<([a-z])_(\d+)>")


@dataclass(frozen=True)
class Untrue:
    """A statement that is not so."""

    kind: Kind
    words: str
    """What was said, and what is wrong with it."""


@dataclass(frozen=True)
class Grounding:
    """What one text states.

    Attributes:
        statements: how many of each kind.
        untrue: those that are not so.
    """

    statements: Mapping[Kind, int]
    untrue: tuple[Untrue, ...]

    @property
    def grounded(self) -> bool:
        """Whether all of it is true; a text without statements says nothing untrue."""
        return not self.untrue

    @property
    def true_shares(self) -> dict[Kind, float]:
        """The share of true statements of every kind that the text has."""
        false = Counter(one.kind for one in self.untrue)
        return {kind: (said - false[kind]) / said for kind in KINDS if (said := self.statements.get(kind, 0))}


class Facts:
    """What is known about items.

    Args:
        catalog: titles and attributes.
        table: SIDs; of living items, also where the catalogue holds more.
    """

    def __init__(self, catalog: Catalog, table: SIDTable) -> None:
        self._catalog = catalog
        self._table = table

    def warm(self) -> None:
        """Read the catalogue; of a large one it takes seconds, which the first check would else."""
        _ = self.values, self._titles, self._beneath

    def titled(self, title: str) -> frozenset[str]:
        """The items of a title, letter case apart."""
        return self._titles.get(_plain(title), frozenset())

    def beneath(self, prefix: tuple[int, ...]) -> frozenset[str]:
        """The living items whose SIDs begin with, or are, `prefix`."""
        return self._beneath.get(prefix, frozenset())

    def has(self, item_id: str, attribute: str, value: str) -> bool:
        """Whether the catalogue says so."""
        if item_id not in self._catalog:
            return False
        return value in self._catalog.attribute_values(item_id).get(attribute, ())

    @cached_property
    def values(self) -> frozenset[tuple[str, str]]:
        """Every attribute and value of the catalogue."""
        return frozenset(
            (name, value)
            for item_id in self._catalog.item_ids
            for name, values in self._catalog.attribute_values(item_id).items()
            for value in values
        )

    @cached_property
    def _titles(self) -> Mapping[str, frozenset[str]]:
        found: defaultdict[str, set[str]] = defaultdict(set)
        for item_id in self._catalog.item_ids:
            found[_plain(self._catalog.title(item_id))].add(item_id)
        return {title: frozenset(items) for title, items in found.items()}

    @cached_property
    def _beneath(self) -> Mapping[tuple[int, ...], frozenset[str]]:
        found: defaultdict[tuple[int, ...], set[str]] = defaultdict(set)
        for item_id, codes, status in zip(
            self._table.item_ids, self._table.codes.tolist(), self._table.status, strict=True
        ):
            if status == ACTIVE:
                for depth in range(1, len(codes) + 1):
                    found[tuple(codes[:depth])].add(item_id)
        return {prefix: frozenset(items) for prefix, items in found.items()}


def check_thought(parts: Sequence[Part], history: Collection[str], facts: Facts) -> Grounding:
    """Hold a thought against the facts.

    Args:
        parts: `AnswerReader.parts` of its ids, without the closing tokens and what follows them.
        history: item ids that "you chose" may speak of.
        facts: of the catalogue and the SIDs that the model has.
    """
    statements: Counter[Kind] = Counter()
    untrue: list[Untrue] = []
    subjects: list[frozenset[str]] = []  # for each thing named since the last claim the items that it may be
    about: list[frozenset[str]] = []  # what the last claim was about
    bare: frozenset[str] | None = None  # items beneath SID tokens directly before this place

    def say(kind: Kind, problem: str) -> None:
        statements[kind] += 1
        if problem:
            untrue.append(Untrue(kind, problem))

    for part in parts:
        if part.is_sid:
            bare = facts.beneath(_codes(part.text))
            say("item", "" if bare else f"{part.text}: no living item's SID begins so")
            subjects.append(bare)
            continue
        end = 0
        for match in _STATEMENT.finditer(part.text):
            between, end = part.text[end : match.start()], match.end()
            if between.strip():
                bare = None
            if match["title"] is not None:
                items = facts.titled(match["title"])
                fitting = items if bare is None else items & bare
                wrong = "no such title" if not items else "not the title of such an item"
                say("title", "" if fitting else f"{match[0]}: {wrong}")
                say("history", "" if fitting & set(history) else f"{match[0]}: not in the history")
                if bare is not None:
                    subjects.pop()  # the prefix belongs to the title
                subjects.append(fitting & set(history) or fitting)
            elif match["name"] is not None:
                about, subjects = subjects or about, []
                say("attribute", _claim_problem(match["name"], match["value"], about, facts))
            else:
                say("title" if match["broken"] == '"' else "attribute", f"{match['broken']} without its partner")
            bare = None
        if part.text[end:].strip():
            bare = None
    return Grounding(dict(statements), tuple(untrue))


def grounding_rates(found: Iterable[Grounding]) -> dict[str, float]:
    """Figures over many texts: how many, the share of them that are grounded, statements and true ones by kind."""
    texts = list(found)
    rates: dict[str, float] = {"texts": len(texts)}
    rates["grounded"] = sum(text.grounded for text in texts) / max(1, len(texts))
    for kind in KINDS:
        said = sum(text.statements.get(kind, 0) for text in texts)
        false = sum(one.kind == kind for text in texts for one in text.untrue)
        rates |= {f"{kind}_statements": said, f"{kind}_true": (said - false) / said if said else 1.0}
    return rates


def _claim_problem(name: str, value: str, about: Sequence[frozenset[str]], facts: Facts) -> str:
    if (name, value) not in facts.values:
        return f"[{name}: {value}]: the catalogue has no such value"
    if all(any(facts.has(item_id, name, value) for item_id in items) for items in about):
        return ""
    return f"[{name}: {value}]: not so of what it is said of"


def _codes(sid_text: str) -> tuple[int, ...]:
    """The codes of SID tokens; ``()`` where they do not begin with the first level, which no item is beneath."""
    found = _CODE.findall(sid_text)
    return tuple(int(code) for _, code in found) if found and found[0][0] == "a" else ()


def _plain(title: str) -> str:
    return " ".join(title.split()).casefold()
