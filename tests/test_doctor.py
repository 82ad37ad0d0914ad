"""The doctor: findings on this machine, and what it says when something is missing or broken."""

import importlib
import types

import psutil
import pytest

from llmrec import doctor
from llmrec.doctor import Finding, MatmulTiming, examine, time_matmul


def by_subject(findings):
    return {finding.subject: finding for finding in findings}


def test_a_working_environment_has_no_problem(monkeypatch):
    monkeypatch.setattr(doctor, "time_matmul", lambda: MatmulTiming(10, 5))
    found = by_subject(examine())
    assert [finding for finding in found.values() if finding.state == "problem"] == []
    assert {"Python", "torch", "threads", "GPU", "CPU dtype", "memory", "disk", "asset:ml-100k", "vllm"} <= set(found)
    assert found["CPU dtype"].advice.startswith("train and serve in bfloat16")
    assert "hub" not in found  # asked only with --network
    assert all(finding.advice for finding in found.values() if finding.state != "ok")


def test_bfloat16_is_advised_only_where_it_is_clearly_faster():
    assert MatmulTiming(13, 10).dtype == "bfloat16"
    assert MatmulTiming(12, 10).dtype == "float32"
    timing = time_matmul(size=32, repeats=2)
    assert timing.float32 > 0
    assert timing.bfloat16 > 0


def test_a_torchvision_of_another_torch_is_named(monkeypatch):
    def broken(name):
        if name == "torchvision":
            raise RuntimeError("operator torchvision::nms does not exist\nlong trace")
        return types.ModuleType(name)

    monkeypatch.setattr(doctor.importlib, "import_module", broken)
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: object())
    finding = doctor._transformers()
    assert finding.state == "problem"
    assert finding.found == "torchvision does not fit this torch: operator torchvision::nms does not exist"
    assert finding.advice.endswith("pip uninstall -y torchvision torchaudio torchcodec")


def test_a_missing_transformers_is_named(monkeypatch):
    def missing(name):
        raise ModuleNotFoundError("No module named 'transformers'")

    monkeypatch.setattr(importlib, "import_module", missing)
    assert doctor._transformers() == Finding(
        "transformers",
        "problem",
        "cannot be imported: No module named 'transformers'",
        "pip install -c constraints.txt transformers",
    )


def test_little_memory_and_disk_are_noted(monkeypatch, tmp_path):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: types.SimpleNamespace(available=2**30, total=2**31))
    assert doctor._memory().state == "note"
    monkeypatch.setenv("LLMREC_CACHE", str(tmp_path / "not" / "there"))
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda folder: types.SimpleNamespace(free=2**30))
    finding = doctor._disk()
    assert finding.state == "note"
    assert str(tmp_path) in finding.found


def test_optional_packages_say_what_they_are_for():
    assert doctor._optional("vllm").advice in (
        "",
        "for serving through vLLM on a GPU (docs/vllm.md): pip install 'llmrec[vllm]'",
    )
    purpose, command = doctor.OPTIONAL["bitsandbytes"]
    assert "GPU" not in purpose
    assert command == "pip install 'llmrec[quantized]'"


@pytest.mark.parametrize("answers", [True, False])
def test_the_hub_is_a_note_not_a_problem(answers):
    def connect(address, timeout):
        if not answers:
            raise TimeoutError("timed out")
        return types.SimpleNamespace(close=lambda: None)

    assert doctor._hub(connect).state == ("ok" if answers else "note")
