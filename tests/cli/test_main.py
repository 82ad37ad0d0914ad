"""The command line: exit codes, one clean screen for every kind of error, lazy commands."""

import errno
import importlib
import json
import runpy
import subprocess
import sys

import pytest
import typer

from llmrec import cli
from llmrec.cli.errors import explain
from llmrec.errors import EnvironmentProblem, InputError, TargetMissed


def run(capsys, *words):
    """Exit code, stdout and stderr of ``llmrec WORDS``."""
    with pytest.raises(SystemExit) as end:
        cli.main([*words])
    captured = capsys.readouterr()
    return end.value.code or 0, captured.out, captured.err


@pytest.fixture
def failing(monkeypatch):
    """Make ``llmrec version`` raise what the test sets."""
    module = importlib.import_module("llmrec.cli.version")

    def install(error):
        app = typer.Typer(add_completion=False)

        @app.command()
        def command() -> None:
            raise error

        monkeypatch.setattr(module, "app", app)

    return install


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (InputError("no file x", hint="give one"), 2, "error: no file x\nhint: give one\n"),
        (TargetMissed("too slow"), 1, "error: too slow\n"),
        (EnvironmentProblem("no vllm"), 3, "error: no vllm\n"),
        (OSError(errno.ENOSPC, "No space left on device", "/x/y"), 3, "error: the disk is full while writing /x/y\n"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), 3, "error: the disk is full\n"),
        (MemoryError(), 3, "error: out of memory\n"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 8 bytes"), 3, "error: out of memory: Default"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "a.yaml"), 2, "error: a.yaml: no such file"),
        (OSError("cannot reach the hub"), 3, "error: cannot reach the hub\n"),
        (KeyboardInterrupt(), 130, "stopped: interrupted by Ctrl-C\n"),
        (ZeroDivisionError("oops"), 70, "error: llmrec failed in an unforeseen way: ZeroDivisionError: oops\n"),
    ],
)
def test_every_error_is_one_clean_screen_with_its_exit_code(capsys, failing, error, code, text):
    failing(error)
    got, out, err = run(capsys, "version")
    assert got == code
    assert out == ""
    assert err.startswith(text)
    assert "Traceback" not in err


def test_the_traceback_is_there_on_request(capsys, failing, monkeypatch):
    monkeypatch.setenv("LLMREC_DEBUG", "1")
    failing(ZeroDivisionError("oops"))
    code, _, err = run(capsys, "version")
    assert code == 70
    assert "Traceback" in err


def test_a_message_with_brackets_is_printed_as_it_is(capsys, failing):
    failing(InputError("sizes[red]: [1, 2] is wrong"))
    assert run(capsys, "version")[2] == "error: sizes[red]: [1, 2] is wrong\n"


def test_an_os_error_without_a_file_name_is_the_environments():
    assert explain(OSError(errno.EACCES, "Permission denied")).exit_code == 3


def test_usage_errors_are_input_errors_with_a_near_miss(capsys):
    code, _, err = run(capsys, "recip")
    assert code == 2
    assert "Did you mean 'recipes'" in err
    assert run(capsys, "version", "--nonsense")[0] == 2


def test_help_lists_every_command_in_order(capsys):
    code, out, _ = run(capsys, "--help")
    assert code == 0
    commands = out[out.index("Commands") :]
    places = [commands.index(f" {name} ") for name in cli.COMMANDS]
    assert places == sorted(places)


@pytest.mark.parametrize("name", list(cli.COMMANDS))
def test_every_command_explains_itself(capsys, name):
    code, out, _ = run(capsys, name, "--help")
    assert code == 0
    assert f"llmrec {name}" in out
    assert "install-completion" not in out


def test_version(capsys):
    code, out, _ = run(capsys, "--version")
    assert (code, out) == (0, "llmrec 0.1.0\n")
    code, out, _ = run(capsys, "version")
    assert code == 0
    assert "torch 2" in out


def test_help_imports_nothing_heavy():
    heavy = ("torch", "transformers", "polars", "numpy", "pydantic", "matplotlib", "sentence_transformers", "faiss")
    program = (
        "import sys, json, llmrec.cli\n"
        "try: llmrec.cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        f"sys.stderr.write(json.dumps([name for name in {heavy!r} if name in sys.modules]))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert json.loads(result.stderr) == []


def test_python_dash_m_is_the_same_command(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["llmrec", "--version"])
    with pytest.raises(SystemExit) as end:
        runpy.run_module("llmrec", run_name="__main__")
    assert not end.value.code
    assert capsys.readouterr().out == "llmrec 0.1.0\n"
