"""Negatives that the model itself answers: its best beams, self-play, and draws that are accepted where it errs.

* **beams**: the most probable items that the user did not choose. Hard, and nothing is drawn. These are not samples of
  the model's distribution: an estimate that needs samples takes the draws below.
* **self-play** (SPRec, Gao et al., "SPRec: Self-Play to Debias LLM-based Recommendation", WWW 2025, arXiv:2412.09243):
  in each iteration the user's events are the positives and the outputs of the model of the previous iteration are the
  negatives, so that an item is pushed down as often as the model recommends it. An iteration here is one data set, made
  with the checkpoint that the iteration before left; its number is in every row. We draw from the catalogue without
  replacement and never draw the history.
* **rejection sampled** (after the rejected sampling of RosePO, Liao et al., arXiv:2410.12519): items are drawn from the
  model; one is accepted where it is wrong *and* the model finds it at least as probable as the chosen item. A history
  that the model answers well gives nothing, and so the pairs are where there is something to learn. RosePO's smoothing
  by a preference oracle belongs to a loss, and its strategies against biases to other sources (popular, same prefix).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet

from llmrec.train.preference.answers import Answer, Answers, Question
from llmrec.train.preference.config import BeamNegatives, RejectionSampledNegatives, SelfPlayNegatives
from llmrec.train.preference.contexts import Context, Drops
from llmrec.train.preference.negatives import Rejected
from llmrec.train.preference.pairs import RejectedSource


class Answered:
    """Takes the first answers that the user has not met.

    Args:
        source: name in the rows.
        answers: by row id.
        count: items a row.
        refused: a further reason not to take an item of this log-probability, or None.
    """

    def __init__(
        self,
        source: RejectedSource,
        answers: Mapping[str, Answer],
        count: int,
        refused: Callable[[Answer, float], str | None] | None = None,
    ) -> None:
        self.source: RejectedSource = source
        self.answers = answers
        self.count = count
        self.refused = refused

    def pick(self, context: Context, taken: AbstractSet[str], drops: Drops) -> list[Rejected]:
        """The first `count` of the answers that can be rejected."""
        answer = self.answers[context.row_id]
        found: list[Rejected] = []
        for item_id, score in zip(answer.item_ids, answer.scores, strict=True):
            if len(found) == self.count:
                break
            reason = context.why_not(item_id) or ("rejected by a source before it" if item_id in taken else None)
            reason = reason or (self.refused(answer, score) if self.refused else None)
            if reason:
                drops.items[f"{self.source}: {reason}"] += 1
            else:
                found.append(Rejected(item_id, self.source, score))
        drops.missing[self.source] += self.count - len(found)
        return found


def beam_source(config: BeamNegatives, answers: Answers) -> Answered:
    """The best wrong answers of a beam search."""
    question = Question("beam", top_k=config.num_beams, num_beams=config.num_beams)
    return Answered("beams", answers.ask(question, "beams"), config.count)


def self_play_source(config: SelfPlayNegatives, answers: Answers, seed: int) -> Answered:
    """Wrong ones among `count` draws from the model of this iteration."""
    # Iterations draw anew: with equal noise a model that has barely moved would give the same items again.
    question = Question(
        "sample", config.count, temperature=config.temperature, seed=seed * 1_000_003 + config.iteration
    )
    return Answered("self_play", answers.ask(question, f"self-play {config.iteration}"), config.count)


def rejection_sampled_source(config: RejectionSampledNegatives, answers: Answers, seed: int) -> Answered:
    """The first draws that are wrong and at least as probable as the chosen item."""
    question = Question("sample", config.draws, temperature=config.temperature, seed=seed, scores_chosen=True)

    def less_probable(answer: Answer, score: float) -> str | None:
        assert answer.chosen_score is not None  # the question asks for it
        return None if score >= answer.chosen_score - config.margin else "less probable than the chosen item"

    return Answered("rejection_sampled", answers.ask(question, "rejection sampling"), config.count, less_probable)
