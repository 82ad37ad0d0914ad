"""Only train events make rows, a row that names a target goes as a whole, and a forged row is refused."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec.data.split import Split, SplitCounts
from llmrec.errors import DataError
from llmrec.sid_vocab.table import SIDTable
from llmrec.train.preference.contexts import Drops, select_contexts
from llmrec.train.preference.leaks import check_leaks, without_targets
from llmrec.train.preference.pairs import PreferenceRow


def split_of(sequences):
    """Users "0", "1", ... over the items "0" to "9"."""
    arrays = tuple(np.array(sequence, dtype=np.int32) for sequence in sequences)
    counts = SplitCounts(0, 0, 0, 0, 0, 0)
    return Split(tuple(map(str, range(len(arrays)))), tuple("0123456789"), arrays, "check", counts)


TABLE = SIDTable(tuple("0123456789"), np.array([[i // 3, i % 3] for i in range(10)]), (4, 3))
SEQUENCES = st.lists(st.lists(st.integers(0, 9), min_size=3, max_size=8), min_size=1, max_size=4)


def row_of(context, rejected):
    return PreferenceRow(
        row_id=context.row_id,
        user_id=context.user_id,
        position=context.position,
        history=context.history,
        chosen=context.chosen,
        rejected=tuple(rejected),
        chosen_source="event",
        source=("random",) * len(rejected),
        weights=(1.0,) * len(rejected),
        scores=(None,) * len(rejected),
    )


def contexts_of(split, **changes):
    given = {"users": None, "recent_events": None, "min_history": 1, **changes}
    return select_contexts(split, TABLE, Drops(), **given)


@given(SEQUENCES, st.integers(0, 9), st.integers(1, 4))
@settings(deadline=None)
def test_no_context_holds_a_valid_or_test_event(sequences, other, recent):
    """The last two events of every user may be anything: contexts stay the same."""
    before = contexts_of(split_of(sequences), recent_events=recent)
    changed = split_of([[*sequence[:-2], other, other] for sequence in sequences])
    assert contexts_of(changed, recent_events=recent) == before
    for context in before:
        train = sequences[int(context.user_id)][:-2]
        assert [*context.history, context.chosen, *context.later] == [str(item) for item in train]


@given(SEQUENCES, st.lists(st.integers(0, 9), min_size=1, max_size=4, unique=True))
@settings(deadline=None)
def test_a_row_with_a_target_goes_as_a_whole_and_the_others_stay_as_they_are(sequences, rejected):
    split = split_of(sequences)
    rows = [row_of(context, [str(item) for item in rejected]) for context in contexts_of(split)]
    kept = without_targets(rows, split)
    for row in rows:
        targets = {str(item) for item in sequences[int(row.user_id)][-2:]}
        assert (row in kept) == targets.isdisjoint({row.chosen, *row.rejected})
    check_leaks(kept, split, what="kept")
    if len(kept) < len(rows):
        with pytest.raises(DataError, match="is a valid or test item of the user"):
            check_leaks(rows, split, what="all")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"rejected": ("5",)}, "5 is rejected and is a valid or test item"),
        ({"rejected": ("6",)}, "6 is rejected and is a valid or test item"),
        ({"chosen": "5", "chosen_source": "scorer"}, "5 is chosen and is a valid or test item"),
        ({"chosen": "9"}, "9 is not the train event after its history"),
        ({"history": ("2", "1")}, "the history is not the user's first train events"),
        ({"history": ("1", "2", "3", "4"), "position": 4, "chosen": "5"}, "position 4 is no train event"),
        ({"user_id": "7"}, "the split has no user 7"),
    ],
)
def test_every_leak_is_named(change, told):
    split = split_of([[1, 2, 3, 4, 5, 6]])
    good = row_of(contexts_of(split)[1], ["8"])
    check_leaks([good], split, what="good")
    with pytest.raises(DataError) as caught:
        check_leaks([dataclasses.replace(good, **change)], split, what="forged")
    assert told in str(caught.value)


def test_what_cannot_be_asked_about_is_counted():
    table = SIDTable(("1", "2", "4"), np.array([[0, 0], [0, 1], [1, 0]]), (2, 2), status=np.array([0, 0, 1]))
    drops = Drops()
    split = split_of([[9, 1, 2, 4, 3, 5, 6], [1, 2, 3]])
    contexts = select_contexts(split, table, drops, users=None, recent_events=None, min_history=1)
    assert [context.row_id for context in contexts] == ["0:2"]
    assert drops.rows == {
        "no history item has a SID": 1,  # 1 after 9
        "the chosen item has no living SID": 2,  # 4 is retired, 3 has none
        "users with too few train events": 1,
        "events that may not be chosen": 0,
    }


def test_users_are_chosen_by_hash_and_events_from_the_end():
    split = split_of([[1, 2, 3, 4, 5, 6]] * 8)
    some, more = (contexts_of(split, users=count, recent_events=1) for count in (3, 5))
    assert len({context.user_id for context in some}) == 3
    assert {context.user_id for context in some} < {context.user_id for context in more}
    assert {context.position for context in more} == {3}
    assert {context.position for context in contexts_of(split, min_history=3)} == {3}
