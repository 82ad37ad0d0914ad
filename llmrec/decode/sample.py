"""Sampling items without replacement: k distinct items, and for each the probability that the sample holds it.

Stochastic beam search (Kool, van Hoof, Welling: "Stochastic Beams and Where to Find Them", ICML 2019, arXiv:1903.06059,
Algorithm 1). Every item gets its log-probability plus Gumbel noise, and the k largest are a sample without
replacement. The noise is drawn top-down: a prefix knows the largest perturbed score below it, its children are drawn
given that maximum, and so a beam over perturbed scores finds the k largest of the whole catalogue, exactly, for the
L - 1 forwards of a plain beam.

**What is sampled from.** At each level the model chooses among the living children that the request's filter leaves:
``p(child | prefix) = softmax(gain / temperature)`` over these children. That is one distribution, whatever
`normalise` is: the three differ by a constant per prefix, which this softmax removes. It is what masking the logits
and sampling token by token gives. It is *not* the model's distribution over whole SIDs given that the SID is legal:
mass that the model puts on illegal children goes to their living siblings, not to the whole catalogue. `scores` are
the model's own log-probabilities as `normalise` says, without temperature, as in every other search.

Departures from the paper: items that share a SID are one more level, each with an equal share of the SID's
probability, so that k distinct items come back wherever k exist. The search keeps k + 1 prefixes, because the
threshold is the perturbed score of the (k + 1)-th item. The root's perturbed score is drawn, too: with a constant
there the sample would be the same, but `inclusion` would no longer be the probability of being above the threshold.

    expander = backend.open(prompts, ...)
    samples = sample_items(expander, [None] * len(prompts), top_k=8, seed=0, prompt_ids=range(len(prompts)))
    mean_reward = (samples[0].weights * rewards).sum()  # unbiased for the mean over the whole catalogue
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llmrec.decode.expander import Expander, Expansion
from llmrec.decode.result import Normalise, best_first
from llmrec.decode.trie import SIDTrie
from llmrec.decode.trie_filter import RowFilter
from llmrec.errors import InputError

# A child that float32 rounded to probability 0 keeps a finite score: it loses against every other, and no -inf - -inf
# turns its siblings into NaN.
_NEVER = -1e9


@dataclass(frozen=True)
class SampleResult:
    """Distinct items of one prompt in the order in which they were drawn.

    Attributes:
        items: (m,) rows of the table. m is `top_k`, or fewer where fewer living items are left.
        scores: (m,) the model's log-probability of each item's SID, as `normalise` says, float64.
        log_probabilities: (m,) log-probability of each item in the distribution that was sampled from.
        perturbed: (m,) `log_probabilities` plus the noise that decided, descending.
        threshold: the largest perturbed score that was not drawn (the paper's kappa); -inf where nothing was left.
        normalise: what `scores` are normalised over.
        num_forwards: forwards of the batch this prompt was searched in, the shared prefill not counted.
    """

    items: np.ndarray
    scores: np.ndarray
    log_probabilities: np.ndarray
    perturbed: np.ndarray
    threshold: float
    normalise: Normalise
    num_forwards: int

    @property
    def log_inclusion(self) -> np.ndarray:
        """(m,) log q, where ``q = P(perturbed > threshold) = 1 - exp(-exp(log p - threshold))`` (paper, section 4.2).

        Given the threshold; the probability of being in a sample of this size is its mean over samples.
        """
        above = self.log_probabilities - self.threshold
        # Within +-700 exp stays inside float64; below, q is exp(above) to its last digit, and above it is 1.
        return np.where(above < -700, above, np.log(-np.expm1(-np.exp(np.clip(above, -700, 700)))))

    @property
    def weights(self) -> np.ndarray:
        """(m,) importance weights p / q: ``(weights * f(items)).sum()`` estimates the mean of f without bias.

        Their sum varies around 1. Divided by it they give the paper's normalised estimate: a bias that falls with k,
        and, of eight items, less than a third of the error (docs/decisions/0009-sampling-without-replacement.md).
        """
        weights: np.ndarray = np.exp(self.log_probabilities - self.log_inclusion)
        return weights


def sample_items(
    expander: Expander,
    filters: Sequence[RowFilter | None],
    *,
    top_k: int,
    seed: int,
    prompt_ids: Sequence[int],
    temperature: float = 1.0,
) -> list[SampleResult]:
    """Draw `top_k` distinct items for every prompt.

    Args:
        expander: the prompts, read by a model.
        filters: one per prompt, None where all living items may be drawn.
        top_k: items per prompt.
        seed: with a prompt's id it decides the prompt's noise, whatever else is in the batch.
        prompt_ids: one per prompt, not negative. Equal ids get equal noise.
        temperature: above 1 flatter, below 1 closer to the best children, level by level.

    Raises:
        InputError: ``top_k < 1``, a temperature that is not above 0, a negative seed or id, or a number of ids that
            is not the number of prompts.
    """
    if top_k < 1:
        raise InputError(f"top_k must be at least 1; given {top_k}.")
    if not 0 < temperature < np.inf:
        raise InputError(
            f"temperature must be a positive number; given {temperature}.", hint="for the best items use beam search"
        )
    if len(prompt_ids) != expander.num_prompts or min((seed, *prompt_ids)) < 0:
        raise InputError(
            f"Sampling needs a seed and {expander.num_prompts} prompt ids, none negative; given seed {seed} and "
            f"{len(prompt_ids)} ids, the lowest {min(prompt_ids, default=None)}."
        )
    before, trie = expander.num_forwards, expander.trie
    beams = [_Beam.root(np.random.default_rng([seed, prompt_id])) for prompt_id in prompt_ids]
    for level in range(trie.num_levels):
        found = expander.expand([(np.full(len(beam.nodes), level), beam.nodes) for beam in beams], filters)
        beams = [
            beam.grow(expansion, temperature).best(top_k + 1) for beam, expansion in zip(beams, found, strict=True)
        ]
    results = []
    for beam, allowed in zip(beams, filters, strict=True):
        # One draw more than asked for: its perturbed score is the threshold.
        drawn = beam.grow(_bucket_items(trie, beam.nodes, allowed), 1.0)
        order = best_first(drawn.perturbed, drawn.nodes, top_k + 1)
        chosen = order[:top_k]
        results.append(
            SampleResult(
                items=drawn.nodes[chosen],
                scores=beam.scores[drawn.owner[chosen]],
                log_probabilities=drawn.log_probabilities[chosen],
                perturbed=drawn.perturbed[chosen],
                threshold=float(drawn.perturbed[order[top_k]]) if len(order) > top_k else -np.inf,
                normalise=expander.normalise,
                num_forwards=expander.num_forwards - before,
            )
        )
    return results


@dataclass(frozen=True)
class _Beam:
    """Prefixes of one prompt, all arrays (n,): the model's score, the log-probability in the sampled distribution,
    and the perturbed log-probability, which is the largest of any item below the prefix."""

    rng: np.random.Generator
    owner: np.ndarray
    nodes: np.ndarray
    scores: np.ndarray
    log_probabilities: np.ndarray
    perturbed: np.ndarray

    @classmethod
    def root(cls, rng: np.random.Generator) -> _Beam:
        zero = np.zeros(1, dtype=np.int64)
        return cls(rng, zero, zero, np.zeros(1), np.zeros(1), rng.gumbel(size=1))

    def grow(self, found: Expansion, temperature: float) -> _Beam:
        """All children, their noise drawn given that the largest of a parent's children is the parent's."""
        if not found.node.size:
            return dataclasses.replace(self, **{name: getattr(self, name)[:0] for name in _ARRAYS})
        # 1. Log-probability given the parent: softmax over the siblings.
        first = np.flatnonzero(np.diff(found.owner, prepend=-1))
        family = np.repeat(np.arange(len(first)), np.diff(first, append=len(found.owner)))
        tempered = np.maximum(found.gain / temperature, _NEVER)
        peak = np.maximum.reduceat(tempered, first)[family]
        total = np.add.reduceat(np.exp(tempered - peak), first)[family]
        own = self.log_probabilities[found.owner] + tempered - peak - np.log(total)
        # 2. Gumbels with these locations, shifted so that the largest sibling is the parent's (paper, appendix B.3:
        #    the form that stays finite for siblings far below).
        noisy = own + self.rng.gumbel(size=len(own))
        largest = np.maximum.reduceat(noisy, first)[family]
        target = self.perturbed[found.owner]
        with np.errstate(divide="ignore"):  # the largest sibling itself: log 0 = -inf, and its result is `target`
            gap = target - noisy + np.log(-np.expm1(noisy - largest))
        perturbed = target - np.maximum(gap, 0) - np.log1p(np.exp(-np.abs(gap)))
        return _Beam(self.rng, found.owner, found.node, self.scores[found.owner] + found.gain, own, perturbed)

    def best(self, count: int) -> _Beam:
        """The `count` largest perturbed, by node: the next draws then do not depend on how close two of them were."""
        keep = best_first(self.perturbed, self.nodes, count)
        keep = keep[np.argsort(self.nodes[keep])]
        return dataclasses.replace(self, **{name: getattr(self, name)[keep] for name in _ARRAYS})


_ARRAYS = ("owner", "nodes", "scores", "log_probabilities", "perturbed")


def _bucket_items(trie: SIDTrie, leaves: np.ndarray, allowed: RowFilter | None) -> Expansion:
    """The items of each leaf as its children, equally likely."""
    members = [trie.members(int(leaf), allowed) for leaf in leaves]
    sizes = np.array([len(rows) for rows in members], dtype=np.int64)
    return Expansion(
        owner=np.repeat(np.arange(len(leaves)), sizes),
        node=np.concatenate([np.zeros(0, dtype=np.int64), *members]),
        gain=np.repeat(-np.log(np.maximum(sizes, 1)), sizes),
    )
