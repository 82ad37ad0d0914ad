"""``llmrec sid compare``: variants, overrides for all, JSON, and words that cannot be meant."""

from __future__ import annotations

import json

import pytest

from llmrec import cli
from tests.sid_compare.planted import PROXY, write_planted

SMALL = ["--tokens", "2000", "--users", "5", *(f"{key}={value}" for key, value in PROXY.items())]


@pytest.fixture
def llmrec(capsys, tmp_path, monkeypatch):
    """``llmrec(words...)`` -> (exit code, stdout, stderr), in a folder with the planted data."""
    write_planted(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("LLMREC_CACHE", str(tmp_path / "cache"))

    def run(*words):
        with pytest.raises(SystemExit) as end:
            cli.main([str(word) for word in words])
        captured = capsys.readouterr()
        return end.value.code or 0, captured.out, captured.err

    return run


def test_a_variant_an_override_for_all_and_json(llmrec, tmp_path):
    (tmp_path / "coarse.yaml").write_text("recipe: kinds.yaml\noverrides: [sid.quantizer.codebook_size=4]\n")
    words = ["kinds.yaml", "coarse.yaml", "sid.quantizer.num_levels=1", *SMALL, "proxy.exact_users=0"]
    code, out, err = llmrec("sid", "compare", *words, "--json", "--output", "study")
    assert code == 0, err
    told = json.loads(out)
    sizes = {name: one["codebook_sizes"][:-1] for name, one in told["tokenizers"].items()}
    assert sizes == {"kinds": [8], "coarse": [4]}
    assert told["proxy"]["base"]["config"]["hidden_size"] == 32
    assert told["proxy"]["base"]["config"]["model_type"] == "llama"
    assert "proxy 2 of 2" in err
    assert (tmp_path / "study" / "compare.md").is_file()

    code, out, err = llmrec("sid", "compare", *words)
    assert code == 0
    assert err.count("done before") == 7  # two fits, trainings and evaluations, and the baselines
    assert "SIDs · planted" in out
    assert "runs/sid-compare/planted/compare.json" in out.replace("\\", "/")
    fit = told["tokenizers"]["coarse"]["folder"]
    code, out, _ = llmrec("sid", "report", fit, "--json")
    assert code == 0
    assert json.loads(out)["prefix_lift"] == told["tokenizers"]["coarse"]["prefix_lift"]


def test_words_that_cannot_be_meant(llmrec, tmp_path):
    def refused(*words):
        code, out, err = llmrec("sid", "compare", *words)
        assert (code, out) == (2, "")
        return " ".join(err.split())

    told = refused("kinds.yaml", "random.yaml", "sid.quantiser.num_levels=1", "sid.collisions.strategy=moved")
    assert "kinds: sid.quantiser: unknown key; did you mean 'quantizer'?" in told
    assert "random: sid.collisions.strategy" in told
    assert "did you mean 'learning_rate'" in refused("kinds.yaml", "proxy.learningrate=1")
    assert "set base.config, not base.model" in refused("kinds.yaml", "proxy.base={model: x}")
    assert "names a seed twice" in refused("kinds.yaml", "--seeds", "1,1")
    assert "no list of whole numbers" in refused("kinds.yaml", "--seeds", "0 1")
    assert "No recipe is named" in refused("data.path=planted")
    assert "no recipe 'kind.yaml'" in refused("kind.yaml")
    assert "called 'kinds'" in refused("kinds.yaml", tmp_path / "kinds.yaml")
    assert "data: missing" in refused("sid_vocab/text.yaml")
    (tmp_path / "variant.yaml").write_text("recipe: kinds.yaml\noverride: [sid.quantizer.codebook_size=4]\n")
    assert "did you mean 'overrides'?" in refused("variant.yaml")
    assert "not UTF-8" in refused("kinds.npy")
    assert not (tmp_path / "runs").exists()
