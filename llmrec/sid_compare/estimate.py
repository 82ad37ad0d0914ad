"""How long the proxies of a comparison will take on this machine, said before any training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from llmrec.sid_compare.proxy import Proxy

if TYPE_CHECKING:
    from llmrec.machine import Machine

_USER_SECONDS = 5e-3  # of search that is no matrix product, a user (as in `llmrec.plan`)


def tell_estimate(proxies: Sequence[Proxy]) -> str:
    """A line with the number of proxies, their budget, and the minutes of those that are not trained yet."""
    from llmrec.machine import this_machine

    line = f"{len(proxies)} proxies of {proxies[0].config.tokens:,} training tokens each"
    left = [proxy for proxy in proxies if not proxy.is_trained]
    if not left:
        return f"{line}, all trained before"
    machine = this_machine(left[0].folder)
    minutes = sum(estimated_seconds(proxy, machine) for proxy in left) / 60
    many = "" if len(left) == len(proxies) else f"{len(left)} of them left to train, "
    told = f"about {minutes:.0f} minutes" if minutes > 1.5 else "about a minute"
    return f"{line}: {many}{told} on this machine ({machine.name}), within a factor of 2"


def estimated_seconds(proxy: Proxy, machine: Machine) -> float:
    """Training and evaluation of one proxy, from its operations (`llmrec.costs`) and the machine's speed."""
    from llmrec.costs import architecture
    from llmrec.train.light_base import light_base

    config, table, split = proxy.config, proxy.table, proxy.dataset.split
    base = light_base(config.base, proxy.words)
    model = architecture(base.shape, table.num_tokens, len(base.tokenizer) + table.num_tokens)
    items = float(np.mean([min(config.window, len(sequence) - 2) for sequence in split.sequences]))
    prompt = items * table.num_levels
    users = min(config.users or len(split.users), len(split.users))
    searched = users * (prompt + config.num_beams * (table.num_levels - 1))
    stage = config.stage(epochs=1, max_length=1024, seed=0)
    operations = model.training(stage, config.tokens, prompt, 0) + model.forward(searched, prompt)
    return machine.seconds(operations, model.hidden) + _USER_SECONDS * users
