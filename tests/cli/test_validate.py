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
        assert out.rstrip().endswith(f"{name}.yaml is fine")


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
