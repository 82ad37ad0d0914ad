"""The torch back end: any Hugging Face causal LM, its prompts prefilled once, its beams on the sequence axis.

`TorchExpander` finds out which columns a search needs, appends them with their ancestors in one forward, and keeps
their states while they fit. When they would exceed `max_slots` it drops all of them and starts again with what is asked
for: dropped ancestors are read again inside the same forward (a chain of known tokens is as good as one token), so
memory is bounded and nothing needs compaction. That is also how "legal" saves forwards: a prefix with a single living
child gives it log-probability 0 and is not read at all, until something below it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llmrec.decode.expander import Expansion, Wanted
from llmrec.decode.prefix_cache import PrefixCache
from llmrec.decode.result import Generated, Normalise
from llmrec.decode.scores import ChildScorer, LMHead
from llmrec.decode.session import PrefixSession
from llmrec.decode.trie import Children, SIDTrie
from llmrec.decode.trie_filter import RowFilter
from llmrec.errors import InputError

MAX_SLOTS = 1024
"""Columns a prompt keeps by default before they are dropped."""


class TorchExpander:
    """Scores children of prefixes that continue each prompt of a session, or a column of it (an `Expander`).

    Args:
        session: the prefilled prompts; columns that follow `root` are this expander's own.
        trie: the items that exist.
        scorer: head and normalisation.
        max_slots: columns to keep per prompt; a single request that needs more is served all the same.
        root: (batch,) slots that the SIDs continue, -1 for the prompt itself; None means all prompts.
        root_states: (batch, hidden) the states of these slots.
    """

    def __init__(
        self,
        session: PrefixSession,
        trie: SIDTrie,
        scorer: ChildScorer,
        *,
        max_slots: int = MAX_SLOTS,
        root: np.ndarray | None = None,
        root_states: Tensor | None = None,
    ) -> None:
        if (root is None) != (root_states is None):
            raise InputError("root and root_states belong together; only one of them was given.")
        self.trie, self.normalise = trie, scorer.normalise
        self._session, self._scorer, self._max_slots = session, scorer, max_slots
        self._root = np.full(session.batch_size, -1) if root is None else root
        self._root_states = session.prompt_states if root_states is None else root_states
        self._first_slot = 0 if root is None else session.num_slots
        self._start = session.num_forwards
        # A prefix as one number: nodes of level l count from the sum of all levels above.
        self._offsets = np.concatenate([[0], np.cumsum([trie.num_nodes(level) for level in range(trie.num_levels)])])
        self._forget()

    @property
    def num_prompts(self) -> int:
        """Prompts of the session."""
        return self._session.batch_size

    @property
    def num_forwards(self) -> int:
        """Forwards this expander has caused."""
        return self._session.num_forwards - self._start

    def expand(
        self, wanted: Sequence[Wanted], filters: Sequence[RowFilter | None], top: int | None = None
    ) -> list[Expansion]:
        """See `Expander.expand`; all children come back, whatever `top` is."""
        rows = [
            self._children(levels, nodes, allowed) for (levels, nodes), allowed in zip(wanted, filters, strict=True)
        ]
        states = self._read(
            [(levels[need], nodes[need]) for (levels, nodes), (_, need) in zip(wanted, rows, strict=True)]
        )
        gains = [np.zeros(len(children.owner)) for children, _ in rows]
        for level in range(self.trie.num_levels):
            self._score(level, wanted, rows, states, gains)
        return [Expansion(children.owner, children.node, gain) for (children, _), gain in zip(rows, gains, strict=True)]

    # -- scoring -------------------------------------------------------------------------------------------------

    def _children(
        self, levels: np.ndarray, nodes: np.ndarray, allowed: RowFilter | None
    ) -> tuple[Children, np.ndarray]:
        """Children of prefixes of any levels, and which prefixes (bool) have to be read to score them."""
        parts = []
        for level in np.unique(levels):
            places = np.flatnonzero(levels == level)
            found = self.trie.children(int(level), nodes[places], allowed)
            parts.append(Children(places[found.owner], found.node, found.code))
        if not parts:
            none = np.zeros(0, dtype=np.int64)
            return Children(none, none, none), np.zeros(len(levels), dtype=bool)
        children = parts[0]
        if len(parts) > 1:
            owner = np.concatenate([part.owner for part in parts])
            order = np.argsort(owner, kind="stable")
            node, code = (np.concatenate([getattr(part, name) for part in parts]) for name in ("node", "code"))
            children = Children(owner[order], node[order], code[order])
        number = np.bincount(children.owner, minlength=len(levels))
        return children, number > (1 if self.normalise == "legal" else 0)

    def _score(
        self,
        level: int,
        wanted: Sequence[Wanted],
        rows: Sequence[tuple[Children, np.ndarray]],
        states: Sequence[Tensor],
        gains: Sequence[np.ndarray],
    ) -> None:
        """Fill in the gains of children whose parents stand at `level`, over all prompts in one go."""
        picked, owners, codes, places, first = [], [], [], [], 0
        for row, ((levels, _), (children, need)) in enumerate(zip(wanted, rows, strict=True)):
            mine = need & (levels == level)
            if not mine.any():
                continue
            number = np.cumsum(mine) - 1 + first  # of each parent among those scored here
            place = np.flatnonzero(mine[children.owner])
            owners.append(number[children.owner[place]])
            codes.append(children.code[place])
            places.append((row, place))
            at_level = mine[need]
            picked.append(states[row] if at_level.all() else states[row][torch.from_numpy(at_level)])
            first += int(mine.sum())
        if not picked:
            return
        found = self._scorer.gains(torch.cat(picked), level, np.concatenate(owners), np.concatenate(codes))
        for (row, place), part in zip(
            places, np.split(found, np.cumsum([len(place) for _, place in places])[:-1]), strict=True
        ):
            gains[row][place] = part

    # -- reading -------------------------------------------------------------------------------------------------

    def _read(self, wanted: Sequence[Wanted]) -> list[Tensor]:
        """Hidden states of prefixes, (m, hidden) per prompt."""
        keys = [self._offsets[levels] + nodes for levels, nodes in wanted]
        missing = [self._missing(row, *each) for row, each in enumerate(wanted)]
        width = max(len(levels) for levels, _ in missing)
        held = self._session.num_slots - self._first_slot
        if held and held + width > self._max_slots:
            self._forget()
            missing = [self._missing(row, *each) for row, each in enumerate(wanted)]
            width = max(len(levels) for levels, _ in missing)
        if width:
            self._append(missing, width)
        result = []
        for row, asked in enumerate(keys):
            places = self._places[row][np.searchsorted(self._keys[row], asked)]
            result.append(self._states[row, torch.from_numpy(places).to(self._states.device)])
        return result

    def _forget(self) -> None:
        self._session.truncate(self._first_slot)
        self._states = self._root_states[:, None]  # place 0 is the root, place p + 1 is slot first_slot + p
        self._keys = [np.zeros(1, dtype=np.int64) for _ in range(self.num_prompts)]  # ascending; 0 is the root
        self._places = [np.zeros(1, dtype=np.int64) for _ in range(self.num_prompts)]

    def _known(self, row: int, keys: np.ndarray) -> np.ndarray:
        place = np.minimum(np.searchsorted(self._keys[row], keys), len(self._keys[row]) - 1)
        found: np.ndarray = self._keys[row][place] == keys
        return found

    def _missing(self, row: int, levels: np.ndarray, nodes: np.ndarray) -> Wanted:
        """Prefixes to append for these ones, each after its parent."""
        parts: list[Wanted] = []
        unknown = ~self._known(row, self._offsets[levels] + nodes)
        levels, nodes = levels[unknown], nodes[unknown]
        while len(levels):
            parts.append((levels, nodes))
            above = np.empty_like(nodes)
            for level in np.unique(levels):
                here = levels == level
                above[here] = self.trie.parents(int(level), nodes[here])
            unknown = ~self._known(row, self._offsets[levels - 1] + above)
            levels, nodes = levels[unknown] - 1, above[unknown]
        if not parts:
            return levels, nodes
        levels, nodes = (np.concatenate([part[i] for part in parts]) for i in range(2))
        keys = np.unique(self._offsets[levels] + nodes)  # ascending: a parent's level, hence its key, is lower
        levels = np.searchsorted(self._offsets, keys, side="right") - 1
        return levels, keys - self._offsets[levels]

    def _append(self, missing: Sequence[Wanted], width: int) -> None:
        held = self._states.shape[1] - 1
        slot = self._session.num_slots
        parents = np.broadcast_to(self._root[:, None], (len(missing), width)).copy()
        tokens = np.zeros((len(missing), width), dtype=np.int64)
        for row, (levels, nodes) in enumerate(missing):
            own = self._offsets[levels] + nodes
            self._keys[row], self._places[row] = _merged(
                self._keys[row], self._places[row], own, held + 1 + np.arange(len(own))
            )
            for level in np.unique(levels):
                here = np.flatnonzero(levels == level)
                tokens[row, here] = self._scorer.token_ids[level - 1][self.trie.codes_of(int(level), nodes[here])]
                if level > 1:
                    above = self._offsets[level - 1] + self.trie.parents(int(level), nodes[here])
                    place = self._places[row][np.searchsorted(self._keys[row], above)]
                    parents[row, here] = slot - held + place - 1
        self._states = torch.cat([self._states, self._session.extend(parents, tokens)], dim=1)


def _merged(keys: np.ndarray, places: np.ndarray, new: np.ndarray, new_places: np.ndarray) -> tuple[np.ndarray, ...]:
    at = np.searchsorted(keys, new)
    return np.insert(keys, at, new), np.insert(places, at, new_places)


class TorchBackend:
    """A Hugging Face causal LM (or PEFT model) that can be searched (a `Backend`).

    Args:
        model: with attention that takes a 4D mask ("sdpa" or "eager"); its weights may change between calls.
        prefix_cache: keys and values of earlier prompts, for a model whose weights do not change; None keeps none.

    Raises:
        InputError: a family whose logits are not known here (see `LMHead`).
    """

    def __init__(self, model: Any, *, prefix_cache: PrefixCache | None = None) -> None:
        self.model = model
        self.prefix_cache = prefix_cache
        self.head = LMHead(model)

    def open(
        self,
        prompts: Sequence[Sequence[int] | np.ndarray],
        trie: SIDTrie,
        token_ids: Sequence[np.ndarray],
        normalise: Normalise,
        *,
        reserve: int = 64,
    ) -> TorchExpander:
        """Prefill prompts; `reserve` columns each are allocated for what the search will append."""
        scorer = ChildScorer(self.head, trie.codebook_sizes, token_ids, normalise)
        session = PrefixSession(self.model, prompts, reserve=reserve, prefix_cache=self.prefix_cache)
        return TorchExpander(session, trie, scorer)

    def known_tokens(self, prompt: Sequence[int] | np.ndarray) -> int:
        """See `Backend.known_tokens`."""
        return 0 if self.prefix_cache is None else self.prefix_cache.known_tokens(prompt)

    def generate_text(
        self,
        prompts: Sequence[Sequence[int] | np.ndarray],
        *,
        max_new_tokens: int,
        stop_token_ids: Sequence[int] = (),
        temperature: float = 0.0,
        seed: int | None = None,
    ) -> list[Generated]:
        """See `Backend.generate_text`; one prompt after the other, with Hugging Face's ``generate``.

        Prompt i draws with ``seed + i``; torch's own random state is left as it was.
        """
        return [
            self._write(prompt, max_new_tokens, list(stop_token_ids), temperature, None if seed is None else seed + i)
            for i, prompt in enumerate(prompts)
        ]

    @torch.no_grad()
    def _write(
        self, prompt: Sequence[int] | np.ndarray, budget: int, stop_ids: list[int], temperature: float, seed: int | None
    ) -> Generated:
        ids = torch.as_tensor(np.asarray(prompt, dtype=np.int64)[None], device=self.model.device)
        sampling = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature > 0 else {}
        with torch.random.fork_rng(enabled=temperature > 0):
            if seed is not None:
                torch.manual_seed(seed)
            output = self.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=budget,
                eos_token_id=stop_ids or None,
                pad_token_id=stop_ids[0] if stop_ids else 0,
                **({"do_sample": False} | sampling),
            )
        written = output[0, ids.shape[1] :].cpu().numpy()
        return Generated(written, "stop" if len(written) and int(written[-1]) in stop_ids else "length")
