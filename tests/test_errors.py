"""The exceptions say what was given and what to change, and carry the exit code of the command line."""

import pytest

from llmrec import errors


def test_a_hint_is_the_last_line_of_its_own():
    error = errors.InputError("bad file", hint="try another")
    assert str(error) == "bad file\nhint: try another"
    assert str(errors.InputError("bad file")) == "bad file"


def test_all_problems_are_listed_in_order():
    error = errors.DataError("2 problems:", ["first", "second"], hint="mend them")
    assert error.problems == ("first", "second")
    assert str(error) == "2 problems:\n  - first\n  - second\nhint: mend them"


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (errors.InputError, 2),
        (errors.MismatchError, 2),
        (errors.EnvironmentProblem, 3),
        (errors.TargetMissed, 1),
    ],
)
def test_exit_codes(kind, code):
    assert kind("message").exit_code == code
    assert issubclass(kind, errors.LLMRecError)


def test_a_config_error_is_an_input_error():
    assert issubclass(errors.ConfigError, errors.InputError)
    assert errors.ConfigError("x", []).exit_code == 2
