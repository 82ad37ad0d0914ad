"""``llmrec recommend``, ``explain`` and ``inspect`` from the command line, and files of users that survive a kill."""

import json

import polars as pl
import pytest

from llmrec import batch_recommend, cli
from llmrec.batch_recommend import read_histories, recommend_file
from llmrec.checkpoint import Checkpoint
from llmrec.errors import DataError, InputError, MismatchError
from llmrec.recommender import Recommender
from llmrec.testing.checkpoints import tiny_adapter, tiny_base, tiny_parts
from llmrec.testing.worlds import tiny_events


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_parts().write(tmp_path_factory.mktemp("run") / "cpt").folder


@pytest.fixture(scope="module")
def recommender(folder):
    return Recommender.load(folder)  # as the command loads it


@pytest.fixture
def llmrec(capsys, monkeypatch, tmp_path):
    """``llmrec(words...)`` -> (exit code, stdout, stderr), in an empty folder and 80 columns."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")

    def run(*words):
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main([str(word) for word in words])
        captured = capsys.readouterr()
        return end.value.code or 0, captured.out, captured.err

    return run


# -- one history -------------------------------------------------------------------------------------------------------


def test_recommend_shows_the_match_and_the_items(llmrec, folder, recommender):
    code, out, _ = llmrec("recommend", folder, "7", "silent rivr", "--k", "5")
    assert code == 0
    assert "“silent rivr”" in out
    for item in recommender.recommend(["7", "1"], k=5):
        assert item.title in out
        assert item.sid in out
    assert max(len(line) for line in out.splitlines()) <= 80


def test_recommend_json_is_what_the_library_says(llmrec, folder, recommender):
    code, out, _ = llmrec("recommend", folder, "7", "The Silent River", "-k", "100", "--exact", "--json")
    report = json.loads(out)
    answer = recommender.recommend(["7", "1"], k=100, search="exact")
    assert code == 0
    assert [item["item_id"] for item in report["items"]] == [item.item_id for item in answer]
    assert [(match["item_id"], match["is_id"]) for match in report["history"]] == [("7", True), ("1", False)]
    assert report["notes"] == list(answer.notes)
    assert report["search"] == "exact"
    assert "note: k=100 is more" in llmrec("recommend", folder, "7", "-k", "100")[1]


def test_words_that_match_nothing_exit_with_the_nearest_titles(llmrec, folder):
    code, _, err = llmrec("recommend", folder, "7", "Casablanca", "zzzz")
    assert code == 2
    assert "2 of the 3 given" in err
    assert err.count("nearest are") + err.count("nothing is near") == 2


def test_a_folder_that_is_no_checkpoint_exits_2(llmrec, tmp_path):
    for command in (["recommend", tmp_path], ["inspect", tmp_path], ["explain", tmp_path, "1", "--history", "2"]):
        code, _, err = llmrec(*command)
        assert code == 2
        assert "no llmrec checkpoint" in err


def test_explain(llmrec, folder):
    code, out, _ = llmrec("explain", folder, "The Silent Garden", "--history", "7", "--history", "golden river")
    assert code == 0
    assert "why The Silent Garden (11)" in out
    assert "titles named that the catalogue lacks: " in out
    code, out, _ = llmrec("explain", folder, "11", "--history", "7", "--json")
    report = json.loads(out)
    assert report["item"]["item_id"] == report["explanation"]["item_id"] == "11"
    assert report["history"][0]["item_id"] == "7"


# -- inspect -----------------------------------------------------------------------------------------------------------


def test_inspect_shows_a_model_on_one_screen(llmrec, folder):
    checkpoint = Checkpoint.load(folder)
    code, out, _ = llmrec("inspect", folder)
    assert code == 0
    assert "a full SID-extended model" in out
    for text in (checkpoint.fingerprint, checkpoint.card.fingerprints.rows, "60 items", "6 × 5 × 4", "window 8"):
        assert text in out
    assert len(out.splitlines()) <= 24
    code, out, _ = llmrec("inspect", folder, "--json")
    report = json.loads(out)
    assert report["table"] == {
        "items": 60, "retired": 0, "num_levels": 3, "codebook_sizes": [6, 5, 4], "has_suffix": True, "num_tokens": 15,
        "parent": None,
    }  # fmt: skip
    assert report["stage"] == "cpt"
    assert report["fingerprint"] == checkpoint.fingerprint


def test_inspect_shows_an_adapter_whose_base_is_gone(llmrec, tmp_path):
    base = tiny_base(tmp_path / "base")
    adapter, _ = tiny_adapter(tmp_path / "sft", base)
    base.rename(tmp_path / "gone")
    code, out, _ = llmrec("inspect", adapter.folder)
    assert code == 0
    assert "an adapter (PEFT) on the base below" in out
    assert adapter.card.base.weights_sha256[:16] in out
    (adapter.folder / "catalog.parquet").write_bytes(b"")
    code, _, err = llmrec("inspect", adapter.folder)
    assert code == 2
    assert "catalog.parquet has sha256" in err


# -- files of users ----------------------------------------------------------------------------------------------------


@pytest.fixture
def users(tmp_path):
    """Rows of 40 users in the file, in an order that is not that of time."""
    rows = pl.DataFrame(tiny_events(), schema=["user_id", "item_id", "timestamp"], orient="row")
    path = tmp_path / "users.csv"
    rows.sample(fraction=1, shuffle=True, seed=0).write_csv(path)
    return path


def by_hand(recommender, histories, k):
    return {user: [item.item_id for item in recommender.recommend(h, k)] for user, h in histories.items()}


def sequences():
    found = {}
    for user, item, _ in tiny_events():
        found.setdefault(user, []).append(item)
    return found


def test_every_format_gives_the_same_users(users, tmp_path):
    expected = sequences()
    rows = pl.read_csv(users, schema_overrides={"user_id": pl.String, "item_id": pl.String})
    rows.write_parquet(tmp_path / "rows.parquet")
    lists = pl.DataFrame({"user_id": list(expected), "history": list(expected.values())})
    lists.write_parquet(tmp_path / "lists.parquet")
    lists.write_ndjson(tmp_path / "lists.jsonl")
    rows.sort("timestamp").drop("timestamp").write_csv(tmp_path / "ordered.csv")
    for name in ("users.csv", "rows.parquet", "lists.parquet", "lists.jsonl", "ordered.csv"):
        found = read_histories(tmp_path / name)
        assert {u: list(h) for u, h in zip(found.user_ids, found.histories, strict=True)} == expected, name


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.csv", "user_id,item\n1,2\n", "no column 'item_id'; did you mean 'item'"),
        ("a.csv", "user_id,item_id\n1,2\n1,\n", "a.csv:3: item_id is empty"),
        ("a.csv", "user_id,item_id,timestamp\n1,2,soon\n", "a.csv:2: timestamp 'soon'"),
        ("a.csv", "user_id,history\n1,2 3\n", "not lists"),
        ("a.jsonl", '{"user_id": 1, "history": [1]}\n{"user_id": 1, "history": [2]}\n', "a.jsonl:2: user_id again"),
        ("a.jsonl", '{"user_id": 1, "history": [1]}\n{"user_id": 2}\n', "a.jsonl:2: no history"),
        ("a.jsonl", '{"history": [1]}\n', "no column 'user_id'"),
        ("a.parquet", "not parquet", "not a Parquet file"),
    ],
)
def test_files_that_cannot_be_used_say_why(tmp_path, name, content, problem):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError) as caught:
        read_histories(tmp_path / name)
    assert problem in str(caught.value)


def test_other_files_are_refused(tmp_path):
    with pytest.raises(InputError, match="none of"):
        read_histories(tmp_path / "users.xlsx")
    with pytest.raises(InputError, match="does not exist"):
        read_histories(tmp_path / "users.csv")


def test_a_file_of_users_gets_what_each_user_gets_alone(llmrec, folder, users, tmp_path):
    code, out, _ = llmrec("recommend", folder, "--input", users, "--output", "recs.parquet", "-k", "4")
    assert code == 0
    assert "40 of 40 users" in out
    result = pl.read_parquet(tmp_path / "recs.parquet")
    assert result.columns == ["user_id", "rank", "item_id", "title", "sid", "score"]
    found = {str(user): rows["item_id"].to_list() for (user,), rows in result.group_by("user_id", maintain_order=True)}
    assert found == by_hand(Recommender.load(folder), sequences(), 4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["recs.parquet", "users.csv"]
    code, _, err = llmrec("recommend", folder, "--input", users, "--output", "recs.parquet")
    assert code == 2
    assert "exists already" in err


def test_what_cannot_be_recommended_is_counted(llmrec, folder, tmp_path):
    rows = [("a", ["1", "x"]), ("b", ["x", "y"]), ("c", []), ("d", [str(i) for i in range(1, 60)])]
    path = tmp_path / "users.jsonl"
    path.write_text("".join(json.dumps({"user_id": u, "history": h}) + "\n" for u, h in rows))
    code, out, _ = llmrec("recommend", folder, "--input", path, "--output", "recs.parquet", "--json")
    report = json.loads(out)
    assert code == 0
    assert report["users"] == 4
    assert report["users_unknown_only"] == ["b"]
    assert report["users_short"] == 1
    assert report["unknown_items"] == 3
    counts = dict(pl.read_parquet(tmp_path / "recs.parquet").group_by("user_id").len().iter_rows())
    assert counts == {"a": 10, "c": 10, "d": 1}
    (tmp_path / "recs.parquet").unlink()
    out = llmrec("recommend", folder, "--input", path, "--output", "recs.parquet")[1]
    assert "1 users have unknown items only and no row: b" in out
    assert "1 users have fewer than 10 items" in out


def test_a_killed_run_goes_on_where_it_stopped(recommender, users, tmp_path, monkeypatch):
    monkeypatch.setattr(batch_recommend, "PART_SIZE", 8)
    recommend_file(recommender, users, tmp_path / "whole.parquet", k=3)

    def kill(done, total):
        if done == 16:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        recommend_file(recommender, users, tmp_path / "recs.parquet", k=3, progress=kill)
    assert not (tmp_path / "recs.parquet").exists()

    asked = []
    original = recommender.recommend_many
    monkeypatch.setattr(recommender, "recommend_many", lambda h, *a, **s: asked.append(len(h)) or original(h, *a, **s))
    summary = recommend_file(recommender, users, tmp_path / "recs.parquet", k=3)
    assert asked == [8, 8, 8]
    assert (summary.users, summary.users_resumed) == (40, 16)
    assert pl.read_parquet(tmp_path / "recs.parquet").equals(pl.read_parquet(tmp_path / "whole.parquet"))
    assert not (tmp_path / "recs.parquet.parts").exists()


def test_going_on_with_something_else_is_refused(recommender, users, tmp_path, monkeypatch):
    monkeypatch.setattr(batch_recommend, "PART_SIZE", 8)

    def kill(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        recommend_file(recommender, users, tmp_path / "recs.parquet", k=3, progress=kill)
    with pytest.raises(MismatchError, match="k was 3, is 4"):
        recommend_file(recommender, users, tmp_path / "recs.parquet", k=4)
    users.write_text(users.read_text() + "41,1,1\n")
    with pytest.raises(MismatchError, match="input_sha256 was"):
        recommend_file(recommender, users, tmp_path / "recs.parquet", k=3)


def test_options_that_contradict_each_other(llmrec, folder, users):
    for words in (["--input", users], ["--output", "a.parquet"], ["7", "--input", users, "--output", "a.parquet"]):
        code, _, err = llmrec("recommend", folder, *words)
        assert code == 2
        assert "belong together" in err
    code, _, err = llmrec("recommend", folder, "--input", users, "--output", "recs.csv")
    assert code == 2
    assert "must end in .parquet" in err
