"""``llmrec recipes validate`` on real pipelines: all mistakes at once, each with the nearest known name."""

import pytest

from llmrec import cli, recipes


@pytest.fixture
def validate(capsys):
    """``validate(words...)`` -> (exit code, stdout, stderr)."""

    def run(*words):
        with pytest.raises(SystemExit) as end:
            cli.main(["recipes", "validate", *words])
        captured = capsys.readouterr()
        return end.value.code or 0, captured.out, captured.err

    return run


def test_shipped_pipelines_are_fine_and_overrides_apply(validate):
    pipelines = [recipe.name for recipe in recipes.shipped() if recipe.is_pipeline]
    assert {"quickstart", "ml-100k-small"} <= set(pipelines)
    for name in pipelines:
        code, out, _ = validate(name, "cpt.epochs=2")
        assert code == 0
        assert out.rstrip().endswith(f"{name}.yaml is fine: a pipeline, for `llmrec run`")


def test_every_shipped_recipe_is_told_by_its_keys_and_fine(validate):
    kinds = {}
    for recipe in recipes.shipped():
        if recipe.path.suffix == ".yaml" and not recipe.name.startswith("prompts/"):
            code, out, err = validate(recipe.name)
            assert code == 0, err
            kinds[recipe.name] = out.split(" is fine: ")[1].split(",")[0]
    assert kinds["sid_vocab/text.yaml"] == "SIDs"
    assert kinds["train/preference/beams.yaml"] == "preference data"
    assert kinds["train/align/grpo-hit.yaml"] == "an alignment"
    assert kinds["quickstart"] == "a pipeline"


def test_mistakes_are_named_by_the_kind_of_the_recipe(validate, tmp_path):
    text = recipes.find("sid_vocab/text.yaml").read_text(encoding="utf-8")
    path = tmp_path / "mine.yaml"
    path.write_text(text.replace("codebook_size", "codebok_size"))
    code, _, err = validate(str(path))
    assert code == 2
    assert "did you mean 'codebook_size'?" in err
    path.write_bytes(b"embeddings: \xff")
    code, _, err = validate(str(path))
    assert (code, "is not UTF-8 text" in err) == (2, True)


def test_mistakes_in_file_and_overrides_come_together_with_near_misses(validate, tmp_path):
    text = recipes.find("quickstart").read_text(encoding="utf-8")
    path = tmp_path / "mine.yaml"
    path.write_text(text.replace("learning_rate", "learning_rat", 1).replace("behaviour: {}", "behavior: {}", 1))
    code, _, err = validate(str(path), "eval.usrs=3", "sft.epochs=-1")
    assert code == 2
    assert "mine.yaml has 4 problems:" in err
    for nearest in ("'learning_rate'", "'behaviour'", "'users'"):
        assert f"did you mean {nearest}?" in err
    assert "sft.epochs: input should be greater than 0 (given -1)" in err
