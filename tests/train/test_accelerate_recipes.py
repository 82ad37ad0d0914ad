"""The shipped settings of ``accelerate launch``, read by accelerate's own parser, and what sharding forbids."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin, launch
from torch.distributed.fsdp import OffloadPolicy

from llmrec import recipes
from llmrec.errors import InputError
from llmrec.train.sharded import require_whole_weights

FOLDER = recipes.folder("train") / "accelerate"
FILES = sorted(FOLDER.glob("*.yaml"))
TYPES = {"two-processes-cpu": "MULTI_GPU", "fsdp2": "FSDP", "deepspeed-zero2": "DEEPSPEED"}


def launched(path: Path) -> Any:
    """The arguments that ``accelerate launch`` makes of a file."""
    parser = launch_command_parser()
    args, _, _ = _validate_launch_command(parser.parse_args(["--config_file", str(path), "-m", "llmrec"]))
    return args


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_file_is_read_without_unknown_keys_and_its_command_names_it(path: Path) -> None:
    config = load_config_from_file(str(path))
    assert config.distributed_type == TYPES[path.stem]
    assert launched(path).num_processes == 2
    assert f"accelerate launch --config_file train/accelerate/{path.name}" in path.read_text()


def test_all_files_are_known() -> None:
    assert {path.stem for path in FILES} == TYPES.keys()


def test_the_cpu_file_starts_several_processes() -> None:
    args = launched(FOLDER / "two-processes-cpu.yaml")
    assert args.multi_gpu  # the launcher that starts several processes; the one for the CPU starts one
    assert not args.cpu


def test_the_fsdp_file_makes_the_plugin_of_version_2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "get_free_port", lambda: 29500)
    monkeypatch.setattr(launch, "is_port_in_use", lambda port: False)
    args = launched(FOLDER / "fsdp2.yaml")
    assert args.use_fsdp
    for name, value in launch.prepare_multi_gpu_env(args).items():
        if name not in os.environ:
            monkeypatch.setenv(name, value)
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2
    assert plugin.reshard_after_forward is True
    assert not plugin.cpu_ram_efficient_loading
    assert type(plugin.cpu_offload) is OffloadPolicy  # not the one that offloads


def test_the_deepspeed_file_asks_for_zero_2() -> None:
    config = load_config_from_file(str(FOLDER / "deepspeed-zero2.yaml")).deepspeed_config
    assert config["zero_stage"] == 2
    assert config["gradient_accumulation_steps"] == "auto"
    assert launched(FOLDER / "deepspeed-zero2.yaml").use_deepspeed
    if find_spec("deepspeed") is None:
        pytest.skip("deepspeed is not installed: its plugin was not made of the settings")
    from accelerate.utils import DeepSpeedPlugin

    plugin = DeepSpeedPlugin(zero_stage=config["zero_stage"])
    assert plugin.zero_stage == 2


@pytest.mark.parametrize(
    ("kind", "version", "stage", "reasons", "told"),
    [
        ("FSDP", True, 0, ["it searches"], "with FSDP: it searches"),
        ("FSDP", False, 0, [], "version 1 replaces"),
        ("DEEPSPEED", False, 3, [], "with DeepSpeed ZeRO-3"),
        ("DEEPSPEED", False, 2, ["it searches"], "with DeepSpeed ZeRO-2: it searches"),
        ("FSDP", True, 0, [], None),
        ("DEEPSPEED", False, 2, [], None),
        ("MULTI_GPU", False, 0, ["it searches"], None),
    ],
)
def test_what_does_not_go_with_sharded_weights_is_refused(
    kind: str, version: bool, stage: int, reasons: list[str], told: str | None
) -> None:
    plugin = SimpleNamespace(zero_stage=stage)
    accelerator = SimpleNamespace(
        distributed_type=DistributedType[kind], is_fsdp2=version, state=SimpleNamespace(deepspeed_plugin=plugin)
    )
    trainer = SimpleNamespace(accelerator=accelerator)
    if told is None:
        require_whole_weights("grpo", trainer, reasons)
        return
    with pytest.raises(InputError, match=told):
        require_whole_weights("grpo", trainer, reasons)
