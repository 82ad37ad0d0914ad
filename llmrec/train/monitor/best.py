"""The weights of the best held-out evaluation, kept on disk, so that a run that went wrong hands on what was right.

The weights before the first step take part: a run that only did harm hands on what it was given.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


class BestWeights:
    """Keeps the trained parameters of the best evaluation in `folder`.

    A resumed run evaluates the same steps to the same values again, so what an interrupted one kept stays right.
    """

    def __init__(self, folder: Path) -> None:
        self._weights = folder / "best.safetensors"
        self._card = folder / "best.json"

    @property
    def step(self) -> int | None:
        """Step of what is kept."""
        card = self._read()
        return None if card is None else int(card["step"])

    def offer(self, model: Any, step: int, value: float) -> bool:
        """Keep the model's trained parameters if `value` is above all before; returns whether it is."""
        card = self._read()
        if card is not None and not value > card["value"]:
            return False
        from safetensors.torch import save_file

        self._weights.parent.mkdir(parents=True, exist_ok=True)
        trained = {
            name: parameter.detach().cpu().contiguous()
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        }
        beside = self._weights.with_suffix(".new")
        save_file(trained, beside)
        os.replace(beside, self._weights)
        told = self._card.with_suffix(".new")
        told.write_text(json.dumps({"step": step, "value": value}), encoding="utf-8")
        os.replace(told, self._card)
        return True

    def restore(self, model: Any) -> int:
        """Put what is kept into the model; returns its step."""
        import torch
        from safetensors.torch import load_file

        kept = load_file(self._weights)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.requires_grad:
                    parameter.copy_(kept[name])
        step = self.step
        assert step is not None
        return step

    def _read(self) -> dict[str, Any] | None:
        if not self._card.exists():
            return None
        card: dict[str, Any] = json.loads(self._card.read_text(encoding="utf-8"))
        return card
