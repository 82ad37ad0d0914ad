"""The gradients and the step of a tiny model that FSDP2 shards over two processes, beside a whole one's.

accelerate shards on GPUs alone; here torch does it, over gloo: ``two_shards.py {frozen,trained}`` SID rows.
"""

from __future__ import annotations

import copy
import json
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

sys.path.insert(0, str(Path(__file__).parents[2]))
from llmrec import processes
from llmrec.data.config import DataConfig
from llmrec.data.dataset import read_data
from llmrec.testing.worlds import write_tiny_folder
from llmrec.train import cpt
from llmrec.train.batches import build_batches, collate
from llmrec.train.config import StageConfig
from llmrec.train.loss import TargetHead
from llmrec.train.sharded import make_whole
from llmrec.train.stage import train_sequences
from llmrec.train.wrapped_forward import within_forward
from tests.train.conftest import make_world


def loss_of(model: Any, head: TargetHead, batch: dict[str, Tensor]) -> Tensor:
    states = model.get_decoder()(input_ids=batch["input_ids"], use_cache=False).last_hidden_state
    return head(states, batch["labels"], batch["sid_level"]).total


def learning(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def main(rows: str) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        data = write_tiny_folder(Path(folder))
        world = make_world(read_data(DataConfig(path=str(data), attributes=["genres"])))
    config = StageConfig(batch_tokens=128, train_sid_rows=rows == "trained")
    model = cpt.add_adapter(world.model, world.table, config)
    made = build_batches(config, world.renderer, world.dataset.catalog, train_sequences(world.dataset)).dataset
    batches = [collate([made[place]], 0) for place in range(2)]

    whole = copy.deepcopy(model)
    whole_head = TargetHead(whole, world.table, "level")
    for batch in batches:
        (loss_of(whole, whole_head, batch) / 2).backward()
    wanted = {name: weight.grad for name, weight in learning(whole).items() if weight.grad is not None}

    head = TargetHead(model, world.table, "level")
    mesh = init_device_mesh("cpu", (2,))
    for layer in model.get_base_model().model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    within_forward(model, model, partial(loss_of, model, head, batches[processes.index()])).backward()
    found = {name: weight.grad.full_tensor() for name, weight in learning(model).items() if name in wanted}
    torch.optim.SGD(learning(model).values(), lr=0.1).step()
    make_whole(model)
    now = learning(model)
    moved = {name: now[name].detach() - weight.detach() for name, weight in learning(whole).items() if name in wanted}
    told = {
        "gradients": len(wanted),
        "apart": max(float((found[name] - each).norm() / each.norm().clamp(min=1e-9)) for name, each in wanted.items()),
        "moved_apart": max(
            float((moved[name] + 0.1 * each).norm() / (0.1 * each).norm().clamp(min=1e-9))
            for name, each in wanted.items()
        ),
        "whole": all(type(weight) is nn.Parameter for weight in model.parameters()),
    }
    if processes.is_main():
        sys.stdout.write(json.dumps(told))


if __name__ == "__main__":
    main(sys.argv[1])
