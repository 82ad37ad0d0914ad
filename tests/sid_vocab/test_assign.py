"""New versions of a table: no SID moves or comes back, new items go near their vectors, misfits are noticed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmrec import recipes
from llmrec.checkpoint_checks import require_descendant
from llmrec.errors import InputError
from llmrec.prompts.templates import TemplateSet
from llmrec.recommender import Recommender
from llmrec.sid_vocab.assign import drift, next_version
from llmrec.sid_vocab.collisions import CollisionConfig, resolve_collisions
from llmrec.sid_vocab.extend import extend_vocabulary
from llmrec.sid_vocab.product import ProductConfig
from llmrec.sid_vocab.quantizer import FittedQuantizer
from llmrec.sid_vocab.quantizers import make_quantizer
from llmrec.sid_vocab.rq_kmeans import ResidualCodebooks, RQKMeansConfig
from llmrec.sid_vocab.rq_vae_config import RQVAEConfig
from llmrec.sid_vocab.table import SIDTable
from llmrec.testing.checkpoints import TinyParts, tiny_catalog
from llmrec.testing.worlds import tiny_items, tiny_model, tiny_tokenizer


def world(strategy: str, seed: int = 0, num_items: int = 20) -> tuple[SIDTable, ResidualCodebooks, np.ndarray]:
    """A table over two levels of 4 and 32 codes with many collisions; 12 more vectors of the same kind."""
    rng = np.random.default_rng(seed)
    fitted = ResidualCodebooks(tuple(rng.normal(size=(size, 5)).astype(np.float32) for size in (4, 32)))
    centres = rng.normal(size=(4, 5))
    vectors = centres[rng.integers(0, 4, num_items + 12)] + 0.05 * rng.normal(size=(num_items + 12, 5))
    old = vectors[:num_items]
    config = CollisionConfig.model_validate({"strategy": strategy})
    codes = resolve_collisions(fitted.encode(old), (4, 32), config, vectors=old, quantizer=fitted)
    ids = tuple(f"old {row}" for row in range(num_items))
    table = SIDTable(ids, codes.codes, codes.codebook_sizes, codes.has_suffix, codebooks=fitted.codebooks)
    return table, fitted, vectors[num_items:]


NEW = [f"new {row}" for row in range(12)]


@given(seed=st.integers(0, 5000), strategy=st.sampled_from(["suffix", "reassign", "sinkhorn"]), data=st.data())
def test_no_sid_moves_and_none_comes_back(seed: int, strategy: str, data: st.DataObject) -> None:
    table, fitted, vectors = world(strategy, seed)
    gone = data.draw(st.sets(st.sampled_from(table.item_ids), max_size=20))
    half = data.draw(st.integers(1, 12))
    one = next_version(table, fitted, NEW[:half], vectors[:half], retire=sorted(gone))
    two = next_version(one.table, fitted, NEW, vectors) if half < 12 else one
    require_descendant(table, one.table)
    require_descendant(one.table, two.table)
    assert one.table.parent == table.rows_fingerprint
    assert set(one.retired) == gone
    final = two.table
    assert final.item_ids == (*table.item_ids, *NEW)
    assert len({tuple(row) for row in final.codes.tolist()}) == 32  # retired items' SIDs are given to nobody
    assert [bool(final.status[final.row(item_id)]) for item_id in table.item_ids] == [
        item_id in gone for item_id in table.item_ids
    ]
    if half < 12:
        assert two.known == tuple(NEW[:half])
    # Whoever is not displaced has its own nearest codes.
    nearest = fitted.encode(vectors)
    moved = {*one.displaced, *two.displaced}
    for item_id, codes in zip(NEW, nearest, strict=True):
        assert (final.codes[final.row(item_id), :2].tolist() == codes.tolist()) == (item_id not in moved)


def test_a_full_code_sends_new_items_to_the_next_nearest() -> None:
    fitted = ResidualCodebooks((np.zeros((1, 2), np.float32), np.array([[1, 0], [0.9, 0], [-1, 0]], np.float32)))
    table = SIDTable(("x", "y"), np.array([[0, 0, 0], [0, 0, 1]]), (1, 3, 2), True, codebooks=fitted.codebooks)
    made = next_version(table, fitted, ["p", "q", "r"], np.array([[1, 0.1], [1, 0.2], [1, 0.3]]))
    assert made.table.codes[2:].tolist() == [[0, 1, 0], [0, 1, 1], [0, 2, 0]]
    assert made.displaced == ("p", "q", "r")
    with pytest.raises(InputError, match=r"1 of 5 new items find no free SID, first: .t.\. All 6 places") as caught:
        next_version(table, fitted, list("pqrst"), np.array([[1, 0.1]] * 5))
    assert "sid fit" in str(caught.value)


def test_shared_sids_are_shared_on_and_counted() -> None:
    table, fitted, vectors = world("share")
    made = next_version(table, fitted, NEW, vectors, share=True)
    np.testing.assert_array_equal(made.table.codes[20:], fitted.encode(vectors))
    shared = [
        item_id for item_id in NEW if len(made.table.buckets()[tuple(made.table.codes[made.table.row(item_id)])]) > 1
    ]
    assert made.sharing == tuple(shared)
    assert shared


def test_what_cannot_be_done_is_said() -> None:
    table, fitted, vectors = world("suffix")
    with pytest.raises(InputError, match="1 of 2 items to retire are not in the table, first: 'nobody'"):
        next_version(table, None, [], np.empty((0, 5)), retire=["old 1", "nobody"])
    with pytest.raises(InputError, match="Nothing would change"):
        next_version(table, fitted, ["old 3"], vectors[:1])
    with pytest.raises(InputError, match="more than once"):
        next_version(table, fitted, ["a", "a"], vectors[:2])
    made = next_version(table, None, [], np.empty((0, 5)), retire=["old 1"])
    again = next_version(made.table, fitted, ["a"], vectors[:1], retire=["old 1", "old 2"])
    assert (again.retired, again.already_retired) == (("old 2",), ("old 1",))
    assert again.table.status[1] == 1


def test_drift_is_seen_where_it_is_and_only_there() -> None:
    rng = np.random.default_rng(0)
    fitted = ResidualCodebooks((rng.normal(size=(16, 6)).astype(np.float32),))
    near = fitted.codebooks[0][rng.integers(0, 16, 900)] + 0.2 * rng.normal(size=(900, 6))
    same = drift(fitted, near[:300], near[300:])
    assert (same.items, same.reference_items) == (300, 600)
    assert not same.refit_due
    assert same.tail_share < 0.12
    assert same.median_error == pytest.approx(same.reference_median_error, rel=0.2)
    far = drift(fitted, 3 * rng.normal(size=(100, 6)), near)
    assert far.refit_due
    assert far.tail_share > 0.9
    assert far.median_error > 5 * far.reference_median_error
    assert not drift(fitted, 3 * rng.normal(size=(1, 6)), near[:3]).refit_due  # one item proves nothing


QUANTIZERS = {
    "rq-kmeans": RQKMeansConfig(num_levels=2, codebook_size=6),
    "opq": ProductConfig(name="opq", num_levels=2, codebook_size=6),
    "rq-vae": RQVAEConfig(num_levels=2, codebook_size=6, latent_size=4, hidden_sizes=[8], epochs=20),
}


def trained(strategy: str, quantizer: str) -> tuple[TinyParts, FittedQuantizer, np.ndarray]:
    """A model over SIDs that were fitted to 60 vectors; their vectors, then 12 of items to come."""
    rng = np.random.default_rng(4)
    vectors = rng.normal(size=(4, 8))[rng.integers(0, 4, 72)] + 0.4 * rng.normal(size=(72, 8))
    old = vectors[:60].astype(np.float32)
    config = QUANTIZERS[quantizer]
    # without a suffix a prefix has room for one item per last code
    wide = config.model_copy(update={"codebook_size": [6, 40]}) if strategy in ("reassign", "sinkhorn") else config
    fitted = make_quantizer(wide).fit(old)
    collisions = CollisionConfig.model_validate({"strategy": strategy})
    sizes = tuple(len(book) for book in fitted.codebooks)
    solved = resolve_collisions(fitted.encode(old), sizes, collisions, vectors=old, quantizer=fitted)
    ids = tuple(item["item_id"] for item in tiny_items())
    table = SIDTable(ids, solved.codes, solved.codebook_sizes, solved.has_suffix, codebooks=fitted.codebooks)
    tokenizer = tiny_tokenizer()
    model = tiny_model(tokenizer)
    extension = extend_vocabulary(model, tokenizer, table, init="random")
    templates = TemplateSet.load(recipes.folder("prompts"))
    return TinyParts(model, tokenizer, extension.table, tiny_catalog(), templates), fitted, vectors


@pytest.mark.parametrize(
    ("strategy", "quantizer"),
    [
        ("suffix", "rq-kmeans"), ("reassign", "rq-kmeans"), ("sinkhorn", "rq-kmeans"), ("share", "rq-kmeans"),
        ("suffix", "rq-vae"), ("reassign", "rq-vae"), ("share", "opq"), ("reassign", "opq"),
    ],
)  # fmt: skip
def test_an_old_checkpoint_recommends_added_items_and_never_retired_ones(strategy, quantizer, tmp_path) -> None:
    parts, fitted, vectors = trained(strategy, quantizer)
    checkpoint = parts.write(tmp_path / "cpt")
    share = strategy == "share"
    # The last item to come is the twin of one that retires: it would have its very codes.
    to_come = np.concatenate([vectors[60:71], vectors[4:5]])
    first = next_version(parts.table, fitted, NEW[:6], to_come[:6], retire=["5", "10"], share=share)
    second = next_version(first.table, fitted, NEW[6:], to_come[6:], retire=["12", NEW[0]], share=share)
    gone = {"5", "10", "12", NEW[0]}
    table = second.table
    require_descendant(parts.table, first.table)
    require_descendant(first.table, table)
    if share:
        assert table.text(NEW[-1]) == table.text("5")
    else:
        assert len(set(map(tuple, table.codes.tolist()))) == 72  # no SID is given twice, a retired item's neither
    table.save(tmp_path / "v3")
    recommender = Recommender.load(checkpoint.folder, dtype="float32", table=SIDTable.load(tmp_path / "v3"))
    living = {*parts.table.item_ids, *NEW} - gone
    for history in ([], ["7", "5"], [NEW[1], NEW[0]]):
        answer = [item.item_id for item in recommender.recommend(history, k=100, exclude_history=False, search="exact")]
        assert len(answer) == len(set(answer))
        assert set(answer) == living
        beam = recommender.recommend(history, k=100, exclude_history=False, num_beams=100)
        assert {item.item_id for item in beam} <= living


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_drift_of_every_kind_of_quantizer(quantizer) -> None:
    rng = np.random.default_rng(1)
    centres = rng.normal(size=(4, 8))
    near = (centres[rng.integers(0, 4, 700)] + 0.2 * rng.normal(size=(700, 8))).astype(np.float32)
    fitted = make_quantizer(QUANTIZERS[quantizer]).fit(near[:400])
    assert not drift(fitted, near[500:], near[400:500]).refit_due
    assert drift(fitted, 2 * rng.normal(size=(60, 8)).astype(np.float32), near[400:]).refit_due
