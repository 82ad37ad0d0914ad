"""Every test runs without a network: sockets are refused (see pyproject) and the hub is switched off."""

import os
from contextlib import suppress

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub, which reads it once
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("MPLBACKEND", "Agg")

with suppress(ImportError):
    import uvloop  # noqa: F401 - keeps the socket class that it finds; vLLM imports it in tests that may open none


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory):
    """A finished run of `tests.tiny_run`: (recipe, result, console text). Copy its folder to change it."""
    import torch

    from tests.tiny_run import run, write_recipe

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("tiny-run")
    recipe = write_recipe(folder)
    result, shown = run(recipe, folder / "runs" / "tiny")
    torch.set_num_threads(threads)
    return recipe, result, shown


@pytest.fixture
def one_thread():
    """Sums in one order, so that equal runs give equal bits."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
