"""Exponential moving average of a network's weights."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class EMA:
    """A copy of the model whose weights trail the trained ones: w' <- d w' + (1 - d) w.

    The decay d warms up as (1 + s) / (10 + s) over the steps s until it reaches `decay`, so that the random start is
    forgotten quickly. Buffers and frozen parameters are copied.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.model = copy.deepcopy(model).requires_grad_(False).eval()
        ours, theirs = _tensors(self.model), _tensors(model)
        trained = {id(p) for p in model.parameters() if p.requires_grad}
        averaged = [(a, b) for a, b in zip(ours, theirs, strict=True) if id(b) in trained]
        self._averages, self._sources = [a for a, _ in averaged], [b for _, b in averaged]
        self._copied = [(a, b) for a, b in zip(ours, theirs, strict=True) if id(b) not in trained]

    def decay_at(self, step: int) -> float:
        """Decay of the update after `step` steps (0-based)."""
        return min(self.decay, (1 + step) / (10 + step))

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move towards the model's weights, after its `step`-th update (0-based)."""
        torch._foreach_lerp_(self._averages, self._sources, 1 - self.decay_at(step))
        for average, source in self._copied:
            average.copy_(source)


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]
