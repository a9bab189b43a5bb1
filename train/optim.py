"""AdamW with weight decay on matrices only, and the learning rate over a run."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from unclip.errors import UserError

from .config import TrainConfig


def make_optimizer(
    model: nn.Module, config: TrainConfig, device: torch.device, scale: Callable[[str], float]
) -> torch.optim.AdamW:
    """AdamW over the trainable parameters; `scale(name)` is a factor on a parameter's learning rate.

    Weight decay spares 1-D parameters (norms, biases): pulling them to zero only changes the function's scale.
    """
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((parameter.ndim > 1, scale(name)), []).append(parameter)
    if not groups and config.steps > 0:
        raise UserError(
            "the model has no trainable parameters: give steps=0, to save it as it is prepared without training"
        )
    settings: list[dict[str, Any]] = [
        {"params": members, "weight_decay": config.weight_decay if is_matrix else 0.0, "scale": factor}
        for (is_matrix, factor), members in (groups or {(False, 1.0): []}).items()
    ]
    fused = device.type in ("cuda", "cpu")
    return torch.optim.AdamW(
        settings, lr=config.learning_rate, betas=config.betas, eps=config.adam_eps, fused=fused
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set every group's rate to `rate` times the group's factor."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["scale"]


def learning_rate_at(config: TrainConfig, step: int) -> float:
    """Learning rate of a step (0-based): linear warm-up, constant, then a decay to zero at the end of the run."""
    rate = config.learning_rate * min(1.0, (step + 1) / max(1, config.warmup_steps))
    decay_steps = round(config.decay_fraction * config.steps)
    if config.decay == "none" or decay_steps == 0:
        return rate
    left = min(
        1.0, (config.steps - step) / decay_steps
    )  # 1 until the decay starts, then down to 1 / decay_steps
    return rate * (left if config.decay == "linear" else (1 - math.cos(math.pi * left)) / 2)
