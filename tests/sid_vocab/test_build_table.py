"""build_table end to end on small vectors, and the numbers of its health report."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from llmrec.config import build_config, dump_yaml, parse_yaml
from llmrec.errors import InputError
from llmrec.sid_vocab.behaviour_signal import BehaviourSignal
from llmrec.sid_vocab.build import BuiltTable, SIDConfig, build_table
from llmrec.sid_vocab.report import health_report
from llmrec.sid_vocab.rq_kmeans import ResidualCodebooks
from llmrec.sid_vocab.table import SIDTable
from llmrec.testing.worlds import tiny_items

ITEMS = tiny_items()
IDS = [item["item_id"] for item in ITEMS]
TITLES = [item["title"] for item in ITEMS]


@pytest.fixture
def config(tmp_path: Path) -> SIDConfig:
    """Genre clusters as the user's own vectors, four codes twice: collisions are certain."""
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(6, 8))[np.arange(60) % 6] + 0.2 * rng.normal(size=(60, 8))
    np.save(tmp_path / "v.npy", vectors)
    (tmp_path / "ids.txt").write_text("\n".join(IDS))
    values = {
        "embeddings": {"source": "file", "path": str(tmp_path / "v.npy"), "ids": str(tmp_path / "ids.txt")},
        "quantizer": {"num_levels": 2, "codebook_size": [6, 4]},
    }
    return build_config(SIDConfig, values, source="recipe")


def test_every_item_gets_its_own_sid(config: SIDConfig) -> None:
    built = build_table(config, IDS, TITLES)
    table, report = built.table, built.report
    assert table.item_ids == tuple(IDS)
    assert table.has_suffix
    assert table.codebook_sizes[:2] == (6, 4)
    assert all(len(rows) == 1 for rows in table.buckets().values())
    fitted = ResidualCodebooks(table.codebooks)
    assert built.vectors is not None
    np.testing.assert_array_equal(fitted.encode(built.vectors), table.codes[:, :2])
    assert report.largest_bucket == int(table.codes[:, 2].max()) + 1
    assert report.levels[0].used == 6
    assert report.levels[2].reconstruction_error is None
    first, second = (report.levels[level].reconstruction_error for level in (0, 1))
    assert first is not None
    assert second is not None
    assert second < first < 1


def test_first_level_follows_the_genres(config: SIDConfig) -> None:
    built = build_table(config, IDS, TITLES)
    pairs = {(row % 6, code) for row, code in enumerate(built.table.codes[:, 0].tolist())}
    assert len(pairs) <= 8  # six clear clusters; k-means may split one and merge two
    group = built.report.first_codes[0]
    rows = np.flatnonzero(built.table.codes[:, 0] == int(group.tokens[3:-1]))
    assert group.num_items == len(rows)
    assert group.titles == tuple(TITLES[row] for row in rows[:5])


def test_building_twice_gives_the_same_table(config: SIDConfig) -> None:
    one, two = build_table(config, IDS, TITLES), build_table(config, IDS, TITLES)
    assert one.table.vocabulary_fingerprint == two.table.vocabulary_fingerprint
    assert one.table.rows_fingerprint == two.table.rows_fingerprint
    assert one.report == two.report


def test_the_resolved_config_builds_the_same_table(config: SIDConfig) -> None:
    again = build_config(SIDConfig, parse_yaml(dump_yaml(config), source="dump"), source="dump")
    assert again == config


def test_shared_sids_and_behaviour(config: SIDConfig) -> None:
    mixed = config.model_copy(
        update={
            "embeddings": config.embeddings.model_copy(update={"behaviour_weight": 0.7}),
            "collisions": config.collisions.model_copy(update={"strategy": "share"}),
        }
    )
    behaviour = np.eye(6)[np.arange(60) % 6]
    behaviour[59] = 0
    signal = BehaviourSignal(behaviour, np.empty((0, 2), np.int64))
    built = build_table(mixed, IDS, TITLES, signal, titles=[f"T{item_id}" for item_id in IDS])
    assert not built.table.has_suffix
    assert built.report.notes == ("1 items without train behaviour are placed by text alone",)
    assert built.report.biggest_buckets[0].num_items == max(map(len, built.table.buckets().values()))
    assert built.report.biggest_buckets[0].titles[0].startswith("T")
    with pytest.raises(InputError, match="no behaviour vectors"):
        build_table(mixed, IDS, TITLES)


def test_own_sids(tmp_path: Path) -> None:
    path = tmp_path / "index.json"
    index = {item_id: [f"<a_{row % 6}>", f"<b_{row // 6}>"] for row, item_id in enumerate(IDS)}
    path.write_text(json.dumps({**index, "x": ["<a_0>", "<b_0>"]}))
    built: BuiltTable = build_table(SIDConfig.model_validate({"index": {"path": str(path)}}), IDS, TITLES)
    assert built.table.text("8") == "<a_1><b_1>"
    assert (built.table.codebook_sizes, built.table.codebooks, built.vectors) == ((6, 10), (), None)
    assert built.report.notes == ("1 SIDs of items that the catalogue lacks were left out",)
    assert built.report.colliding_items == 0
    suffixed = build_table(
        SIDConfig.model_validate({"index": {"path": str(path), "has_suffix": True}}), IDS, TITLES
    ).report
    assert (suffixed.distinct, suffixed.largest_bucket, suffixed.colliding_items) == (6, 10, 60)


