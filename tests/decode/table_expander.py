"""`TableExpander`: an `Expander` over a table of logits, one per node of the trie, and its brute-force answers.

No model, no torch: a search over it can be compared with what the table says, item by item.
"""

from __future__ import annotations

import numpy as np

from llmrec.decode.expander import Expansion
from llmrec.decode.trie import SIDTrie


class TableExpander:
    """Children of a node have random logits per prompt; next to them stands a weight for everything illegal."""

    def __init__(self, trie, num_prompts=1, *, normalise="legal", spread=1.5, seed=0):
        rng = np.random.default_rng(seed)
        self.trie, self.normalise, self.num_prompts, self.num_forwards = trie, normalise, num_prompts, 0
        self.asked_top, self._known = [], {}
        counts = [int(trie.leaf_of.max()) + 1]
        for level in range(trie.num_levels, 0, -1):
            counts.insert(0, int(trie.parents(level, np.arange(counts[0])).max()) + 1)
        self.counts = tuple(counts)
        self.logits = [[spread * rng.standard_normal(count) for count in counts] for _ in range(num_prompts)]
        self.illegal = [[rng.standard_normal(count) for count in counts] for _ in range(num_prompts)]

    def expand(self, wanted, filters, top=None):
        self.num_forwards += 1
        self.asked_top.append(top)
        return [self._remembered(prompt, *one, filters[prompt]) for prompt, one in enumerate(wanted)]

    def _remembered(self, prompt, levels, nodes, allowed):
        key = prompt, levels.tobytes(), nodes.tobytes(), id(allowed)
        if key not in self._known:
            self._known[key] = self._one(prompt, levels, nodes, allowed), allowed  # kept alive, so that ids stay unique
        return self._known[key][0]

    def _one(self, prompt, levels, nodes, allowed):
        none = np.zeros(0, dtype=np.int64)
        parts = [(none, none, np.zeros(0))]
        for level in np.unique(levels).tolist():
            places = np.flatnonzero(levels == level)
            found = self.trie.children(level, nodes[places], allowed)
            logits = self.logits[prompt][level + 1]
            # "legal" loses no mass. Elsewhere the illegal take some, and siblings that a filter removes keep theirs.
            mass = np.zeros(len(places))
            if self.normalise == "legal":
                np.add.at(mass, found.owner, np.exp(logits[found.node]))
            else:
                every = self.trie.children(level, nodes[places])
                np.add.at(mass, every.owner, np.exp(logits[every.node]))
                mass += np.exp(self.illegal[prompt][level][nodes[places]])
            parts.append((places[found.owner], found.node, logits[found.node] - np.log(mass[found.owner])))
        owner, node, gain = (np.concatenate(column) for column in zip(*parts, strict=True))
        order = np.argsort(owner, kind="stable")
        return Expansion(owner[order], node[order], gain[order])

    def leaf_scores(self, prompt=0, allowed=None):
        """{leaf: summed gain} of every living leaf."""
        scores = {0: 0.0}
        for level in range(self.trie.num_levels):
            nodes = np.array(sorted(scores), dtype=np.int64)
            found = self._one(prompt, np.full(len(nodes), level), nodes, allowed)
            scores = {
                int(child): scores[int(nodes[owner])] + gain
                for owner, child, gain in zip(found.owner, found.node, found.gain, strict=True)
            }
        return scores

    def item_probabilities(self, prompt=0, allowed=None, temperature=1.0):
        """(num_items,) probability of each row: the tempered softmax level by level, then an equal share."""
        probability = {0: 1.0}
        for level in range(self.trie.num_levels):
            grown = {}
            for node, mass in probability.items():
                children = self.trie.children(level, np.array([node]), allowed).node
                odds = np.exp(self.logits[prompt][level + 1][children] / temperature)
                grown.update(zip(children.tolist(), (mass * odds / odds.sum()).tolist(), strict=True))
            probability = grown
        result = np.zeros(self.trie.num_items)
        for leaf, mass in probability.items():
            members = self.trie.members(leaf, allowed)
            result[members] = mass / len(members)
        return result


def random_trie(num_items=12, codebook_sizes=(3, 3, 3), seed=0, alive=None):
    """A trie of random SIDs; some are shared."""
    rng = np.random.default_rng(seed)
    codes = np.stack([rng.integers(0, size, num_items) for size in codebook_sizes], axis=1)
    codes[-2:] = codes[:2]
    return SIDTrie.build(codes, codebook_sizes, alive)
