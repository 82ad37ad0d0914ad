"""Push and pull, with the real client against a server of our own (`tests.local_hub`)."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
from huggingface_hub import HfApi, constants

from llmrec import cli, hub
from llmrec.checkpoint import Checkpoint, LineageEntry, describe_base
from llmrec.checkpoint_card import CARD_FILE, Card
from llmrec.cli import push
from llmrec.errors import EnvironmentProblem, InputError, MismatchError
from llmrec.hub import HubReference, checkpoint_folder, pull, short_name
from llmrec.publish import prepare
from llmrec.testing.checkpoints import tiny_base, tiny_lora, tiny_parts
from tests.local_hub import TOKEN, Repo, local_hub

pytestmark = [
    pytest.mark.enable_socket,
    pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"),  # of the client's own upload
]


@pytest.fixture(scope="module")
def parts():
    return tiny_parts()


@pytest.fixture(scope="module")
def run(parts, tmp_path_factory):
    """A run with a full model ``cpt`` and an adapter ``sft`` on it."""
    folder = tmp_path_factory.mktemp("run")
    cpt = parts.write(folder / "cpt", recipe={"seed": 0, "data": {"path": "/data/of/me/games"}})
    base = describe_base(str(cpt.folder))
    lineage = [*cpt.card.lineage, LineageEntry(stage="sft", config_hash="f00d", parent=cpt.fingerprint)]
    parts.write(folder / "sft", model=tiny_lora(parts), base=base, lineage=lineage)
    return folder


@pytest.fixture
def server(monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with local_hub() as running:
        yield running


def client(server, token=TOKEN):
    return HfApi(endpoint=server.url, token=token)


def pushed(server, folder, repo, work, *, private=True, **options):
    return prepare(folder, repo, work, **options).push(private=private, api=client(server))


# -- there and back ----------------------------------------------------------------------------------------------------


def test_a_model_comes_back_with_the_same_files(server, run, tmp_path):
    sent = pushed(server, run / "cpt", "me/games", tmp_path / "work")
    assert server.repos["me/games"].private
    folder = pull(HubReference("me/games"), api=client(server))
    there, here = Checkpoint.load(folder), Checkpoint.load(run / "cpt")
    assert there.card.files == here.card.files
    assert sent.commit == folder.name == server.repos["me/games"].commits[-1]
    assert sent.files == len(here.card.files) + 2  # the card and the page
    assert pull(HubReference("me/games", sent.commit), api=client(server)) == folder


def test_the_cache_serves_without_a_network(server, run, tmp_path, monkeypatch):
    pushed(server, run / "cpt", "me/games", tmp_path / "work")
    folder = pull(HubReference("me/games"), api=client(server))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert pull(HubReference("me/games"), api=client(server)) == folder
    with pytest.raises(EnvironmentProblem, match="the Hub cannot be used"):
        pull(HubReference("me/other"), api=client(server))


def test_an_adapter_names_the_commit_of_its_base(server, run, tmp_path):
    plan = prepare(run / "sft", "me/games", tmp_path, base_repo="me/games-base")
    assert plan.base is not None
    assert not server.repos  # a plan sends nothing
    plan.push(private=True, api=client(server))
    base = server.repos["me/games-base"].commits[-1]
    folder = pull(HubReference("me/games"), api=client(server))
    card, config = Card.read(folder), json.loads((folder / "adapter_config.json").read_text())
    assert card.base.reference == f"me/games-base@{base}"
    assert (config["base_model_name_or_path"], config["revision"]) == ("me/games-base", base)
    assert card.base.weights_sha256 == Card.read(run / "sft").base.weights_sha256


def test_merged_is_one_model(server, run, tmp_path):
    pushed(server, run / "sft", "me/games", tmp_path, merged=True)
    folder = pull(HubReference("me/games"), api=client(server))
    there = Checkpoint.load(folder)
    assert there.card.kind == "model"
    assert [entry.stage for entry in there.card.lineage] == ["cpt", "sft", "merged"]
    assert str(run) not in (folder / CARD_FILE).read_text()
    assert there.card.base.reference == "unpublished:cpt"  # the tiny model came from no base


def test_a_second_push_replaces_what_was_there(server, run, parts, tmp_path):
    first = pushed(server, run / "cpt", "me/games", tmp_path / "1")
    server.repos["me/games"].commit({**server.repos["me/games"].trees[first.commit], "left.safetensors": b"old"})
    other = parts.write(tmp_path / "other", recipe={"seed": 1})
    second = pushed(server, other.folder, "me/games", tmp_path / "2")
    assert set(server.repos["me/games"].trees[second.commit]) == {
        *other.card.files,
        CARD_FILE,
        "README.md",
        ".gitattributes",
    }
    assert Card.read(pull(HubReference("me/games", first.commit), api=client(server))).recipe["seed"] == 0
    assert Card.read(pull(HubReference("me/games"), api=client(server))).recipe["seed"] == 1


def test_nothing_of_the_machine_is_told(server, run, tmp_path):
    plan = prepare(run / "cpt", "me/games", tmp_path)
    plan.push(private=True, api=client(server))
    files = server.repos["me/games"].trees[server.repos["me/games"].commits[-1]]
    assert not any(b"/data/of/me" in content or str(run).encode() in content for content in files.values())
    assert any(note.endswith("last part: 1") for note in plan.notes)
    assert any("60 items" in note for note in plan.notes)


def test_the_page_is_valid_and_says_what_it_is(server, run, tmp_path):
    from huggingface_hub import ModelCard

    plan = prepare(run / "sft", "me/games", tmp_path, base_repo="me/games-base", license="apache-2.0")
    plan.push(private=True, api=client(server))
    card = ModelCard(server.repos["me/games"].trees[server.repos["me/games"].commits[-1]]["README.md"].decode())
    assert card.data.base_model == "me/games-base"
    assert (card.data.library_name, card.data.license) == ("peft", "apache-2.0")
    assert "semantic-ids" in card.data.tags
    assert "llmrec recommend hub:me/games" in card.text


# -- what is refused when pushing --------------------------------------------------------------------------------------


def test_a_base_that_no_one_else_has_is_refused(run, parts, tmp_path):
    with pytest.raises(InputError, match="--base me/games-base"):
        prepare(run / "sft", "me/games", tmp_path)
    plain = tiny_base(tmp_path / "plain")
    from llmrec.testing.checkpoints import tiny_adapter

    adapter, _ = tiny_adapter(tmp_path / "adapter", plain)
    with pytest.raises(InputError, match="--merged"):
        prepare(adapter.folder, "me/games", tmp_path, base_repo="me/base")


@pytest.mark.parametrize(
    ("repo", "options", "told"),
    [
        ("games", {}, "OWNER/NAME"),
        ("me/games", {"base_repo": "base"}, "OWNER/NAME"),
        ("me/games", {"base_repo": "me/games"}, "same one"),
        ("me/games", {"base_repo": "me/base", "merged": True}, "--merged makes one"),
    ],
)
def test_words_that_cannot_work_are_refused_before_anything_is_read(repo, options, told, tmp_path):
    with pytest.raises(InputError, match=told):
        prepare(tmp_path / "none", repo, tmp_path, **options)


def test_options_for_adapters_are_refused_for_models(run, tmp_path):
    with pytest.raises(InputError, match="nothing to merge"):
        prepare(run / "cpt", "me/games", tmp_path, merged=True)
    with pytest.raises(InputError, match="needs no base"):
        prepare(run / "cpt", "me/games", tmp_path, base_repo="me/base")


def test_a_damaged_checkpoint_is_not_pushed(run, tmp_path):
    copy = shutil.copytree(run / "cpt", tmp_path / "copy")
    (copy / "catalog.parquet").write_bytes(b"other")
    with pytest.raises(MismatchError, match=r"catalog\.parquet"):
        prepare(copy, "me/games", tmp_path)


def test_private_is_not_pushed_into_a_public_repository(server, run, tmp_path):
    server.repos["me/games"] = Repo(private=False)
    server.repos["me/games"].commit({})
    with pytest.raises(InputError, match="--public"):
        pushed(server, run / "cpt", "me/games", tmp_path / "1")
    assert len(server.repos["me/games"].commits) == 1
    pushed(server, run / "cpt", "me/games", tmp_path / "2", private=False)
    assert len(server.repos["me/games"].commits) == 2


def test_a_token_that_may_not_write_is_told(server, run, tmp_path):
    with pytest.raises(InputError, match="hf auth login"):
        prepare(run / "cpt", "me/games", tmp_path).push(private=True, api=client(server, token="hf_other"))


def test_what_arrives_is_compared(server, run, tmp_path):
    server.lose = "catalog.parquet"
    with pytest.raises(MismatchError, match=r"catalog\.parquet"):
        pushed(server, run / "cpt", "me/games", tmp_path)


def test_a_hub_that_does_not_answer_is_the_environments_fault(server, run, tmp_path):
    dead = HfApi(endpoint="http://127.0.0.1:9", token=TOKEN)
    with pytest.raises(EnvironmentProblem, match="HF_ENDPOINT"):
        prepare(run / "cpt", "me/games", tmp_path).push(private=True, api=dead)


# -- what is refused when pulling --------------------------------------------------------------------------------------


@pytest.fixture
def tampered(server, run, tmp_path):
    """Push ``cpt``, then let a function change the files of a further commit; gives the pull."""

    def pull_after(change):
        sent = pushed(server, run / "cpt", "me/games", tmp_path / "work")
        files = dict(server.repos["me/games"].trees[sent.commit])
        change(files)
        server.repos["me/games"].commit(files)
        return pull(HubReference("me/games"), api=client(server))

    return pull_after


def test_a_changed_file_is_refused(tampered):
    with pytest.raises(MismatchError, match=r"model\.safetensors has sha256"):
        tampered(lambda files: files.update({"model.safetensors": files["model.safetensors"] + b"."}))


def test_a_missing_file_is_refused(tampered):
    with pytest.raises(MismatchError, match=r"catalog\.parquet is missing"):
        tampered(lambda files: files.pop("catalog.parquet"))


def test_files_that_the_card_does_not_list_are_not_even_downloaded(tampered, server):
    folder = tampered(lambda files: files.update({"modeling_evil.py": b"boom", "pytorch_model.bin": b"boom"}))
    assert not (folder / "modeling_evil.py").exists()
    assert not any("evil" in line or line.endswith(".bin") for line in server.requests)


@pytest.mark.parametrize("name", ["evil.py", "weights.bin", "../outside.json", "/etc/passwd", "*.safetensors"])
def test_a_card_that_lists_what_no_checkpoint_holds_is_refused(tampered, server, name):
    def change(files):
        card = json.loads(files[CARD_FILE])
        card["files"][name] = "0" * 64
        files[CARD_FILE] = json.dumps(card).encode()

    with pytest.raises(InputError, match=re.escape(repr(name))):
        tampered(change)
    assert not any("resolve" in line and not line.endswith(CARD_FILE) for line in server.requests)


def test_a_base_on_another_machine_is_refused(server, run, tmp_path):
    pushed(server, run / "sft", "me/games", tmp_path, base_repo="me/base")
    files = dict(server.repos["me/games"].trees[server.repos["me/games"].commits[-1]])
    card = json.loads(files[CARD_FILE])
    card["base"]["reference"] = "../cpt"
    server.repos["me/games"].commit({**files, CARD_FILE: json.dumps(card).encode()})
    with pytest.raises(InputError, match="a folder on another machine"):
        pull(HubReference("me/games"), api=client(server))


@pytest.mark.parametrize("base", ["gpt2", "gpt2@main", "me/base@v1", "asset:smollm2-135m-instruct"])
def test_a_base_that_everyone_can_load_is_taken(server, run, tmp_path, base):
    pushed(server, run / "sft", "me/games", tmp_path, base_repo="me/base")
    files = dict(server.repos["me/games"].trees[server.repos["me/games"].commits[-1]])
    card = json.loads(files[CARD_FILE])
    card["base"]["reference"] = base
    server.repos["me/games"].commit({**files, CARD_FILE: json.dumps(card).encode()})
    assert Card.read(pull(HubReference("me/games"), api=client(server))).base.reference == base


def test_no_checkpoint_no_repository_no_revision(server, run, tmp_path):
    with pytest.raises(InputError, match="no such repository"):
        pull(HubReference("me/none"), api=client(server))
    pushed(server, run / "cpt", "me/games", tmp_path)
    with pytest.raises(InputError, match="no such revision"):
        pull(HubReference("me/games", "v9"), api=client(server))
    with pytest.raises(InputError, match="no such repository"):
        pull(HubReference("me/games"), api=client(server, token=False))
    server.repos["me/base"] = Repo(private=False)
    server.repos["me/base"].commit({"config.json": b"{}"})
    with pytest.raises(InputError, match="is no llmrec checkpoint"):
        pull(HubReference("me/base"), api=client(server))


# -- references --------------------------------------------------------------------------------------------------------


def test_references():
    assert HubReference.parse("hub:me/games") == HubReference("me/games")
    assert HubReference.parse("hub:me/games@refs/pr/1") == HubReference("me/games", "refs/pr/1")
    assert str(HubReference("me/games", "v1")) == "hub:me/games@v1"
    for wrong in ("hub:games", "hub:me/games@", "me/games", "hub:me/../games", "hub:"):
        with pytest.raises(InputError, match="OWNER/NAME"):
            HubReference.parse(wrong)


def test_folders_stay_folders(tmp_path):
    assert checkpoint_folder(tmp_path) == tmp_path
    assert not hub.is_hub("runs/games")
    assert short_name("hub:me/games@v1") == "games"
    assert short_name(tmp_path / "sft") == "sft"


# -- as a user does it -------------------------------------------------------------------------------------------------


@pytest.fixture
def command(server, monkeypatch, capsys):
    """``command("push", ...)``: the exit code and what was printed, with the server as the Hub."""
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, server.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setenv("HF_TOKEN", TOKEN)

    def call(*words):
        with pytest.raises(SystemExit) as end:
            cli.main([str(word) for word in words])
        shown = capsys.readouterr()
        return end.value.code or 0, shown.out + shown.err

    return call


def test_push_says_what_goes_where_and_pull_what_came(command, server, run, tmp_path):
    code, shown = command("push", run / "sft", "me/games", "--base", "me/games-base", "--plan")
    assert (code, server.repos) == (0, {}), shown
    assert shown.index("me/games-base  private; model") < shown.index("me/games  private; adapter")
    assert "note: the catalogue goes along: titles and attributes of 60 items" in shown
    code, shown = command("push", run / "cpt", "me/games", "--public", "--message", "first")
    assert code == 0, shown
    assert not server.repos["me/games"].private
    commit = server.repos["me/games"].commits[-1]
    assert f"commit      {commit}" in shown
    assert f"llmrec inspect hub:me/games@{commit}" in shown
    code, shown = command("pull", f"hub:me/games@{commit}", "--output", tmp_path / "mine")
    assert code == 0, shown
    assert f"checkpoint  {tmp_path / 'mine'}" in shown
    assert Checkpoint.load(tmp_path / "mine").card.files == Card.read(run / "cpt").files
    code, shown = command("pull", f"hub:me/games@{commit}", "--output", tmp_path / "mine")
    assert code == 2
    assert "exists already" in shown
    code, shown = command("inspect", "hub:me/games", "--json")
    assert code == 0
    assert json.loads(shown[shown.index("{") : shown.rindex("}") + 1])["stage"] == "cpt"


def test_the_evaluation_of_a_run_goes_with_its_last_checkpoint_alone(tiny_run):
    folder = tiny_run[1].folder
    last = push._evaluation(tiny_run[1].final)
    assert last is not None
    assert last.summary["dataset"] == tiny_run[1].evaluation.summary["dataset"]
    assert push._evaluation(folder / "cpt") is None


@pytest.mark.slow
def test_the_command_line_pushes_pulls_and_recommends(run, tmp_path):
    with local_hub() as server:
        settings = {"HF_ENDPOINT": server.url, "HF_TOKEN": TOKEN, "HF_HOME": str(tmp_path), "HF_HUB_DISABLE_XET": "1"}
        environment = {**os.environ, **settings, "HF_HUB_OFFLINE": "0"}

        def call(*words):
            done = subprocess.run(
                [sys.executable, "-m", "llmrec", *map(str, words)],
                env=environment, capture_output=True, text=True, timeout=200, check=False,
            )  # fmt: skip
            return done.returncode, done.stdout, done.stderr

        code, shown, said = call("push", run / "sft", "me/games", "--base", "me/games-base", "--plan")
        assert (code, server.repos) == (0, {}), said
        assert "me/games-base  private; model" in shown
        code, _, said = call("push", run / "sft", "me/games")
        assert code == 2
        assert "--base me/games-base" in said
        code, shown, said = call("push", run / "sft", "me/games", "--base", "me/games-base")
        assert code == 0, said
        commit = server.repos["me/games"].commits[-1]
        assert commit in shown
        code, shown, said = call("recommend", f"hub:me/games@{commit}", "1", "7", "-k", "3")
        assert code == 0, said
        assert shown == call("recommend", run / "sft", "1", "7", "-k", "3")[1]
        code, shown, said = call("pull", "hub:me/games", "--output", tmp_path / "mine")
        assert code == 0, said
        assert f"commit      {commit}" in shown
        assert Card.read(tmp_path / "mine").base.reference.startswith("me/games-base@")
        assert not any(path.is_symlink() for path in (tmp_path / "mine").rglob("*"))