def test_report_by_hand() -> None:
    # Two level-0 codes of four in use, half the items each; ("0", 0) three times.
    codes = np.array([[0, 0, 0], [0, 0, 1], [0, 0, 2], [0, 1, 0], [2, 0, 0], [2, 1, 0], [2, 2, 0], [2, 3, 0]])
    books = (np.array([[1.0], [9], [-1], [9]], np.float32), np.array([[0.5], [-0.5], [0], [0]], np.float32))
    table = SIDTable(
        item_ids=tuple("abcdefgh"), codes=codes, codebook_sizes=(4, 4, 4), has_suffix=True, codebooks=books
    )
    vectors = np.array([[1.5], [1.5], [1.5], [0.5], [-0.5], [-1.5], [-1.0], [-1.0]])
    report = health_report(
        table, [f"title {x}" for x in "abcdefgh"], vectors=vectors, quantizer=ResidualCodebooks(books), examples=2
    )
    assert (report.distinct, report.colliding_items, report.collision_rate, report.largest_bucket) == (6, 3, 3 / 8, 3)
    level = report.levels[0]
    assert (level.level, level.codebook_size, level.used) == ("a", 4, 2)
    assert level.entropy == pytest.approx(1)
    assert level.perplexity == pytest.approx(2)
    variance = float(np.square(vectors - vectors.mean()).sum())
    assert level.reconstruction_error == pytest.approx(6 * 0.25 / variance)
    assert report.levels[1].reconstruction_error == pytest.approx(0)
    assert [(group.tokens, group.num_items) for group in report.biggest_buckets] == [("<a_0><b_0>", 3)]
    assert report.biggest_buckets[0].titles == ("title a", "title b", "title c")
    assert [group.tokens for group in report.first_codes] == ["<a_0>", "<a_2>"]
    assert json.loads(json.dumps(report.as_dict())) == report.as_dict()


def test_every_fragment_is_a_valid_config() -> None:
    folder = Path(__file__).parents[2] / "sid_vocab"
    fragments = sorted(folder.rglob("*.yaml"))
    assert fragments
    readme = (folder / "README.md").read_text(encoding="utf-8")
    for path in fragments:
        build_config(SIDConfig, parse_yaml(path.read_text(encoding="utf-8"), source=path.name), source=path.name)
        assert f"`{path.name}`" in readme


@pytest.mark.parametrize(
    ("strategy", "where"), [("reassign", "nearest free code"), ("sinkhorn", "code that optimal transport gave them")]
)
def test_moved_sids_are_unique_and_the_report_counts_what_collided_before(
    config: SIDConfig, strategy: str, where: str
) -> None:
    wide = config.model_copy(
        update={
            "quantizer": config.quantizer.model_copy(update={"codebook_size": [6, 24]}),
            "collisions": config.collisions.model_copy(update={"strategy": strategy}),
        }
    )
    built = build_table(wide, IDS, TITLES)
    table, report = built.table, built.report
    assert (table.has_suffix, table.codebook_sizes) == (False, (6, 24))
    assert all(len(rows) == 1 for rows in table.buckets().values())
    assert built.vectors is not None
    quantised = ResidualCodebooks(table.codebooks).encode(built.vectors)
    moved = int((quantised != table.codes).any(axis=1).sum())
    assert moved >= 60 - report.distinct > 0
    assert report.notes == (f"{moved} of 60 items were moved to the {where} of the last level",)
    assert report.largest_bucket > 1
    assert report.collision_rate > 0


def test_reassign_names_the_size_that_would_do(config: SIDConfig) -> None:
    small = config.model_copy(update={"collisions": config.collisions.model_copy(update={"strategy": "reassign"})})
    with pytest.raises(InputError, match="60 items cannot get 60 SIDs") as caught:
        build_table(small, IDS, TITLES)
    sizes = [int(number) for number in str(caught.value).split("codebook_size to [")[1].split("]")[0].split(",")]
    roomy = small.model_copy(update={"quantizer": small.quantizer.model_copy(update={"codebook_size": sizes})})
    assert all(len(rows) == 1 for rows in build_table(roomy, IDS, TITLES).table.buckets().values())


def test_saved_tables_have_their_report(config: SIDConfig, tmp_path: Path) -> None:
    built = build_table(config, IDS, TITLES)
    built.save(tmp_path / "sid")
    assert SIDTable.load(tmp_path / "sid").rows_fingerprint == built.table.rows_fingerprint
    assert json.loads((tmp_path / "sid" / "report.json").read_text()) == built.report.as_dict()


def test_gini_and_hourglass_by_hand() -> None:
    # Four codes a level: the outer levels use all equally, the inner one has 7 of 8 items in one code.
    outer = np.arange(8) % 4
    codes = np.stack([outer, np.array([0, 0, 0, 0, 0, 0, 0, 3]), outer], axis=1)
    report = health_report(SIDTable(tuple("abcdefgh"), codes, (4, 4, 4)), list("abcdefgh"))
    even, waist, _ = report.levels
    assert even.gini == pytest.approx(0)
    assert waist.gini == pytest.approx(2 * (3 * 1 + 4 * 7) / (4 * 8) - 5 / 4)
    assert report.hourglass == pytest.approx(1 - waist.entropy / 2)
    assert health_report(SIDTable(tuple("abcdefgh"), codes[:, :2], (4, 4)), list("abcdefgh")).hourglass is None


def test_items_that_a_quantizer_has_no_behaviour_of_are_counted(config: SIDConfig) -> None:
    values = {"name": "rq-vae", "num_levels": 2, "codebook_size": 4, "latent_size": 4, "hidden_sizes": [8], "epochs": 2}
    acts = np.eye(6, dtype=np.float32)[np.arange(60) % 6]
    acts[50:] = 0
    signal = BehaviourSignal(acts, np.array([[0, 6]]))
    for alignment, notes in ((0, ()), (0.1, ("10 items without train behaviour are placed by text alone",))):
        recipe = {"embeddings": config.embeddings, "quantizer": {**values, "alignment": alignment}}
        assert build_table(SIDConfig.model_validate(recipe), IDS, TITLES, signal).report.notes == notes
